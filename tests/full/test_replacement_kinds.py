"""Every kind of replacement, under traffic on a real cluster: another base model, engine, accelerator, API version;
and a picker that is upgraded in place.

Another set of adapters is what `test_replacement` has throughout. The environment's variables are as there."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ..e2e.stack import Stack
from .replacing import (
    MODEL,
    PLAYBOOK,
    RATE,
    VARIABLES,
    arguments,
    ended,
    forget,
    forget_record,
    renamed,
    specs,
    start,
    state,
    traffic,
)

OTHER_MODEL = "Qwen/Qwen3-8B"
GA, ALPHA = "inference.networking.k8s.io", "inference.networking.x-k8s.io"
ENGINE = "inference.networking.k8s.io/engine-type"
SETTINGS = {"interval": 20, "gate_timeout": 120, "min_sample": 20, "drain_timeout": 60}
Variables = dict[str, Any]


def extra(variables: Variables) -> tuple[str, ...]:
    return (*VARIABLES, "-e", json.dumps(variables))


def without_green(stack: Stack) -> None:
    """A Deployment's selector cannot change: the new pool's servers are made anew, by the playbook."""
    stack.kubectl("delete", "deployment", "green", "-n", "default", "--ignore-not-found", "--wait")
    stack.kubectl("wait", "--for=delete", "pod", "-l", "app=green", "-n", "default", "--timeout=120s")


def replaced(stack: Stack, variables: Variables, expected: Callable[[Any], Any] = renamed) -> dict[str, Any]:
    """Replace under load what `variables` say, and hold that nobody noticed. Returns the recorded state.

    `expected` makes what the routes' specs are to be of what they were."""
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
    assert specs(stack) == expected(before)
    return found


def test_another_base_model_under_the_name_that_clients_know(two_pools: Stack) -> None:
    variables: Variables = {
        "replace_test_new_servers": {"model": OTHER_MODEL, "adapters": []},
        "replace_test_new_pool": {"model_rewrites": {MODEL: OTHER_MODEL}},
    }
    forget(two_pools)
    found = replaced(two_pools, variables)
    assert "models that only the old pool serves" in found["facts"]
    served = two_pools.request("/v1/models").json()["data"]
    assert [model["id"] for model in served] == [OTHER_MODEL], "the new pool's servers do not know the old name"
    answer = two_pools.request("/v1/completions", {"model": MODEL, "prompt": "once", "max_tokens": 3})
    assert answer.status == 200
    assert answer.pod.startswith("green-")
    assert two_pools.site(*extra({**variables, "replace_test_pool": "green"})).changed == 0
    # Without the rewrite the old name is gone.
    forget(two_pools)
    assert two_pools.objects("inferencemodelrewrites", "-n", "default") == []


def test_another_engine(two_pools: Stack) -> None:
    forget(two_pools)
    without_green(two_pools)
    servers = {
        "labels": {"app": "green", ENGINE: "sglang"},
        "extra_args": ["--step-milliseconds", "250", "--simulate", "sglang"],
    }
    try:
        found = replaced(two_pools, {"replace_test_new_servers": servers})
        # Each engine's own histograms, compared with each other.
        checks = [check for check in found["history"][1]["checks"] if check["name"].startswith(("TTFT", "time per"))]
        assert len(checks) == 2
        assert all(check["old"] and check["new"] for check in checks), checks
        page = two_pools.kubectl(
            "get", "--raw",
            f"/api/v1/namespaces/default/pods/{two_pools.pods('app=green')[0]['metadata']['name']}:8000/proxy/metrics",
        )  # fmt: skip
        assert "sglang:num_queue_reqs" in page
        assert "vllm:" not in page
    finally:
        without_green(two_pools)


def test_another_accelerator_on_a_node_pool_of_its_own(two_pools: Stack) -> None:
    nodes = sorted(node["metadata"]["name"] for node in two_pools.objects("nodes"))
    assert len(nodes) > 1
    new = {"name": "faster", "accelerator": "simulated-faster-gpu", "count": 1, "nodes": nodes[-1:]}
    variables: Variables = {
        "replace_node_pools": [new],
        "replace_test_new_servers": {"node_selector": {"headrace.dev/accelerator": "simulated-faster-gpu"}},
    }
    forget(two_pools)
    try:
        replaced(two_pools, variables)
        assert {pod["spec"]["nodeName"] for pod in two_pools.pods("app=green")} == {nodes[-1]}
        labels = {node["metadata"]["name"]: node["metadata"]["labels"] for node in two_pools.objects("nodes")}
        pools = {name: labels[name].get("headrace.dev/gpu-node-pool") for name in nodes}
        assert pools == {**dict.fromkeys(nodes, "simulated"), nodes[-1]: "faster"}
    finally:
        forget_record(two_pools)
        two_pools.site(*VARIABLES, "--tags", "gpu_node_pool")


