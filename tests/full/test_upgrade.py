"""playbooks/upgrade.yml under requests: everything in their way is rolled, and none is lost."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from ..e2e.stack import Stack
from .load import Load

DOWN = "playbooks/local_cluster_down.yml"
UPGRADE = "playbooks/upgrade.yml"
MODEL = "meta-llama/Meta-Llama-3-8B-Instruct"
# A few a second: enough to see a gap of a second, and little work for the machine that does all of it.
RATE = 4.0


def less_cpu(memory: str) -> dict[str, Any]:
    """Other resources than the inventory's: a change that restarts whatever it is about."""
    return {"requests": {"cpu": "40m", "memory": "96Mi"}, "limits": {"memory": memory}}


# The same versions, and other values for all that an upgrade may touch: Envoy Gateway's chart, the gateway controller,
# the Envoys, the pickers.
CHANGED: dict[str, Any] = {
    "headrace_confirm": True,
    "envoy_gateway_values": {"deployment": {"pod": {"labels": {"upgraded": "yes"}}}},
    "envoy_gateway_controller_resources": less_cpu("512Mi"),
    "envoy_gateway_proxy_resources": less_cpu("1Gi"),
    "inference_pool_resources": less_cpu("512Mi"),
}


@pytest.fixture
def up(stack: Stack) -> Iterator[Stack]:
    """The whole stack, new."""
    stack.playbook(DOWN)
    try:
        stack.site()
        yield stack
    finally:
        stack.playbook(DOWN)


def pods(stack: Stack) -> set[str]:
    """The Pods in requests' way, and those that configure them."""
    found = stack.objects("pods", "-A", "-l", "app.kubernetes.io/component!=model-server")
    return {pod["metadata"]["name"] for pod in found if pod["metadata"]["namespace"] != "kube-system"}


def test_an_upgrade_loses_no_request(up: Stack) -> None:
    before = pods(up)
    with Load(up.gateway, MODEL, rate=RATE) as load:
        upgraded = up.playbook(UPGRADE, "-e", json.dumps(CHANGED))
    print(load.summary())
    assert upgraded.changed > 0
    assert load.outcomes
    assert not load.faults, load.faults[:5]
    # A Pod that drains stays for a while. Those that stay for good are named.
    with contextlib.suppress(AssertionError):
        up.wait_for("every Pod is another one", lambda: not before & pods(up), 180)
    assert not before & pods(up)
    again = up.playbook(UPGRADE, "-e", json.dumps(CHANGED))
    assert again.changed == 0, again.output[-6000:]


def test_what_an_upgrade_would_do_is_told(up: Stack) -> None:
    newer = {**CHANGED, "envoy_gateway_proxy_image": "docker.io/envoyproxy/envoy:distroless-v1.39.2"}
    told = up.playbook(UPGRADE, "--check", "--diff", "-e", json.dumps(newer))
    assert told.changed > 0
    asked = up.playbook(UPGRADE, "-e", json.dumps({"headrace_confirm": False}), check=False)
    assert asked.returncode != 0
    assert "Nothing was changed" in " ".join(asked.output.split())
