"""Teardown after everything that a user may have done: the cluster is as it was found, object by object."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ..e2e.stack import Stack
from ..objects import differences, everything

DOWN = "playbooks/local_cluster_down.yml"
TEARDOWN = "playbooks/teardown.yml"
YES = {"headrace_confirm": True}
# Controllers that remove what belonged to something (Pods, addresses of Services) have done so by then.
REST_SECONDS = 180


@pytest.fixture
def bare(stack: Stack) -> Iterator[Stack]:
    """A cluster without the stack, of its own."""
    stack.playbook(DOWN)
    try:
        stack.site("--tags", "local_cluster,container_images")
        stack.kubectl("wait", "pod", "-A", "--all", "--for=condition=Ready", "--timeout=180s")
        yield stack
    finally:
        stack.playbook(DOWN)


def await_differences(stack: Stack, before: dict[str, Any], expected: list[str]) -> None:
    """Wait until the differences are these; what belongs to kept CRDs is left out where they are kept."""
    deadline = time.monotonic() + REST_SECONDS
    while True:
        found = differences(before, everything(stack.kubectl))
        if found == expected:
            return
        assert time.monotonic() < deadline, "\n".join(found)
        time.sleep(2)


def test_the_cluster_is_as_it_was_found(bare: Stack) -> None:
    somebody = {"metadata": {"name": "somebody", "labels": {"theirs": "yes"}}, "apiVersion": "v1", "kind": "Namespace"}
    bare.kubectl("apply", "-f", "-", stdin=json.dumps(somebody))
    before = everything(bare.kubectl)
    bare.site("-e", json.dumps({"headrace_monitoring": True}))
    bare.playbook("playbooks/smoke.yml")
    with_crds = {"headrace_teardown_crds": True, "headrace_teardown_volumes": True}

    kept = bare.playbook(TEARDOWN, "-e", json.dumps(YES))
    assert "Kept: " in kept.output
    left = everything(bare.kubectl)
    crds = {name for name in left if name.startswith("CustomResourceDefinition.")} - set(before)
    assert crds, "CRDs stay, unless somebody says so"

    # What was kept is found, and brought back into use.
    again = bare.site()
    assert again.failed == 0
    bare.playbook("playbooks/smoke.yml")
    bare.playbook(TEARDOWN, "-e", json.dumps({**YES, **with_crds}))
    await_differences(bare, before, [])
    nothing = bare.playbook(TEARDOWN, "-e", json.dumps({**YES, **with_crds}))
    assert nothing.changed == 0
    assert "Nothing that Headrace made" in nothing.output