def is_part(some: Any, whole: Any) -> bool:
    """Whether every field of the one is so in the other, which has the API's defaults beside."""
    if isinstance(some, dict):
        return isinstance(whole, dict) and all(is_part(value, whole.get(key)) for key, value in some.items())
    if isinstance(some, list):
        return isinstance(whole, list) and len(some) == len(whole) and all(map(is_part, some, whole))
    return bool(some == whole)


def test_the_same_pool_in_the_other_api_version(two_pools: Stack, tmp_path: Path) -> None:
    variables: Variables = {
        "replace_test_old_pool": {"api_version": "v1alpha2"},
        "replace_test_new_pool": {"name": "blue", "selector": {"app": "blue"}, "picker": "blue-v1-epp"},
        "replacement": "blue",
    }
    alpha = {**variables, "replace_test_pool_version": "v1alpha2"}
    forget(two_pools, extra(alpha))
    assert ALPHA in str(specs(two_pools))
    replaced(two_pools, alpha, lambda before: json.loads(json.dumps(before).replace(ALPHA, GA)))
    assert two_pools.site(*extra(variables)).changed == 0
    # And what `headrace pool migrate` makes of the old one is what the inventory made.
    manifest = tmp_path / "blue.json"
    manifest.write_text(two_pools.kubectl("get", f"inferencepools.{ALPHA}", "blue", "-n", "default", "-o", "json"))
    command = [str(two_pools.repository / ".venv/bin/headrace"), "pool", "migrate", str(manifest)]
    migrated = yaml.safe_load(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    (there,) = two_pools.objects(f"inferencepools.{GA}", "-n", "default", "--field-selector=metadata.name=blue")
    migrated["spec"]["endpointPickerRef"]["name"] = "blue-v1-epp"
    assert migrated["apiVersion"] == there["apiVersion"]
    assert is_part(migrated["spec"], there["spec"]), (migrated["spec"], there["spec"])
    two_pools.kubectl("delete", f"inferencepools.{ALPHA}", "blue", "-n", "default")


def test_a_picker_is_upgraded_in_place(two_pools: Stack) -> None:
    forget(two_pools)
    before = {pod["metadata"]["name"] for pod in two_pools.pods("app.kubernetes.io/name=blue-epp")}
    newer = {"inference_pool_resources": {"requests": {"cpu": "90m", "memory": "96Mi"}, "limits": {"memory": "768Mi"}}}
    with traffic(two_pools) as load:
        time.sleep(5)
        two_pools.site(*extra(newer), "--tags", "inference_pool")
        two_pools.wait_for(
            "the picker is another Pod",
            lambda: not before & {pod["metadata"]["name"] for pod in two_pools.pods("app.kubernetes.io/name=blue-epp")},
        )
        time.sleep(10)
    assert not load.faults, load.faults[:5]


def test_somebody_approves_and_the_old_pool_is_removed(two_pools: Stack) -> None:
    """The default steps, an approval after the first, and nothing left of the old pool: with requests all the while."""
    forget(two_pools)
    before = specs(two_pools)
    options = {
        "pool_replacement_steps": [1, 5, 25, 50, 100],
        "pool_replacement_manual_steps": [1],
        "pool_replacement_old": "remove",
        "pool_replacement_settings": SETTINGS,
    }
    with traffic(two_pools) as load:
        playbook = start(two_pools, "-e", json.dumps(options))
        two_pools.wait_for("somebody is asked", lambda: state(two_pools).get("phase") == "AwaitingApproval", 400)
        time.sleep(10)
        assert (state(two_pools)["phase"], state(two_pools)["share"]) == ("AwaitingApproval", 1), "it goes on alone"
        # From another machine: of the plan it knows the pool's name.
        two_pools.playbook(PLAYBOOK, *VARIABLES, "-e", "pool=blue", "-e", "action=approve")
        found = ended(two_pools, 900)
        output = playbook.communicate(timeout=120)[0]
        assert playbook.returncode == 0, output[-4000:]
        time.sleep(15)
    assert not load.faults, load.faults[:5]
    assert found["phase"] == "Completed", found["reason"]
    assert [gate["percent"] for gate in found["history"]] == [1, 5, 25, 50, 100]
    assert specs(two_pools) == renamed(before)
    kinds = "inferencepools,deployments,services,serviceaccounts,configmaps,secrets,roles,rolebindings"
    left = [
        f"{one['kind']}/{one['metadata']['name']}"
        for one in two_pools.objects(f"{kinds},networkpolicies,poddisruptionbudgets,pods", "-n", "default")
        # The other picker is of the migration's test.
        if one["metadata"]["name"].startswith("blue") and not one["metadata"]["name"].startswith("blue-v1-epp")
    ]
    assert left == []
