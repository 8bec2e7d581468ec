"""A handle on the tests' stack: playbooks, kubectl, and an HTTP client that goes through the Gateway."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..hang import HANG_SECONDS

RECAP = re.compile(r"^localhost\s+: ok=\d+\s+changed=(?P<changed>\d+)\s+unreachable=\d+\s+failed=(?P<failed>\d+)", re.M)


@dataclass(frozen=True)
class PlaybookResult:
    """What a playbook printed, and the two numbers of its recap that tests look at."""

    output: str
    returncode: int
    changed: int
    failed: int


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, read whole. `events` are the data lines of an SSE answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float
    events: tuple[str, ...] = ()

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def pod(self) -> str:
        """The simulated server that answered."""
        return self.headers["x-headrace-pod"]


@dataclass(frozen=True)
class Stack:
    """The tests' cluster as `tests/e2e/cluster.yml`, or another file of extra variables, describes it."""

    repository: Path
    kubeconfig: Path
    kubectl_path: Path
    gateway: str
    variables: Mapping[str, Any] = field(repr=False)
    variables_file: str = "tests/e2e/cluster.yml"

    @classmethod
    def from_inventory(cls, repository: Path, variables_file: str = "") -> Stack:
        """Ask Ansible itself what the inventory and the extra variables say, so that the tests repeat no path.

        The environment's HEADRACE_TEST_CLUSTER names another cluster's file of extra variables."""
        variables_file = variables_file or os.environ.get("HEADRACE_TEST_CLUSTER", cls.variables_file)
        names = [
            f"local_cluster_{name}" for name in ("kubeconfig", "context", "publish_address", "name", "cache_dir")
        ]  # fmt: skip
        template = "{{ {" + ", ".join(f"'{name}': {name}" for name in names) + "} | to_json }}"
        command = [
            str(repository / ".venv/bin/ansible"), "localhost", "-i", "inventories/local",
            "-e", f"@{variables_file}", "-m", "ansible.builtin.debug", "-a", f"msg={template}",
        ]  # fmt: skip
        env = {**os.environ, "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.oneline", "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1"}
        output = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True, env=env).stdout
        found = json.loads(output[output.index("{") :])["msg"]
        variables = json.loads(found) if isinstance(found, str) else found
        return cls(
            repository=repository,
            kubeconfig=Path(variables["local_cluster_kubeconfig"]).expanduser(),
            kubectl_path=repository / "build/bin/kubectl",
            gateway=variables["local_cluster_publish_address"],
            variables=variables,
            variables_file=variables_file,
        )

    # ---- playbooks

    def playbook(self, path: str, *arguments: str, check: bool = True, timeout: float = 900) -> PlaybookResult:
        """Run a playbook against the tests' cluster; with `check`, a failed one fails the test with its output."""
        command = [
            str(self.repository / ".venv/bin/ansible-playbook"), path, "-i", "inventories/local",
            "-e", f"@{self.variables_file}", *arguments,
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=self.repository, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout
        )
        recap = RECAP.search(done.stdout)
        result = PlaybookResult(
            output=done.stdout,
            returncode=done.returncode,
            changed=int(recap["changed"]) if recap else -1,
            failed=int(recap["failed"]) if recap else -1,
        )
        if check:
            assert done.returncode == 0, f"{path} ended with {done.returncode}:\n{done.stdout[-6000:]}"
        return result

    def site(self, *arguments: str, check: bool = True, timeout: float = 3000) -> PlaybookResult:
        """Run site.yml, whole."""
        return self.playbook("site.yml", *arguments, check=check, timeout=timeout)

    # ---- the API server

    def kubectl(
        self, *arguments: str, stdin: str | None = None, check: bool = True, timeout: float = 3 * HANG_SECONDS
    ) -> str:
        """Run kubectl and return what it printed."""
        done = subprocess.run(
            [str(self.kubectl_path), "--kubeconfig", str(self.kubeconfig), *arguments],
            input=stdin, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout if done.returncode == 0 else done.stdout + done.stderr

    def objects(self, *arguments: str) -> list[dict[str, Any]]:
        """`kubectl get ARGUMENTS -o json`, as a list of objects."""
        found = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return found["items"] if found["kind"].endswith("List") else [found]

    def pods(self, selector: str, namespace: str = "default") -> list[dict[str, Any]]:
        """The Pods that are not on their way out."""
        found = self.objects("pods", "-n", namespace, "-l", selector)
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def processes(self, pod: Mapping[str, Any]) -> list[int]:
        """Process ids of a Pod's containers on this machine, which is the cluster's node too; without the pause."""
        uid = pod["metadata"]["uid"]
        found = []
        for directory in Path("/proc").iterdir():
            try:
                groups = (directory / "cgroup").read_text() if directory.name.isdigit() else ""
                command = (directory / "cmdline").read_bytes() if uid in groups.replace("_", "-") else b""
            except OSError:
                continue
            if command and not command.startswith(b"/pause"):
                found.append(int(directory.name))
        return found

    @staticmethod
    def is_process(number: int) -> bool:
        """Whether a process runs."""
        return Path(f"/proc/{number}").exists()

    def scale(self, deployment: str, replicas: int, namespace: str = "default") -> None:
        """Scale a Deployment and wait until its Pods agree."""
        self.kubectl("scale", "-n", namespace, f"deployment/{deployment}", f"--replicas={replicas}")
        if replicas:
            self.kubectl(
                "rollout", "status", "-n", namespace, f"deployment/{deployment}", f"--timeout={2 * HANG_SECONDS:.0f}s"
            )

    @contextmanager
    def scaled_to_zero(self, deployment: str, selector: str, namespace: str = "default") -> Iterator[None]:
        """The Deployment without Pods for the length of the block; then as it was."""
        before = self.objects("deployment", deployment, "-n", namespace)[0]["spec"]["replicas"]
        self.scale(deployment, 0, namespace)
        try:
            self.kubectl(
                "wait", "-n", namespace, "--for=delete", "pod", "-l", selector, f"--timeout={2 * HANG_SECONDS:.0f}s"
            )
            yield
        finally:
            self.scale(deployment, before, namespace)

    # ---- traffic

    def request(
        self, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None, timeout: float = HANG_SECONDS
    ) -> Answer:
        """One request through the Gateway: POST of JSON where there is a body, else GET."""
        host, port = self.gateway.rsplit(":", 1)
        connection = http.client.HTTPConnection(host, int(port), timeout=timeout)
        data = None if body is None else json.dumps(body).encode()
        sent = {"content-type": "application/json", "x-request-id": str(uuid.uuid4()), **(headers or {})}
        started = time.monotonic()
        try:
            connection.request("GET" if data is None else "POST", path, body=data, headers=sent)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        events = tuple(
            line.removeprefix("data:").strip() for line in content.decode("utf-8", "replace").splitlines()
            if line.startswith("data:")
        )  # fmt: skip
        return Answer(
            status=response.status,
            headers={key.lower(): value for key, value in response.getheaders()},
            body=content,
            seconds=time.monotonic() - started,
            events=events,
        )

    def wait_for(self, what: str, condition: Callable[[], bool], timeout: float = 2 * HANG_SECONDS) -> None:
        """Ask again until the condition holds; the test fails, naming it, when it does not in time."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"after {timeout:.0f} s still not so: {what}"
            time.sleep(0.2)
