"""The suite as a program: built from the Go modules that go.mod names, with its manifests and what it prints."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

MODULE = "sigs.k8s.io/gateway-api-inference-extension/conformance"
BACKEND = "sigs.k8s.io/gateway-api/conformance/echo-basic"
HERE = Path(__file__).resolve().parent

_SHORT_NAME = re.compile(r'ShortName:\s+"(\w+)"')
_RESULT = re.compile(r"^    --- (PASS|FAIL|SKIP): TestConformance/(\w+) \(([\d.]+)s\)", re.M)


@dataclass(frozen=True)
class Result:
    """What became of one of the suite's tests."""

    name: str
    outcome: str
    seconds: float


@dataclass(frozen=True)
class Suite:
    """The suite's programs and files. `folder` is where they are built, and where the log and the report go."""

    folder: Path

    @property
    def program(self) -> Path:
        """The suite."""
        return self.folder / "conformance.test"

    @property
    def backend(self) -> Path:
        """Its model server, which echoes requests."""
        return self.folder / "echo-basic"

    @property
    def log(self) -> Path:
        """What the last run printed."""
        return self.folder / "suite.log"

    @property
    def report(self) -> Path:
        """The last run's report."""
        return self.folder / "report.yaml"

    def build(self) -> None:
        """Build both programs; Go's own cache makes a second time quick."""
        if shutil.which("go") is None:
            raise RuntimeError("there is no `go` in PATH. Fix: install Go 1.26 or newer; see the README")
        self.folder.mkdir(parents=True, exist_ok=True)
        _go("test", "-c", "-trimpath", "-o", str(self.program), ".")
        _go("build", "-trimpath", "-ldflags", "-s -w", "-o", str(self.backend), BACKEND)

    @cached_property
    def source(self) -> Path:
        """The module's files, as Go downloaded them."""
        return Path(_go("list", "-m", "-f", "{{.Dir}}", MODULE).strip())

    @cached_property
    def test_names(self) -> frozenset[str]:
        """Every test of the suite, by its sources."""
        files = (self.source / "tests").glob("*.go")
        return frozenset(name for file in files for name in _SHORT_NAME.findall(file.read_text()))

    @cached_property
    def manifests(self) -> list[dict[str, Any]]:
        """The objects that every test needs."""
        text = (self.source / "resources/base.yaml").read_text()
        return [document for document in yaml.safe_load_all(text) if document]

    def containers(self) -> Iterator[dict[str, Any]]:
        """Every container that the manifests run."""
        for document in self.manifests:
            if document["kind"] == "Deployment":
                yield from document["spec"]["template"]["spec"]["containers"]

    @property
    def backend_image(self) -> str:
        """The name that the manifests give the backend's image."""
        (found,) = {box["image"] for box in self.containers() if f"/{self.backend.name}:" in box["image"]}
        return found

    @property
    def gateway_namespace(self) -> str:
        """Where the Gateways are."""
        (found,) = {found["metadata"]["namespace"] for found in self.manifests if found["kind"] == "Gateway"}
        return found

    def run(self, kubeconfig: Path, arguments: Sequence[str], timeout: float) -> Mapping[str, Result]:
        """Run the suite against a cluster; what became of each of its tests."""
        self.report.unlink(missing_ok=True)
        command = [
            str(self.program), "-test.v", f"-test.timeout={timeout:.0f}s", f"-report-output={self.report}", *arguments,
        ]  # fmt: skip
        environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
        with self.log.open("wb") as log:
            subprocess.run(
                command, cwd=HERE, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=timeout + 60
            )
        return read_results(self.log.read_text(errors="replace"))


def read_results(log: str) -> dict[str, Result]:
    """The outcome of each test in what `go test -v` printed."""
    return {name: Result(name, outcome, float(taken)) for outcome, name, taken in _RESULT.findall(log)}


def _go(*arguments: str) -> str:
    environment = {**os.environ, "CGO_ENABLED": "0"}
    done = subprocess.run(["go", *arguments], cwd=HERE, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`go {' '.join(arguments)}` failed:\n{done.stderr[-3000:]}")
    return done.stdout
