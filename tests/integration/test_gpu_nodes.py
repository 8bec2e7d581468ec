"""Role gpu_node_pool with provider existing, against a real API server: whose labels come, stay and go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .apiserver import ApiServer
from .roles import Run, run_role

NODES = ("leaver", "stayer", "foreign")


@pytest.fixture
def cluster(api: ApiServer) -> Iterator[ApiServer]:
    """With three nodes. One carries the label of a pool that another manager gave it."""
    for name in NODES:
        own = {"headrace.dev/gpu-node-pool": "gpus"} if name == "foreign" else {}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kept": "yes", **own}}}
        api.apply(node)
    yield api
    for name in NODES:
        assert api.kubectl("delete", "node", name, "--wait=false").returncode == 0


def labels(cluster: ApiServer, name: str) -> dict[str, str]:
    found: dict[str, str] = cluster.get("node", name)["metadata"]["labels"]
    return found


def run(cluster: ApiServer, folder: Path, nodes: list[str], *arguments: str) -> Run:
    pool: dict[str, Any] = {"name": "gpus", "accelerator": "nvidia-l4", "labels": {"team": "llm"}, "nodes": nodes}
    given = {"gpu_node_pool_pools": [pool], "gpu_node_pool_require_gpus": False}
    return run_role(cluster, folder, "gpu_node_pool", given, *arguments)


def test_the_labels_of_a_pool_leave_a_node_that_leaves_it(cluster: ApiServer, tmp_path: Path) -> None:
    made = run(cluster, tmp_path, ["leaver", "stayer"])
    assert made.returncode == 0, made.output[-4000:]
    own = {"headrace.dev/gpu-node-pool": "gpus", "headrace.dev/accelerator": "nvidia-l4", "team": "llm"}
    assert labels(cluster, "leaver").items() >= own.items()
    again = run(cluster, tmp_path, ["leaver", "stayer"])
    assert (again.returncode, again.changed) == (0, 0), again.output[-4000:]

    planned = run(cluster, tmp_path, ["stayer"], "--check")
    assert (planned.returncode, planned.changed) == (0, 1), planned.output[-4000:]
    assert labels(cluster, "leaver").items() >= own.items()
    left = run(cluster, tmp_path, ["stayer"])
    assert (left.returncode, left.changed) == (0, 1), left.output[-4000:]
    assert labels(cluster, "leaver") == {"kept": "yes"}
    assert labels(cluster, "stayer") == {"kept": "yes", **own}
    # Somebody else's label is somebody else's to take.
    assert labels(cluster, "foreign") == {"kept": "yes", "headrace.dev/gpu-node-pool": "gpus"}
    again = run(cluster, tmp_path, ["stayer"])
    assert (again.returncode, again.changed) == (0, 0), again.output[-4000:]
