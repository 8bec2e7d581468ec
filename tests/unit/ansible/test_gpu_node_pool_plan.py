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

from .module_specs import rules, spec

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
AMI = {**{key: text for key, text in SETTINGS["eks"].items() if key != "launch_template"}, "ami_type": "AL2_x86_64_GPU"}
MACHINES = {"gke": "g2-standard-8", "eks": "g6.2xlarge", "aks": "Standard_NC24ads_A100_v4"}


def pools(provider: str) -> list[dict[str, Any]]:
    """A plain pool, one with everything the provider can do, and one to be deleted."""
    taint = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
    quiet = {"key": "batch", "effect": "PreferNoSchedule"}
    plain = {"name": "plain", "accelerator": "nvidia-l4", "count": 2}
    if provider != "eks":
        # In the launch template.
        plain["instance_type"] = MACHINES[provider]
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
        "eks": {"spot": True, "mig": "all-1g.10gb", "time_slicing": 4, "launch_template": {"name": "own"}},
        "aks": {"spot": True, "mig": "MIG2g", "disk_gb": 200, "time_slicing": 2},
    }[provider]
    return [plain, full, {"name": "old", "state": "absent"}]


def machines(provider: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Pools and settings without a launch template."""
    if provider != "eks":
        return pools(provider), SETTINGS[provider]
    given = [{key: text for key, text in pool.items() if key != "launch_template"} for pool in pools("eks")]
    return [{**pool, "instance_type": MACHINES["eks"], "disk_gb": 200} for pool in given], AMI


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


def real(module: str, provider: str) -> ArgumentSpecValidator:
    """What a module has against arguments."""
    return ArgumentSpecValidator({**spec(module), **COMMON[provider]}, **rules(module))


def test_the_real_module_takes_the_arguments(plan: ModuleType, provider: str) -> None:
    validator = real(MODULES[provider], provider)
    given, settings = machines(provider)
    assert plan.problems(provider, given, "cluster", settings) == []
    without = [plan.arguments(provider, pool, "cluster", settings) for pool in given]
    for call in calls(plan, provider) + without:
        result = validator.validate(call)
        assert result.error_messages == [], call
        assert not result.unsupported_parameters


def test_the_task_hands_every_argument_on(plan: ModuleType, provider: str) -> None:
    tasks = yaml.safe_load((ROLE / "tasks" / f"{provider}.yml").read_text())
    handed = tasks[-1][MODULES[provider]]
    given, settings = machines(provider)
    every = calls(plan, provider) + [plan.arguments(provider, pool, "cluster", settings) for pool in given]
    produced = {key for call in every for key in call}
    produced |= {"gke": set(), "eks": {"profile", "endpoint_url"}, "aks": set()}[provider]
    assert set(handed) == produced
    for key, text in handed.items():
        assert key in text


def test_the_real_modules_take_what_they_are_asked(provider: str) -> None:
    """The arguments that tasks look at pools with; the EKS module looks by itself."""
    looking = {"gke": "gcp_container_node_pool_info", "eks": "eks_nodegroup", "aks": "azure_rm_aksagentpool_info"}
    module = f"{MODULES[provider].rpartition('.')[0]}.{looking[provider]}"
    task = yaml.safe_load((ROLE / "tasks" / f"{provider}.yml").read_text())[0]
    assert task[module].keys() <= spec(module).keys() | COMMON[provider].keys()
    assert task.get("check_mode") == (True if provider == "eks" else None)


def test_the_module_would_refuse_what_it_has_not(provider: str) -> None:
    """The test above can fail: an argument that the module lacks is no argument to it."""
    validator = real(MODULES[provider], provider)
    assert validator.validate({"gpu_driver_installation_config": {}}).error_messages


@pytest.mark.parametrize("beside", [{"instance_types": ["g6.2xlarge"]}, {"ami_type": "CUSTOM"}, {"disk_size": 20}])
def test_the_eks_module_takes_nothing_beside_a_launch_template(plan: ModuleType, beside: dict[str, Any]) -> None:
    [message] = real(MODULES["eks"], "eks").validate({**calls(plan, "eks")[0], **beside}).error_messages
    assert "mutually exclusive" in message


def test_labels_name_the_pool_and_come_from_it(plan: ModuleType, provider: str) -> None:
    found = plan.labels(provider, pools(provider)[1])
    assert found["headrace.dev/gpu-node-pool"] == "full"
    assert found["headrace.dev/accelerator"] == "nvidia-l4"
    assert found["team"] == "llm"
    assert ("nvidia.com/mig.config" in found) == (provider == "eks")


def test_a_plan_is_a_line_for_each_pool(plan: ModuleType) -> None:
    given, settings = machines("eks")
    lines = [plan.summary("eks", pool, settings) for pool in given]
    assert lines[0] == "eks: node pool plain: 2 nodes of g6.2xlarge, nvidia-l4"
    assert "2 nodes (1 to 4) of g6.2xlarge, nvidia-l4, 2 GPUs each, spot, MIG all-1g.10gb" in lines[1]
    assert "deleted" in lines[2]
    templates = [plan.summary("eks", pool, SETTINGS["eks"]) for pool in pools("eks")]
    assert "2 nodes of launch template lt-1, nvidia-l4" in templates[0]
    assert "of launch template own," in templates[1]


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
        ("eks", "instance_type", "g6.2xlarge", "have g6.2xlarge in the launch template"),
        ("eks", "launch_template", {"version": "3"}, "one of them"),
        ("eks", "launch_template", {"id": "lt-1", "name": "l4"}, "one of them"),
        ("existing", "launch_template", {"id": "lt-1"}, "leave it out"),
        ("gke", "launch_template", {"id": "lt-1"}, "instance_type says"),
        ("aks", "launch_template", {"id": "lt-1"}, "instance_type says"),
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
    without = {key: value for key, value in AMI.items() if key != "ami_type"}
    plain = [{**pools("eks")[0], "instance_type": "g6.2xlarge"}]
    [found] = plan.problems("eks", plain, "c", without)
    assert "optimized-ami" in found
    assert "launch_template" in found
    [found] = plan.problems("eks", plain, "c", {**without, "ami_type": "BOTTLEROCKET_x86_64"})
    assert "has no NVIDIA driver" in found
    assert plan.problems("eks", plain, "c", AMI) == []
    [found] = plan.problems("eks", pools("eks")[:1], "c", AMI)
    assert "instance_type: empty" in found


@pytest.mark.parametrize("count", [0, 5])
def test_a_count_outside_its_bounds_is_refused(plan: ModuleType, count: int) -> None:
    pool = {**pools("gke")[0], "min": 1, "max": 4, "count": count}
    assert any("min <= count <= max" in one for one in plan.problems("gke", [pool], "c", SETTINGS["gke"]))


# ---- what the cloud has ----------------------------------------------------------------------------------------------


def gke_has(pool: dict[str, Any], plan: ModuleType, **more: Any) -> dict[str, Any]:
    """What GKE tells of a pool that was made as it was asked for, as its API writes it."""
    call = plan.arguments("gke", pool, "cluster", SETTINGS["gke"])
    config = call["config"]
    answer = {
        "name": pool["name"],
        "initialNodeCount": call["initial_node_count"],
        "config": {
            "machineType": config["machine_type"],
            "diskSizeGb": config.get("disk_size_gb", 100),
            "accelerators": [{"acceleratorCount": str(pool.get("gpus", 1)), "acceleratorType": pool["accelerator"]}],
            # GKE has labels and a taint of its own.
            "labels": {**config["labels"], "cloud.google.com/gke-accelerator": "x", "goog-gke-node": "y"},
            "taints": [
                *[{key: text for key, text in taint.items() if text} for taint in config.get("taints", [])],
                {"key": "nvidia.com/gpu", "value": "present", "effect": "NO_SCHEDULE"},
            ],
        },
    }
    if "autoscaling" in call:
        bounds = call["autoscaling"]
        low = {"minNodeCount": bounds["min_node_count"]} if bounds["min_node_count"] else {}
        answer["autoscaling"] = {"enabled": True, "maxNodeCount": bounds["max_node_count"], **low}
    return {**answer, **more}


def settle(plan: ModuleType, provider: str, given: list[dict[str, Any]], found: list[dict[str, Any]]) -> Any:
    settings = machines(provider)[1]
    return plan.settle(provider, given, "cluster", settings, plan.there(provider, found))


@pytest.mark.parametrize("index", [0, 1])
def test_a_gke_pool_that_is_as_asked_is_left_alone(plan: ModuleType, index: int) -> None:
    pool = pools("gke")[index]
    assert settle(plan, "gke", [pool], [gke_has(pool, plan)]) == ([], [])


def test_a_gke_pool_is_made_where_it_is_missing_and_deleted_where_it_is_there(plan: ModuleType) -> None:
    [plain, _, old] = pools("gke")
    made = [{"name": "plain", "arguments": plan.arguments("gke", plain, "cluster", SETTINGS["gke"])}]
    assert settle(plan, "gke", [plain, old], []) == (made, [])
    calls, found = settle(plan, "gke", [plain, old], [gke_has(plain, plan), {"name": "old"}])
    assert [(call["name"], call["arguments"]["state"]) for call in calls] == [("old", "absent")]
    assert found == []


UPDATE = "gcloud container node-pools update plain --cluster cluster --location europe-west4 --project llms "


@pytest.mark.parametrize(
    ("key", "value", "named", "command"),
    [
        (
            "count",
            3,
            "count",
            "gcloud container clusters resize cluster --node-pool plain --num-nodes 3 --location europe-west4"
            " --project llms",
        ),
        ("max", 5, "max", UPDATE + "--enable-autoscaling --min-nodes 0 --max-nodes 5"),
        ("instance_type", "g2-standard-12", "instance_type", UPDATE + "--machine-type g2-standard-12"),
        ("disk_gb", 300, "disk_gb", UPDATE + "--disk-size 300"),
        ("gpus", 4, "accelerator", UPDATE + "--accelerator type=nvidia-l4,count=4"),
        ("accelerator", "nvidia-a100", "accelerator", UPDATE + "--accelerator type=nvidia-a100,count=1"),
        (
            "labels",
            {"team": "b"},
            "labels",
            UPDATE + "--node-labels headrace.dev/gpu-node-pool=plain,headrace.dev/accelerator=nvidia-l4,team=b",
        ),
        (
            "taints",
            [{"key": "batch", "effect": "NoSchedule"}],
            "taints",
            UPDATE + "--node-taints batch=:NoSchedule",
        ),
    ],
)
def test_what_gke_would_leave_as_it_is_is_refused_with_the_command(
    plan: ModuleType, key: str, value: Any, named: str, command: str
) -> None:
    pool = pools("gke")[0]
    calls, found = settle(plan, "gke", [{**pool, key: value}], [gke_has(pool, plan)])
    assert calls == []
    assert [one for one in found if one.startswith(f"gpu_node_pool_pools[plain].{named}:") and command in one], found


def test_a_gke_pool_that_scales_keeps_its_size(plan: ModuleType) -> None:
    pool = pools("gke")[1]
    assert settle(plan, "gke", [{**pool, "count": 3}], [gke_has(pool, plan)]) == ([], [])
    plain = {key: text for key, text in pool.items() if key not in {"min", "max"}}
    [found] = settle(plan, "gke", [plain], [gke_has(pool, plan)])[1]
    assert "--no-enable-autoscaling" in found


def eks_has(pool: dict[str, Any], plan: ModuleType, size: int) -> dict[str, Any]:
    """What the EKS module answers in check mode where a group is there."""
    call = plan.arguments("eks", pool, "cluster", AMI)
    return {
        "item": {"name": pool["name"]},
        "changed": False,
        "scaling_config": {**call["scaling_config"], "desired_size": size},
        "labels": dict(call["labels"]),
    }


def aks_has(pool: dict[str, Any], plan: ModuleType, size: int) -> dict[str, Any]:
    return {"item": {"name": pool["name"]}, "aks_agent_pools": [{"name": pool["name"], "count": size}]}


@pytest.mark.parametrize(("size", "kept"), [(0, 1), (1, 1), (3, 3), (4, 4), (7, 4)])
def test_a_pool_that_scales_keeps_the_size_that_the_autoscaler_gave_it(plan: ModuleType, size: int, kept: int) -> None:
    pool = machines("eks")[0][1]
    [call], found = settle(plan, "eks", [pool], [eks_has(pool, plan, size)])
    assert found == []
    assert call["arguments"]["scaling_config"] == {"min_size": 1, "max_size": 4, "desired_size": kept}
    pool = pools("aks")[1]
    [call], found = settle(plan, "aks", [pool], [aks_has(pool, plan, size)])
    assert (call["arguments"]["count"], found) == (kept, [])


@pytest.mark.parametrize("provider", ["eks", "aks"])
def test_a_pool_that_is_new_or_does_not_scale_gets_its_count(plan: ModuleType, provider: str) -> None:
    [plain, full, _] = machines(provider)[0]
    has = {"eks": eks_has, "aks": aks_has}[provider](plain, plan, 7)
    missing = {"eks": {"item": {"name": "full"}, "changed": True}, "aks": {"item": {"name": "full"},
               "aks_agent_pools": [None]}}[provider]  # fmt: skip
    calls, found = settle(plan, provider, [plain, full], [has, missing])
    assert found == []
    sizes = [call["arguments"].get("count", call["arguments"].get("scaling_config", {}).get("desired_size"))
             for call in calls]  # fmt: skip
    assert sizes == [2, 2]


def test_aks_deletes_what_is_there(plan: ModuleType) -> None:
    old = pools("aks")[2]
    assert settle(plan, "aks", [old], [{"item": {"name": "old"}, "aks_agent_pools": [None]}]) == ([], [])
    [call], found = settle(plan, "aks", [old], [aks_has(old, plan, 1)])
    assert (call["arguments"]["state"], found) == ("absent", [])


def test_aks_taints_spot_pools_by_itself(plan: ModuleType) -> None:
    """The module compares all taints: without this one no run would be the last that changes something."""
    own = "kubernetes.azure.com/scalesetpriority=spot:NoSchedule"
    plain, full, _ = calls(plan, "aks")
    assert own in full["node_taints"]
    assert own not in plain["node_taints"]


def test_a_label_of_an_eks_group_that_has_another_value_is_refused(plan: ModuleType) -> None:
    pool = {**machines("eks")[0][0], "labels": {"gpuTeam": "a"}}
    has = eks_has(pool, plan, 2)
    # So the module tells keys with capitals.
    has["labels"]["gpu_team"] = has["labels"].pop("gpuTeam")
    assert settle(plan, "eks", [pool], [has])[1] == []
    [found] = settle(plan, "eks", [{**pool, "labels": {"gpuTeam": "b"}}], [has])[1]
    assert found.startswith("gpu_node_pool_pools[plain].labels: gpuTeam is a there, and b is asked for")
    assert "--nodegroup-name plain --labels 'addOrUpdateLabels={gpuTeam=b}' --region eu-central-1" in found
    assert settle(plan, "eks", [{**pool, "labels": {"gpuTeam": "a", "new": "x"}}], [has])[1] == []
