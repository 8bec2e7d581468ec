"""Playbooks node_pools and model_servers against a real API server: what they ask before, and say in the end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..objects import differences
from .apiserver import ApiServer, running
from .roles import stack
from .test_verbs import found, run

POOL: dict[str, Any] = {"name": "gpu", "node_selector": {"gpu": "yes"}}
SCALED = {"autoscaling": {"by": "hpa", "min": 2, "max": 4}}


@pytest.fixture(scope="module")
def cluster(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server of its own, with two nodes."""
    with running(repository / "build/bin", tmp_path_factory.mktemp("playbooks")) as server:
        for name in ("n1", "n2"):
            server.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"gpu": "yes"}}})
        yield server


@pytest.fixture(scope="module")
def variables(cluster: ApiServer) -> dict[str, Any]:
    return {
        **stack(cluster),
        "gpu_node_pool_provider": "existing",
        "gpu_node_pool_require_gpus": False,
        "vllm_model_server_wait": False,
    }


def servers(**keys: Any) -> dict[str, Any]:
    return {"vllm_model_server_groups": [{"name": "servers", "model": "m", **keys}]}


def test_node_pools_says_which_nodes_are_in_them(cluster: ApiServer, variables: dict[str, Any]) -> None:
    made = run("node_pools", variables, gpu_node_pools=[POOL])
    assert made.returncode == 0, made.output[-6000:]
    for name in ("n1", "n2"):
        assert f"gpu: {name}, no GPUs, not ready" in made.said
        assert cluster.get("node", name)["metadata"]["labels"]["headrace.dev/gpu-node-pool"] == "gpu"
    assert "GPU node pools: gpu" in made.said


@pytest.mark.parametrize("tags", [(), ("--tags", "gpu_node_pool")], ids=["whole", "by tag"])
def test_node_pools_deletes_nothing_that_nobody_confirmed(
    cluster: ApiServer, variables: dict[str, Any], tags: tuple[str, ...]
) -> None:
    """As well where somebody runs only what has the role's tag."""
    before = found(cluster)
    # Of a cloud: provider existing removes no nodes. The cloud is not asked before somebody says yes.
    cloud = {
        "gpu_node_pool_provider": "gke",
        "gpu_node_pool_cluster": "c",
        "gpu_node_pool_gke": {"project": "p", "location": "l"},
    }
    absent = {**cloud, "gpu_node_pools": [{**POOL, "node_selector": {}, "state": "absent"}]}
    asked = run("node_pools", variables, *tags, **absent)
    assert asked.returncode != 0
    assert "Node pools gpu are deleted, with their nodes and all Pods on them. Nothing was changed." in asked.said
    assert differences(before, found(cluster)) == []


def test_model_servers_removes_nothing_that_nobody_confirmed(cluster: ApiServer, variables: dict[str, Any]) -> None:
    """New servers are no question; what the inventory no longer wants beside them is."""
    made = run("model_servers", variables, **servers(**SCALED))
    assert made.returncode == 0, made.output[-6000:]
    assert "default/servers: 0 of 1 ready, " in made.said
    assert "Model servers: servers (scaled)" in made.said

    before = found(cluster)
    fewer = servers(replicas=1)
    for tags in ((), ("--tags", "vllm_model_server")):
        asked = run("model_servers", variables, *tags, **fewer)
        assert asked.returncode != 0
        assert "removed: HorizontalPodAutoscaler default/servers" in asked.said
        assert "PodDisruptionBudget default/servers" in asked.said
        assert "Nothing was changed" in asked.said
        assert differences(before, found(cluster)) == []
    planned = run("model_servers", variables, "--check", **fewer)
    assert planned.returncode == 0, planned.output[-6000:]
    assert differences(before, found(cluster)) == []

    removed = run("model_servers", variables, headrace_confirm=True, **fewer)
    assert removed.returncode == 0, removed.output[-6000:]
    assert cluster.get("hpa", "-A")["items"] == []
    assert cluster.get("poddisruptionbudgets", "-A")["items"] == []
    assert cluster.get("deployment", "servers")["spec"]["replicas"] == 1


def test_smoke_says_that_nobody_answers(cluster: ApiServer, variables: dict[str, Any], tmp_path: Path) -> None:
    """And does not blame what it would have waited for."""
    (tmp_path / "kubeconfig").write_text(re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:1", cluster.kubeconfig.read_text()))
    for missing in ({"headrace_kubeconfig": str(tmp_path / "kubeconfig")}, {"headrace_context": "of-nobody"}):
        refused = run("smoke", variables, **servers(), **missing)
        assert refused.returncode != 0
        assert "the cluster does not answer" in refused.said
        assert "Fix: name a kubeconfig and a context" in refused.said
        assert "servers" not in refused.said
