"""The parts of the gateway die and are replaced under load, in a cluster with two Envoys and two controllers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ..e2e.stack import Stack
from .load import Load

MODEL = "meta-llama/Meta-Llama-3-8B-Instruct"
NAMESPACE = "envoy-gateway-system"
PROXIES = "gateway.envoyproxy.io/owning-gateway-name=inference-gateway"
CONTROLLERS = "app.kubernetes.io/name=headrace-gateway"
TWO_OF_EACH = ("-e", "envoy_gateway_proxy_replicas=2", "-e", "envoy_gateway_controller_replicas=2")
RATE = 20.0


@pytest.fixture(scope="module")
def cluster(stack: Stack) -> Iterator[Stack]:
    """The stack with two of each."""
    stack.site(*TWO_OF_EACH)
    yield stack
    stack.playbook("playbooks/local_cluster_down.yml")


@contextmanager
def undisturbed(stack: Stack) -> Iterator[None]:
    """Whatever happens in the block, every request is answered whole."""
    stack.wait_for("traffic flows", lambda: stack.request("/v1/models").status == 200)
    with Load(stack.gateway, MODEL, rate=RATE, stream_tokens=200) as load:
        time.sleep(5)
        yield
        time.sleep(5)
    print(load.summary())
    assert not load.faults, load.faults[:5]


def restarts(stack: Stack, selector: str) -> int:
    """How often the kubelet started containers of these Pods again."""
    return sum(
        one["restartCount"] for pod in stack.pods(selector, NAMESPACE) for one in pod["status"]["containerStatuses"]
    )


@pytest.mark.parametrize("selector", ["control-plane=envoy-gateway", CONTROLLERS], ids=["envoy-gateway", "controllers"])
def test_a_killed_control_plane_costs_no_request(cluster: Stack, selector: str) -> None:
    before = restarts(cluster, selector)
    with undisturbed(cluster):
        pods = cluster.pods(selector, NAMESPACE)
        numbers = [number for pod in pods for number in cluster.processes(pod)]
        assert len(numbers) >= len(pods) > 0
        for number in numbers:
            os.kill(number, signal.SIGKILL)
        cluster.wait_for("it was started again", lambda: restarts(cluster, selector) >= before + len(pods))
        for pod in pods:
            cluster.kubectl(
                *("wait", "pod", pod["metadata"]["name"], "-n", NAMESPACE, "--for=condition=Ready", "--timeout=120s"),
                timeout=150,
            )


def test_a_rolling_restart_of_the_envoys_costs_no_request(cluster: Stack) -> None:
    (deployment,) = cluster.objects("deployments", "-n", NAMESPACE, "-l", PROXIES)
    name = f"deployment/{deployment['metadata']['name']}"
    before = {pod["metadata"]["name"] for pod in cluster.pods(PROXIES, NAMESPACE)}
    assert len(before) == 2
    with undisturbed(cluster):
        cluster.kubectl("rollout", "restart", "-n", NAMESPACE, name)
        cluster.kubectl("rollout", "status", "-n", NAMESPACE, name, "--timeout=400s", timeout=420)
        cluster.wait_for(
            "the old ones are gone",
            lambda: before.isdisjoint(pod["metadata"]["name"] for pod in cluster.objects("pods", "-n", NAMESPACE)),
            timeout=400,
        )


def test_rolling_restarts_of_controllers_and_envoy_gateway_cost_no_request(cluster: Stack) -> None:
    with undisturbed(cluster):
        for name in ("deployment/headrace-gateway", "deployment/envoy-gateway"):
            cluster.kubectl("rollout", "restart", "-n", NAMESPACE, name)
            cluster.kubectl("rollout", "status", "-n", NAMESPACE, name, "--timeout=200s", timeout=220)


def test_an_envoy_that_starts_without_a_controller_waits_for_none(cluster: Stack) -> None:
    """It takes the routes that lead to no pool, and those of pools once a controller is back."""
    with cluster.scaled_to_zero("headrace-gateway", CONTROLLERS, NAMESPACE):
        victim = cluster.pods(PROXIES, NAMESPACE)[0]
        # It drains for minutes; another one starts at once.
        cluster.kubectl("delete", "pod", victim["metadata"]["name"], "-n", NAMESPACE, "--wait=false")
        cluster.wait_for(
            "the new Envoy is ready",
            lambda: (
                sum(
                    any(
                        one["type"] == "Ready" and one["status"] == "True"
                        for one in pod["status"].get("conditions", [])
                    )
                    for pod in cluster.pods(PROXIES, NAMESPACE)
                )
                == 2
            ),
            timeout=200,
        )
    cluster.wait_for("all of it serves", lambda: all(cluster.request("/v1/models").status == 200 for _ in range(20)))
