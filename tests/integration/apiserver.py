"""A real kube-apiserver with its etcd on loopback, for tests that need the API and no nodes."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..hang import HANG_SECONDS
from ..ports import free_port


@dataclass(frozen=True)
class ApiServer:
    """A running API server."""

    kubeconfig: Path
    kubectl_path: Path

    def kubectl(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl; the caller looks at the return code."""
        command = [str(self.kubectl_path), "--kubeconfig", str(self.kubeconfig), *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=2 * HANG_SECONDS)

    def get(self, *arguments: str) -> Any:
        """`kubectl get ... -o json`, parsed."""
        done = self.kubectl("get", *arguments, "-o", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def wait_established(self, *names: str) -> None:
        """Until the API server serves these CRDs: all of them without a name."""
        wanted = [f"crd/{name}" for name in names] or ["crd", "--all"]
        done = self.kubectl("wait", "--for=condition=Established", *wanted, f"--timeout={HANG_SECONDS:.0f}s")
        assert done.returncode == 0, done.stderr
        # Established, a kind is still answered 429 while its storage starts.
        deadline = time.monotonic() + HANG_SECONDS
        for name in names or [one["metadata"]["name"] for one in self.get("crds")["items"]]:
            while (done := self.kubectl("get", name, "-A")).returncode != 0:
                assert time.monotonic() < deadline, done.stderr
                time.sleep(0.1)

    def apply(self, *objects: Any) -> None:
        """Server-side apply, under strict validation, of objects that must be accepted."""
        content = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        done = self.kubectl("apply", "--server-side", "--validate=strict", "-f", "-", stdin=content)
        assert done.returncode == 0, done.stderr


@contextmanager
def running_with_crds(repository: Path, directory: Path) -> Iterator[ApiServer]:
    """One that serves InferencePools of both groups and their companions."""
    with running(repository / "build/bin", directory) as server:
        done = server.kubectl("apply", "--server-side", "-R", "-f", str(repository / "crds"))
        assert done.returncode == 0, done.stderr
        server.wait_established()
        yield server


@contextmanager
def running(binaries: Path, directory: Path) -> Iterator[ApiServer]:
    """Start etcd and kube-apiserver in `directory`; stop both, by pid, at the end."""
    kubeall = binaries / "kubeall"
    assert kubeall.exists(), f"{kubeall} is missing: run `make binaries`"
    etcd_port, peer_port, port = free_port(), free_port(), free_port()
    keys = directory / "keys"
    keys.mkdir()
    subprocess.run(["openssl", "genrsa", "-out", str(keys / "sa.key"), "2048"], check=True, capture_output=True)
    token = secrets.token_hex(16)
    (keys / "tokens.csv").touch(mode=0o600)
    (keys / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
    etcd = f"http://127.0.0.1:{etcd_port}"
    peer = f"http://127.0.0.1:{peer_port}"
    commands = {
        "etcd": [
            "etcd", "--name=test", f"--data-dir={directory}/etcd", "--unsafe-no-fsync", "--log-level=warn",
            f"--listen-client-urls={etcd}", f"--advertise-client-urls={etcd}", f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=test={peer}",
        ],
        "kube-apiserver": [
            "kube-apiserver", f"--etcd-servers={etcd}", "--bind-address=127.0.0.1", f"--secure-port={port}",
            f"--cert-dir={keys}", "--service-cluster-ip-range=10.0.0.0/24", "--authorization-mode=RBAC",
            f"--token-auth-file={keys}/tokens.csv", "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={keys}/sa.key", f"--service-account-signing-key-file={keys}/sa.key",
            "--disable-admission-plugins=ServiceAccount", "--endpoint-reconciler-type=none",
            # Without it the server looks for a default route, which a network namespace of the tests has not.
            "--advertise-address=192.0.2.1",
        ],
    }  # fmt: skip
    cluster = {"server": f"https://127.0.0.1:{port}", "insecure-skip-tls-verify": True}
    kubeconfig = directory / "kubeconfig"
    kubeconfig.touch(mode=0o600)
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1", "kind": "Config", "current-context": "test",
                "clusters": [{"name": "test", "cluster": cluster}],
                "users": [{"name": "test", "user": {"token": token}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            }
        )
    )  # fmt: skip
    processes = []
    try:
        for name, command in commands.items():
            with (directory / f"{name}.log").open("wb") as log:
                environment = {**os.environ, "GOMAXPROCS": "2"}
                processes.append(subprocess.Popen([str(kubeall), *command], stdout=log, stderr=log, env=environment))
        server = ApiServer(kubeconfig=kubeconfig, kubectl_path=binaries / "kubectl")
        _wait_until_ready(server, processes, directory)
        yield server
    finally:
        # Nothing of it is kept, and an orderly end takes the server up to a minute.
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def _wait_until_ready(server: ApiServer, processes: list[subprocess.Popen[bytes]], directory: Path) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while True:
        ready = server.kubectl("get", "--raw", "/readyz")
        # /readyz answers before the namespace controller of the server itself has made "default".
        if ready.returncode == 0 and server.kubectl("get", "namespace", "default").returncode == 0:
            return
        logs = "".join((directory / f"{name}.log").read_text()[-2000:] for name in ("etcd", "kube-apiserver"))
        assert all(process.poll() is None for process in processes), f"a server ended:\n{logs}"
        assert time.monotonic() < deadline, f"not ready after {HANG_SECONDS} s:\n{logs}"
        time.sleep(0.3)
