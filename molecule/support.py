"""What the scenarios' tests share: kubectl on the scenario's cluster, and its converge playbook with other input."""

from __future__ import annotations

import base64
import functools
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
VARIABLES = ROOT / (os.environ.get("HEADRACE_MOLECULE_VARIABLES") or "tests/e2e/cluster.yml")
COMMON = ["-i", str(ROOT / "inventories/local"), "-e", f"@{VARIABLES}"]
# Molecule asks for colours, and Ansible heeds that before it heeds ANSIBLE_NOCOLOR; what it prints is read here.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "ANSIBLE_FORCE_COLOR"}
ENVIRONMENT |= {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
RECAP = re.compile(r"^localhost\s+: ok=\d+\s+changed=(\d+)\s+unreachable=\d+\s+failed=(\d+)", re.M)


@dataclass(frozen=True)
class Run:
    """A playbook's run."""

    returncode: int
    output: str
    changed: int
    failed: int


VARIABLES_ASKED = ("headrace_kubeconfig", "headrace_binary_dir", "local_cluster_cache_dir", "local_cluster_workers")


@functools.cache
def variables() -> dict[str, Any]:
    """What the inventory says the variables are. All are asked for at once: a run of Ansible takes a second or two."""
    wanted = ", ".join(f"'{name}': {name}" for name in VARIABLES_ASKED)
    command = [str(BIN / "ansible"), "localhost", *COMMON, "-m", "ansible.builtin.debug"]
    command += ["-a", f"msg={{{{ {{{wanted}}} | to_json }}}}"]
    environment = {
        **ENVIRONMENT,
        "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.oneline",
        "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1",
    }
    output = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    found = json.loads(output[output.index("{") :])["msg"]
    return json.loads(found) if isinstance(found, str) else found


def play(scenario: str, extra: dict[str, Any] | None = None, *arguments: str) -> Run:
    """A scenario's converge playbook once more."""
    command = [str(BIN / "ansible-playbook"), str(ROOT / "molecule" / scenario / "converge.yml"), *COMMON]
    command += ["-e", json.dumps(extra or {}), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900
    )
    recap = RECAP.search(done.stdout)
    return Run(done.returncode, done.stdout, int(recap[1]) if recap else -1, int(recap[2]) if recap else -1)


def kubectl(*arguments: str, kubeconfig: str | None = None, check: bool = True, stdin: str | None = None) -> str:
    """kubectl's output; where it may fail, its error as well."""
    config = ["--kubeconfig", kubeconfig or variables()["headrace_kubeconfig"]]
    program = f"{variables()['headrace_binary_dir']}/kubectl"
    done = subprocess.run([program, *config, *arguments], input=stdin, capture_output=True, text=True, timeout=180)
    if check:
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
    return done.stdout if done.returncode == 0 else done.stdout + done.stderr


def get(*arguments: str, kubeconfig: str | None = None) -> Any:
    """An object, or a list's items."""
    found = json.loads(kubectl("get", "-o", "json", *arguments, kubeconfig=kubeconfig))
    return found["items"] if found["kind"] == "List" else found


def secret(namespace: str, name: str) -> dict[str, bytes]:
    """A Secret's data."""
    return {key: base64.b64decode(value) for key, value in get("secret", name, "-n", namespace)["data"].items()}


def assert_converged(scenario: str) -> None:
    """`--check --diff` on what is there already reports no change."""
    run = play(scenario, None, "--check", "--diff")
    assert (run.returncode, run.changed, run.failed) == (0, 0, 0), run.output[-6000:]


def assert_refused(scenario: str, extra: dict[str, Any], *says: str) -> None:
    """Wrong input fails, and the message says what is wrong and what to do."""
    run = play(scenario, extra)
    assert run.returncode != 0, "it was accepted"
    assert run.changed == 0, run.output[-6000:]
    for text in says:
        assert text in " ".join(run.output.split()), run.output[-6000:]
