"""The cluster that the scenarios share is as the role says, and a run on it changes nothing."""

from __future__ import annotations

from support import assert_converged, get, kubectl, variables


def test_the_nodes_are_ready():
    nodes = get("nodes")
    assert len(nodes) == int(variables()["local_cluster_workers"])
    for node in nodes:
        assert {"type": "Ready", "status": "True"}.items() <= next(
            condition for condition in node["status"]["conditions"] if condition["type"] == "Ready"
        ).items()


def test_names_resolve_in_the_cluster():
    deployment = get("deployment", "coredns", "-n", "kube-system")
    assert deployment["status"]["availableReplicas"] == deployment["spec"]["replicas"]


def test_rbac_is_on():
    assert (
        kubectl("auth", "can-i", "list", "secrets", "--as=system:serviceaccount:default:default", check=False).strip()
        == "no"
    )


def test_check_mode_on_what_is_there_reports_no_change():
    assert_converged("local_cluster")
