"""Every kind of replacement, under traffic on a real cluster: another base model, engine, accelerator, API version;
and a picker that is upgraded in place.

Another set of adapters is what `test_replacement` has throughout. The environment's variables are as there."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ..e2e.stack import Stack
from .replacing import (
    MODEL,
    PLAYBOOK,
    RATE,
    VARIABLES,
    arguments,
    forget,
    forget_record,
    renamed,
    specs,
    state,
    traffic,
)

OTHER_MODEL = "Qwen/Qwen3-8B"
ENGINE = "inference.networking.k8s.io/engine-type"
SETTINGS = {"interval": 20, "gate_timeout": 120, "min_sample": 20, "drain_timeout": 60}
Variables = dict[str, Any]


@pytest.fixture(scope="module")
def cluster(stack: Stack) -> Iterator[Stack]:
    """The stack with two pools. One that was kept is taken as it is."""
    if "HEADRACE_KEEP_CLUSTER" not in os.environ or not stack.kubeconfig.exists():
        stack.site(*VARIABLES)
    yield stack
    if "HEADRACE_KEEP_CLUSTER" not in os.environ:
        stack.playbook("playbooks/local_cluster_down.yml")


def extra(variables: Variables) -> tuple[str, ...]:
    return (*VARIABLES, "-e", json.dumps(variables))


def without_green(stack: Stack) -> None:
    """A Deployment's selector cannot change: the new pool's servers are made anew, by the playbook."""
    stack.kubectl("delete", "deployment", "green", "-n", "default", "--ignore-not-found", "--wait")
    stack.kubectl("wait", "--for=delete", "pod", "-l", "app=green", "-n", "default", "--timeout=120s")


def replaced(stack: Stack, variables: Variables) -> dict[str, Any]:
    """Replace under load what `variables` say, and hold that nobody noticed. Returns the recorded state."""
    before = specs(stack)
    told = json.dumps({**variables, "pool_replacement_settings": SETTINGS})
    with traffic(stack) as load:
        time.sleep(5)
        done = stack.playbook(PLAYBOOK, *arguments("-e", told), timeout=1200)
        time.sleep(5)
    assert not load.faults, load.faults[:5]
    assert len(load.outcomes) > 60 * min(RATE, 10)
    found = state(stack)
    assert found["phase"] == "Completed", found["reason"]
    assert "100 % at the new pool: pass" in done.output
    assert specs(stack) == renamed(before)
    return found


def test_another_base_model_under_the_name_that_clients_know(cluster: Stack) -> None:
    variables: Variables = {
        "replace_test_new_servers": {"model": OTHER_MODEL, "adapters": []},
        "replace_test_new_pool": {"model_rewrites": {MODEL: OTHER_MODEL}},
    }
    forget(cluster)
    found = replaced(cluster, variables)
    assert "models that only the old pool serves" in found["facts"]
    served = cluster.request("/v1/models").json()["data"]
    assert [model["id"] for model in served] == [OTHER_MODEL], "the new pool's servers do not know the old name"
    answer = cluster.request("/v1/completions", {"model": MODEL, "prompt": "once", "max_tokens": 3})
    assert answer.status == 200
    assert answer.pod.startswith("green-")
    assert cluster.site(*extra({**variables, "replace_test_pool": "green"})).changed == 0
    # Without the rewrite the old name is gone.
    forget(cluster)
    assert cluster.objects("inferencemodelrewrites", "-n", "default") == []


def test_another_engine(cluster: Stack) -> None:
    forget(cluster)
    without_green(cluster)
    servers = {
        "labels": {"app": "green", ENGINE: "sglang"},
        "extra_args": ["--step-milliseconds", "250", "--simulate", "sglang"],
    }
    try:
        found = replaced(cluster, {"replace_test_new_servers": servers})
        # Each engine's own histograms, compared with each other.
        checks = [check for check in found["history"][1]["checks"] if check["name"].startswith(("TTFT", "time per"))]
        assert len(checks) == 2
        assert all(check["old"] and check["new"] for check in checks), checks
        page = cluster.kubectl(
            "get", "--raw",
            f"/api/v1/namespaces/default/pods/{cluster.pods('app=green')[0]['metadata']['name']}:8000/proxy/metrics",
        )  # fmt: skip
        assert "sglang:num_queue_reqs" in page
        assert "vllm:" not in page
    finally:
        without_green(cluster)


def test_another_accelerator_on_a_node_pool_of_its_own(cluster: Stack) -> None:
    nodes = sorted(node["metadata"]["name"] for node in cluster.objects("nodes"))
    assert len(nodes) > 1
    new = {"name": "faster", "accelerator": "simulated-faster-gpu", "count": 1, "nodes": nodes[-1:]}
    variables: Variables = {
        "replace_node_pools": [new],
        "replace_test_new_servers": {"node_selector": {"headrace.dev/accelerator": "simulated-faster-gpu"}},
    }
    forget(cluster)
    try:
        replaced(cluster, variables)
        assert {pod["spec"]["nodeName"] for pod in cluster.pods("app=green")} == {nodes[-1]}
        labels = {node["metadata"]["name"]: node["metadata"]["labels"] for node in cluster.objects("nodes")}
        pools = {name: labels[name].get("headrace.dev/gpu-node-pool") for name in nodes}
        assert pools == {**dict.fromkeys(nodes, "simulated"), nodes[-1]: "faster"}
    finally:
        forget_record(cluster)
        cluster.site(*VARIABLES, "--tags", "gpu_node_pool")


def test_the_same_pool_in_the_other_api_version(cluster: Stack) -> None:
    variables: Variables = {
        "replace_test_old_pool": {"api_version": "v1alpha2"},
        "replace_test_new_pool": {"name": "blue", "selector": {"app": "blue"}, "picker": "blue-v1-epp"},
        "replacement": "blue",
    }
    alpha = {**variables, "replace_test_pool_version": "v1alpha2"}
    forget(cluster, extra(alpha))
    before = specs(cluster)
    assert "inference.networking.x-k8s.io" in str(before)
    with traffic(cluster) as load:
        time.sleep(5)
        cluster.playbook(
            PLAYBOOK, *arguments("-e", json.dumps({**alpha, "pool_replacement_settings": SETTINGS})), timeout=1200
        )
        time.sleep(5)
    assert not load.faults, load.faults[:5]
    assert state(cluster)["phase"] == "Completed"
    expected = json.loads(json.dumps(before).replace("inference.networking.x-k8s.io", "inference.networking.k8s.io"))
    assert specs(cluster) == expected
    assert cluster.site(*extra(variables)).changed == 0
    cluster.kubectl("delete", "inferencepools.inference.networking.x-k8s.io", "blue", "-n", "default")


def test_a_picker_is_upgraded_in_place(cluster: Stack) -> None:
    forget(cluster)
    before = {pod["metadata"]["name"] for pod in cluster.pods("app.kubernetes.io/name=blue-epp")}
    newer = {"inference_pool_resources": {"requests": {"cpu": "90m", "memory": "96Mi"}, "limits": {"memory": "768Mi"}}}
    with traffic(cluster) as load:
        time.sleep(5)
        cluster.site(*extra(newer), "--tags", "inference_pool")
        cluster.wait_for(
            "the picker is another Pod",
            lambda: not before & {pod["metadata"]["name"] for pod in cluster.pods("app.kubernetes.io/name=blue-epp")},
        )
        time.sleep(10)
    assert not load.faults, load.faults[:5]
