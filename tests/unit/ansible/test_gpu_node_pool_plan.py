"""GPU node pools as the clouds' own modules take them: golden files, the modules' argument specs, refusals by key."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from .module_specs import spec

DATA = Path(__file__).resolve().parents[2] / "data/gpu_node_pool"
ROLE = Path(__file__).resolve().parents[3] / "roles/gpu_node_pool"
MODULES = {
    "gke": "google.cloud.gcp_container_node_pool",
    "eks": "community.aws.eks_nodegroup",
    "aks": "azure.azcollection.azure_rm_aksagentpool",
}
# What a collection gives all its modules, and is not in their own sources.
COMMON: dict[str, dict[str, Any]] = {
    "gke": {
        "project": {"type": "str"},
        "auth_kind": {"type": "str", "choices": ["application", "machineaccount", "serviceaccount", "accesstoken"]},
        "service_account_file": {"type": "path"},
    },
    "eks": {"region": {"type": "str"}, "profile": {"type": "str"}, "endpoint_url": {"type": "str"}},
    "aks": {"subscription_id": {"type": "str"}, "state": {"type": "str", "choices": ["present", "absent"]}},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "existing": {},
    "gke": {
        "project": "llms",
        "location": "europe-west4",
        "auth_kind": "serviceaccount",
        "service_account_file": "/k.json",
    },
    "eks": {
        "region": "eu-central-1",
        "node_role": "arn:aws:iam::123456789012:role/nodes",
        "subnets": ["subnet-1", "subnet-2"],
        "launch_template": {"id": "lt-1", "version": "3"},
    },
    "aks": {"resource_group": "llms", "subscription_id": "00000000-0000-0000-0000-000000000000"},
}
MACHINES = {"gke": "g2-standard-8", "eks": "g6.2xlarge", "aks": "Standard_NC24ads_A100_v4"}


def pools(provider: str) -> list[dict[str, Any]]:
    """A plain pool, one with everything the provider can do, and one to be deleted."""
    taint = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
    quiet = {"key": "batch", "effect": "PreferNoSchedule"}
    plain = {"name": "plain", "accelerator": "nvidia-l4", "instance_type": MACHINES[provider], "count": 2}
    full = {
        **plain,
        "name": "full",
        "gpus": 2,
        "min": 1,
        "max": 4,
        "labels": {"team": "llm"},
        "taints": [taint, quiet],
    }
    full |= {
        "gke": {"disk_gb": 200},
        "eks": {"spot": True, "mig": "all-1g.10gb", "time_slicing": 4},
        "aks": {"spot": True, "mig": "MIG2g", "disk_gb": 200, "time_slicing": 2},
    }[provider]
    return [plain, full, {"name": "old", "state": "absent"}]


@pytest.fixture(params=sorted(MODULES))
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def calls(plan: ModuleType, provider: str) -> list[dict[str, Any]]:
    assert plan.problems(provider, pools(provider), "cluster", SETTINGS[provider]) == []
    return [plan.arguments(provider, pool, "cluster", SETTINGS[provider]) for pool in pools(provider)]


def test_arguments_are_those_of_the_golden_file(plan: ModuleType, provider: str) -> None:
    """HEADRACE_GOLDEN=write writes the files anew; read what changed before you commit it."""
    path = DATA / f"{provider}.json"
    if os.environ.get("HEADRACE_GOLDEN") == "write":
        path.write_text(json.dumps(calls(plan, provider), indent=2) + "\n")
    assert calls(plan, provider) == json.loads(path.read_text())


def test_the_real_module_takes_the_arguments(plan: ModuleType, provider: str) -> None:
    validator = ArgumentSpecValidator({**spec(MODULES[provider]), **COMMON[provider]})
    for call in calls(plan, provider):
        result = validator.validate(call)
        assert result.error_messages == [], call
        assert not result.unsupported_parameters


def test_the_task_hands_every_argument_on(plan: ModuleType, provider: str) -> None:
    [task] = yaml.safe_load((ROLE / "tasks" / f"{provider}.yml").read_text())
    handed = task[MODULES[provider]]
    produced = {key for call in calls(plan, provider) for key in call}
    produced |= {"gke": set(), "eks": {"profile", "endpoint_url", "disk_size"}, "aks": set()}[provider]
    assert set(handed) == produced
    for key, text in handed.items():
        assert key in text


def test_the_module_would_refuse_what_it_has_not(provider: str) -> None:
    """The test above can fail: an argument that the module lacks is no argument to it."""
    validator = ArgumentSpecValidator({**spec(MODULES[provider]), **COMMON[provider]})
    assert validator.validate({"gpu_driver_installation_config": {}}).error_messages


def test_labels_name_the_pool_and_come_from_it(plan: ModuleType, provider: str) -> None:
    found = plan.labels(provider, pools(provider)[1])
    assert found["headrace.dev/gpu-node-pool"] == "full"
    assert found["headrace.dev/accelerator"] == "nvidia-l4"
    assert found["team"] == "llm"
    assert ("nvidia.com/mig.config" in found) == (provider == "eks")


def test_a_plan_is_a_line_for_each_pool(plan: ModuleType) -> None:
    lines = [plan.summary("eks", pool) for pool in pools("eks")]
    assert lines[0] == "eks: node pool plain: 2 nodes of g6.2xlarge, nvidia-l4"
    assert "2 nodes (1 to 4) of g6.2xlarge, nvidia-l4, 2 GPUs each, spot, MIG all-1g.10gb" in lines[1]
    assert "deleted" in lines[2]


@pytest.mark.parametrize(
    ("provider", "key", "value", "fix"),
    [
        ("existing", "min", 1, "leave it out"),
        ("existing", "max", 1, "leave it out"),
        ("existing", "spot", True, "order them as spot"),
        ("existing", "instance_type", "g2", "leave it out"),
        ("existing", "disk_gb", 10, "leave it out"),
        ("existing", "state", "absent", "remove the entry"),
        ("gke", "spot", True, "gcloud (--spot)"),
        ("gke", "mig", "1g.5gb", "gpu-partition-size"),
        ("gke", "time_slicing", 2, "gpu-sharing-strategy"),
        ("gke", "nodes", ["n1"], "leave it out"),
        ("gke", "node_selector", {"a": "b"}, "leave it out"),
        ("gke", "accelerator", "", "GKE's name of the GPU"),
        ("gke", "name", "Not_A_Name", "lower case letters"),
        ("gke", "instance_type", "", "a machine with GPUs"),
        ("gke", "count", 0, "the number of nodes"),
        ("eks", "nodes", ["n1"], "leave it out"),
        ("eks", "disk_gb", 100, "set it there"),
        ("eks", "count", 0, "the number of nodes"),
        ("aks", "name", "has-a-dash", "12 at most"),
        ("aks", "name", "thirteenchars", "12 at most"),
        ("aks", "mig", "all-1g.5gb", "MIG1g"),
        ("aks", "labels", {"kubernetes.azure.com/x": "y"}, "another label"),
    ],
)
def test_what_a_provider_cannot_do_is_refused_by_key(
    plan: ModuleType, provider: str, key: str, value: Any, fix: str
) -> None:
    pool = pools(provider)[0] if provider in MACHINES else {"name": "plain"}
    found = plan.problems(provider, [{**pool, key: value}], "cluster", SETTINGS[provider])
    name = value if key == "name" else "plain"
    assert any(one.startswith(f"gpu_node_pool_pools[{name}].{key}:") and fix in one for one in found), found


def test_the_existing_nodes_of_a_plain_pool_are_no_problem(plan: ModuleType) -> None:
    pool = {"name": "a", "count": 2, "mig": "all-1g.5gb", "time_slicing": 2, "min": 0, "max": 0, "spot": False}
    assert plan.problems("existing", [pool], "", {}) == []


def test_what_must_be_known_of_the_account_is_asked_for(plan: ModuleType, provider: str) -> None:
    found = "\n".join(plan.problems(provider, [], "", {}))
    assert "gpu_node_pool_cluster" in found
    for key in plan.REQUIRED[provider]:
        assert f"gpu_node_pool_{provider}.{key}" in found


def test_eks_wants_an_image_with_a_driver(plan: ModuleType) -> None:
    without = {key: value for key, value in SETTINGS["eks"].items() if key != "launch_template"}
    [found] = plan.problems("eks", pools("eks")[:1], "c", without)
    assert "optimized-ami" in found
    assert "launch_template" in found
    [found] = plan.problems("eks", pools("eks")[:1], "c", {**without, "ami_type": "BOTTLEROCKET_x86_64"})
    assert "has no NVIDIA driver" in found
    assert plan.problems("eks", pools("eks")[:1], "c", {**without, "ami_type": "AL2_x86_64_GPU"}) == []


@pytest.mark.parametrize("count", [0, 5])
def test_a_count_outside_its_bounds_is_refused(plan: ModuleType, count: int) -> None:
    pool = {**pools("gke")[0], "min": 1, "max": 4, "count": count}
    assert any("min <= count <= max" in one for one in plan.problems("gke", [pool], "c", SETTINGS["gke"]))
