"""Every replica has the adapters, one that restarts gets them again, and what one refuses no other keeps."""

from __future__ import annotations

import json
import time

from support import assert_converged, get, kubectl, play

NAMESPACE = "molecule-adapters"


def pods(group: str = "servers"):
    found = get("pods", "-n", NAMESPACE, "-l", f"app={group}")
    return [pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"]]


def models(pod: str):
    answer = kubectl("get", "--raw", f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}:8000/proxy/v1/models", check=False)
    return {model["id"] for model in json.loads(answer)["data"]} if answer.startswith("{") else set()


def test_every_replica_has_the_adapters():
    assert len(pods()) == 2
    for pod in pods():
        assert models(pod) == {"molecule/model", "static", "sql"}


def test_the_list_is_kept_for_the_sidecars():
    kept = json.loads(get("configmap", "servers-adapters", "-n", NAMESPACE)["data"]["adapters.json"])
    assert kept == {"present": [{"name": "sql", "source": "/adapters/sql"}], "absent": ["gone"]}


def test_check_mode_on_what_is_there_reports_no_change():
    assert_converged("lora_adapters")


def test_a_replica_that_restarts_gets_its_adapters_again():
    kubectl("delete", "pod", pods()[0], "-n", NAMESPACE, "--wait=false")
    deadline = time.monotonic() + 120
    while True:
        found = [models(pod) for pod in pods()]
        if len(found) == 2 and all("sql" in names for names in found):
            return
        assert time.monotonic() < deadline, found
        time.sleep(2)


def test_where_one_refuses_all_is_undone():
    wanted = [
        {"name": "servers", "adapters": [{"name": "sql", "source": "/adapters/sql"}]},
        {"name": "strict", "adapters": [{"name": "one", "source": "/nowhere"}]},
    ]
    run = play("lora_adapters", {"molecule_pools": wanted})
    assert run.returncode != 0
    said = " ".join(run.output.split())
    assert "does not load adapter one: status 404" in said
    assert "changes of this run were undone" in said
    assert models(pods("strict")[0]) == {"molecule/model"}


def test_adapters_are_unloaded():
    run = play(
        "lora_adapters", {"molecule_pools": [{"name": "servers", "adapters": [{"name": "sql", "state": "absent"}]}]}
    )
    assert run.returncode == 0, run.output[-6000:]
    # The sidecar loads it again where it looks at its list before the kubelet has brought the new one, and then not.
    deadline = time.monotonic() + 120
    while any("sql" in models(pod) for pod in pods()):
        assert time.monotonic() < deadline
        time.sleep(2)
