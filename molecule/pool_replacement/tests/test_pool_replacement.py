"""A Job in the cluster replaces one pool by another, and gives everything back when asked."""

from __future__ import annotations

from pathlib import Path

from support import assert_converged, assert_refused, get, play, variables

NAMESPACE = "molecule-replacement"


def backends():
    route = get("httproute", "mixed", "-n", NAMESPACE, "--show-managed-fields")
    managers = [
        entry["manager"]
        for entry in route["metadata"]["managedFields"]
        if "f:rules" in entry["fieldsV1"].get("f:spec", {})
    ]
    return {ref["name"]: ref["weight"] for ref in route["spec"]["rules"][0]["backendRefs"]}, managers


def test_the_new_pool_is_in_the_old_ones_place():
    assert backends() == ({"after": 3, "a-service": 1}, ["somebody"])


def test_the_record_and_the_report_say_so():
    record = get("configmap", "headrace-replace-before", "-n", NAMESPACE)
    assert record["data"]["phase"] == "Completed"
    folder = Path(variables()["local_cluster_cache_dir"]).expanduser() / "molecule-replacement"
    assert {"headrace-replace-before.html", "headrace-replace-before.json"} <= {path.name for path in folder.iterdir()}


def test_the_jobs_rights_have_ended_with_it():
    for kind in ("rolebindings", "clusterrolebindings", "roles", "clusterroles", "serviceaccounts"):
        assert get(kind, "-A", "-l", "app.kubernetes.io/name=headrace-replace-before") == [], kind
    (job,) = [one for one in get("jobs", "-n", NAMESPACE) if one["metadata"]["name"] == "headrace-replace-before"]
    pod = job["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"]


def test_check_mode_on_what_is_there_reports_no_change():
    assert_converged("pool_replacement")


def test_a_pool_that_is_not_there_is_refused():
    assert_refused("pool_replacement", {"molecule_new": "nobody"}, "there is no new pool", "make it first")


def test_it_can_be_taken_back():
    back = play("pool_replacement", {"molecule_action": "rollback"})
    assert back.returncode == 0, back.output[-6000:]
    assert backends() == ({"before": 3, "a-service": 1}, ["somebody"])
    assert get("configmap", "headrace-replace-before", "-n", NAMESPACE)["data"]["phase"] == "RolledBack"
