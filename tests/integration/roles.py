"""Roles against a real API server: run one, or render what it would apply and have that validated strictly."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .apiserver import ApiServer

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"
ENVIRONMENT = {**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
# A whole site.yml takes a minute on a machine that does nothing else.
TIMEOUT_SECONDS = 1200
RECAP = re.compile(r"^localhost\s+: ok=\d+\s+changed=(\d+)\s+unreachable=\d+\s+failed=(\d+)", re.M)


@dataclass(frozen=True)
class Run:
    """A playbook's run."""

    returncode: int
    output: str

    @property
    def changed(self) -> int:
        """How many tasks changed something; -1 where the run did not get that far."""
        recap = RECAP.search(self.output)
        return int(recap[1]) if recap else -1

    @property
    def said(self) -> str:
        """The output with its lines joined."""
        return " ".join(self.output.split())


def stack(api: ApiServer) -> dict[str, Any]:
    """The variables by which a playbook of the stack finds the API server, Headrace's image and the programs."""
    return {
        "headrace_context": "test",
        "headrace_kubeconfig": str(api.kubeconfig),
        "headrace_controller_image": "registry.example.com/headrace/controller:1",
        "headrace_binary_dir": str(ROOT / "build/bin"),
    }


def play(
    playbook: Path, variables: dict[str, Any], *arguments: str, environment: Mapping[str, str] | None = None
) -> Run:
    """Run a playbook on localhost."""
    command = [str(PLAYBOOK), str(playbook), "-e", json.dumps(variables), *arguments]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**ENVIRONMENT, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    return Run(done.returncode, done.stdout)


def run_role(api: ApiServer, folder: Path, role: str, variables: dict[str, Any], *arguments: str) -> Run:
    """Run a role as a playbook of ten lines would."""
    cluster = {"kubeconfig": str(api.kubeconfig), "context": "test"}
    content = {
        "hosts": "localhost",
        "gather_facts": False,
        "module_defaults": {"group/kubernetes.core.k8s": cluster, "kubernetes.core.k8s_taint": cluster},
        "roles": [role],
    }
    playbook = folder / f"{role}.yml"
    playbook.write_text(yaml.safe_dump([content]))
    return play(playbook, variables, *arguments)


def refusals(folder: Path, role: str, cases: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What the role's preflight says to each case's variables; empty where it got as far as asking a cluster."""
    return refusals_of_roles(folder, {name: (role, variables) for name, variables in cases.items()})


def refusals_of_roles(folder: Path, cases: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, str]:
    """The same, of several roles in one run."""
    # Nobody listens there: a role that refuses nothing fails at its first question to the API server.
    cluster = {"host": "https://127.0.0.1:1", "api_key": "none"}
    tasks = [
        {
            "name": name,
            "block": [{"name": "Run", "ansible.builtin.include_role": {"name": role}, "vars": variables}],
            "rescue": [
                {
                    "name": "Keep",
                    "ansible.builtin.copy": {
                        "content": "{{ ansible_failed_task.name }}\n{{ ansible_failed_result | to_json }}",
                        "dest": str(folder / f"{name}.txt"),
                        "mode": "0600",
                    },
                }
            ],
        }
        for name, (role, variables) in cases.items()
    ]
    playbook = folder / "refusals.yml"
    defaults = {"group/kubernetes.core.k8s": cluster}
    content = {"hosts": "localhost", "gather_facts": False, "module_defaults": defaults, "tasks": tasks}
    playbook.write_text(yaml.safe_dump([content]))
    run = play(playbook, {})
    assert run.returncode == 0, run.output
    texts = {name: (folder / f"{name}.txt").read_text() for name in cases}
    asked = re.compile(r".*\| Look (for|at) ")
    return {name: "" if asked.match(text) else text for name, text in texts.items()}


def render(
    folder: Path, role: str, template: str, variables: dict[str, Any], loop: str = "", **more: Any
) -> list[dict[str, Any]]:
    """What a role's template makes of variables; with `loop`, the name of a list, of each of its entries as `item`."""
    source = ROOT / "roles" / role / "templates" / template
    destination = folder / "rendered"
    destination.mkdir()
    task = {
        "name": "Render",
        "ansible.builtin.copy": {
            "content": f"{{{{ lookup('ansible.builtin.template', '{source}') }}}}",
            "dest": f"{destination}/{{{{ index }}}}.yaml",
            "mode": "0600",
        },
        "loop": f"{{{{ {loop} }}}}" if loop else [0],
        "loop_control": {"index_var": "index", "label": "{{ index }}"},
        "tags": ["render"],
    }
    # The role's variables without its tasks.
    content = {
        "hosts": "localhost",
        "gather_facts": False,
        "vars": {"role_path": str(ROOT / "roles" / role), **more},
        "roles": [{"role": role, "tags": ["not_run"]}],
        "tasks": [task],
    }
    playbook = folder / "render.yml"
    playbook.write_text(yaml.safe_dump([content]))
    run = play(playbook, variables, "--tags", "render")
    assert run.returncode == 0, run.output
    files = sorted(destination.glob("*.yaml"), key=lambda path: int(path.stem))
    return [one for path in files for one in yaml.safe_load_all(path.read_text()) if one]


def validate(api: ApiServer, objects: list[dict[str, Any]]) -> str:
    """What the API server has against the objects, in a dry run that knows no unknown field. Empty: nothing."""
    namespaces = {one["metadata"]["namespace"] for one in objects if "namespace" in one["metadata"]}
    for name in namespaces:
        api.kubectl("create", "namespace", name)
    content = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    done = api.kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=content)
    return "" if done.returncode == 0 else done.stderr
