"""A pool's replacement as its tests see it: the playbook, the record, routes, and the load meanwhile."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..e2e.stack import Stack
from .load import Load

PLAYBOOK = "playbooks/replace_pool.yml"
MODEL = "meta-llama/Meta-Llama-3-8B-Instruct"
RECORD = "headrace-replace-blue"
VARIABLES = ("-e", "@tests/full/replacement.yml")
ROLES = "vllm_model_server,inference_pool,inference_gateway"
# Requests per second; fewer where the machine has other work.
RATE = float(os.environ.get("HEADRACE_LOAD_RATE", "50"))


def forget_record(stack: Stack) -> None:
    """Nothing is recorded, so that `site` refuses nothing."""
    for kind in ("job", "lease", "configmap"):
        stack.kubectl("delete", kind, RECORD, "-n", "default", "--ignore-not-found", "--wait")


def forget(stack: Stack, variables: tuple[str, ...] = VARIABLES) -> None:
    """The route leads to the old pool, nothing is recorded, and both pools are as the inventory has them."""
    forget_record(stack)
    stack.site(
        *variables, "-e", "inference_gateway_force_conflicts=true", "-e", "inference_pool_force_conflicts=true",
        "--tags", ROLES,
    )  # fmt: skip
    stack.wait_for("traffic flows", lambda: stack.request("/v1/models").status == 200)


def arguments(*more: str) -> tuple[str, ...]:
    return (*VARIABLES, "-e", "pool=blue", "-e", "replacement=green", *more)


def start(stack: Stack, *more: str) -> subprocess.Popen[str]:
    """The playbook, running."""
    command = [
        str(stack.repository / ".venv/bin/ansible-playbook"), PLAYBOOK, "-i", "inventories/local",
        "-e", f"@{stack.variables_file}", *arguments(*more),
    ]  # fmt: skip
    return subprocess.Popen(
        command, cwd=stack.repository, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def state(stack: Stack) -> dict[str, Any]:
    """The recorded state; {} while there is none, or the API server is away."""
    shown = stack.kubectl("get", "configmap", RECORD, "-n", "default", "-o", "json", check=False)
    try:
        found = json.loads(json.loads(shown)["data"]["state.json"])
    except (ValueError, KeyError):
        return {}
    assert isinstance(found, dict)
    return found


def reached(stack: Stack, phase: str, share: int | None = None, timeout: float = 400) -> dict[str, Any]:
    """Wait until the replacement is there; a finished one that never was there fails the test."""

    def there() -> bool:
        now = state(stack)
        assert now.get("phase") not in ("Completed", "RolledBack", "Refused") or now["phase"] == phase, now["log"][-3:]
        return now.get("phase") == phase and share in (None, now["share"])

    stack.wait_for(f"{phase} at {share}", there, timeout)
    return state(stack)


def ended(stack: Stack, timeout: float = 600) -> dict[str, Any]:
    """Wait until the replacement has ended."""
    ends = ("Completed", "RolledBack", "Refused")
    stack.wait_for("the replacement ends", lambda: state(stack).get("phase") in ends, timeout)
    return state(stack)


def specs(stack: Stack) -> dict[str, Any]:
    return {
        route["metadata"]["name"]: route["spec"]
        for route in stack.objects("httproutes", "-n", "default")
        if "headrace.dev/replacement" not in route["metadata"].get("labels", {})
    }


def renamed(found: dict[str, Any]) -> dict[str, Any]:
    found = copy.deepcopy(found)
    for spec in found.values():
        for rule in spec["rules"]:
            for ref in rule.get("backendRefs", ()):
                ref["name"] = "green" if ref["name"] == "blue" else ref["name"]
    return found


@contextmanager
def traffic(stack: Stack, rate: float = RATE) -> Iterator[Load]:
    """The load of the tests, for the length of the block."""
    load = Load(stack.gateway, MODEL, rate=rate, paths=("/v1/completions", "/shared/v1/completions"))
    with load:
        yield load
    print(load.summary())
