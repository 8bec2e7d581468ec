"""Nodes carry labels and taints, their simulated GPUs are real to the scheduler, and wrong input is refused."""

from __future__ import annotations

import json
import time

from support import assert_converged, assert_refused, get, kubectl


def test_nodes_are_labelled_and_tainted():
    for node in get("nodes"):
        labels = node["metadata"]["labels"]
        assert labels["headrace.dev/gpu-node-pool"] == "simulated"
        assert labels["headrace.dev/accelerator"] == "simulated-gpu"
        assert labels["headrace.dev/gpu-simulated"] == "true"
        assert labels["molecule.headrace.dev/label"] == "yes"
        assert {"key": "molecule.headrace.dev/taint", "value": "yes", "effect": "PreferNoSchedule"} in node["spec"][
            "taints"
        ]


def test_gpus_are_allocatable():
    assert all(int(node["status"]["allocatable"]["nvidia.com/gpu"]) == 8 for node in get("nodes"))


def test_a_pod_that_asks_for_one_too_many_stays_pending():
    pod = {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "molecule-greedy", "namespace": "default"},
        "spec": {"containers": [{"name": "a", "image": "none", "resources": {"limits": {"nvidia.com/gpu": 9}}}]},
    }  # fmt: skip
    kubectl("create", "-f", "-", stdin=json.dumps(pod))
    try:
        deadline = time.monotonic() + 120
        conditions: list[dict[str, str]] = []
        while not conditions and time.monotonic() < deadline:
            conditions = get("pod", "molecule-greedy", "-n", "default")["status"].get("conditions", [])
            time.sleep(0.5)
        scheduled = next(condition for condition in conditions if condition["type"] == "PodScheduled")
        assert scheduled["status"] == "False"
        assert "Insufficient nvidia.com/gpu" in scheduled["message"]
    finally:
        kubectl("delete", "pod", "molecule-greedy", "-n", "default", "--grace-period=0", "--force")


def test_check_mode_on_what_is_there_reports_no_change():
    assert_converged("gpu_node_pool")


def test_a_pool_that_is_larger_than_the_cluster_is_refused():
    assert_refused("gpu_node_pool", {"molecule_count": 99}, "pool simulated has", "and asks for 99", "lower count")
