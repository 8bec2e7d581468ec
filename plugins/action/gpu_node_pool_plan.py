"""Say what each GPU node pool takes of a cloud: the arguments of the cloud's own module, or why it cannot be had.

One schema for all providers. A key that a provider, or its module, cannot do is refused by name, each with a way out:
a pool that silently lacks what was asked for is found out about when the bill comes. Where a module is blind to a
difference, what the cloud has is compared, in plugin_utils/node_pool_differences.py. Pure functions; no cloud is asked.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase


def _beside(name: str) -> Any:
    """A file of plugin_utils, by its path: in a checkout Ansible has no name for it."""
    path = Path(__file__).resolve().parents[1] / "plugin_utils" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"headrace_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


differences = _beside("node_pool_differences")

POOL_LABEL = "headrace.dev/gpu-node-pool"
ACCELERATOR_LABEL = "headrace.dev/accelerator"

Pool = Mapping[str, Any]
Settings = Mapping[str, Any]

# What must be known of a provider: key of gpu_node_pool_<provider> -> where its value comes from.
REQUIRED: dict[str, dict[str, str]] = {
    "gke": {"project": "the project that the cluster is in", "location": "the cluster's region or zone"},
    "eks": {
        "region": "the cluster's region",
        "node_role": "the ARN of the nodes' IAM role",
        "subnets": "the subnets that the nodes are in",
    },
    "aks": {"resource_group": "the resource group of the cluster"},
}

# Keys that a provider cannot do, and what to do instead.
UNSUPPORTED: dict[str, dict[str, str]] = {
    "existing": {
        "min": "the nodes are there, and whoever runs them scales them: leave it out",
        "max": "the nodes are there, and whoever runs them scales them: leave it out",
        "spot": "the nodes are there: order them as spot where they are made",
        "instance_type": "the nodes are there: leave it out",
        "disk_gb": "the nodes are there: leave it out",
        "launch_template": "the nodes are there: leave it out",
    },
    "gke": {
        "launch_template": "GKE has none: instance_type says which machines",
        "spot": "google.cloud.gcp_container_node_pool knows no Spot VMs: make the pool with gcloud (--spot), "
        "and use provider existing",
        "mig": "google.cloud.gcp_container_node_pool knows no GPU partitions: make the pool with gcloud "
        "(--accelerator gpu-partition-size), and use provider existing",
        "time_slicing": "google.cloud.gcp_container_node_pool knows no GPU sharing: make the pool with gcloud "
        "(--accelerator gpu-sharing-strategy), and use provider existing",
        "nodes": "the provider names its nodes: leave it out",
        "node_selector": f"the nodes get the label {POOL_LABEL}: leave it out",
    },
    "eks": {
        "nodes": "the provider names its nodes: leave it out",
        "node_selector": f"the nodes get the label {POOL_LABEL}: leave it out",
    },
    "aks": {
        "launch_template": "AKS has none: instance_type says which machines",
        "nodes": "the provider names its nodes: leave it out",
        "node_selector": f"the nodes get the label {POOL_LABEL}: leave it out",
    },
}

# AMI types with NVIDIA's driver that community.aws.eks_nodegroup knows.
EKS_GPU_AMIS = ("AL2_x86_64_GPU",)
# What AKS taints the nodes of a spot pool with, whoever makes it.
AKS_SPOT_TAINT = "kubernetes.azure.com/scalesetpriority=spot:NoSchedule"
AKS_MIG = ("MIG1g", "MIG2g", "MIG3g", "MIG4g", "MIG7g")


# ---- what cannot be had ----------------------------------------------------------------------------------------------


def problems(provider: str, pools: Sequence[Pool], cluster: str, settings: Settings) -> list[str]:
    """Everything that is wrong, each with its fix."""
    found: list[str] = []
    if provider != "existing":
        if not cluster:
            found.append(f"gpu_node_pool_cluster: empty. Fix: the name of the {provider.upper()} cluster.")
        for key, what in REQUIRED[provider].items():
            if not settings.get(key):
                found.append(f"gpu_node_pool_{provider}.{key}: empty. Fix: {what}.")
    for pool in pools:
        found += [
            f"gpu_node_pool_pools[{pool['name']}].{problem}" for problem in _pool_problems(provider, pool, settings)
        ]
    return found


def _pool_problems(provider: str, pool: Pool, settings: Settings) -> Iterator[str]:
    for key, instead in UNSUPPORTED[provider].items():
        if pool.get(key):
            yield f"{key}: provider {provider} cannot do it. Fix: {instead}."
    count, low, high = (int(pool.get(key) or 0) for key in ("count", "min", "max"))
    if provider == "existing":
        if pool.get("state") == "absent":
            yield "state: provider existing makes no nodes and removes none. Fix: remove the entry."
        return
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", str(pool["name"])):
        yield (
            f"name: {pool['name']} is no name of a node pool. "
            f"Fix: lower case letters, digits and -, 40 at most, a letter first."
        )
    if pool.get("state") == "absent":
        return
    if not pool.get("instance_type") and not (provider == "eks" and _template(pool, settings)):
        yield "instance_type: empty. Fix: the provider's name of a machine with GPUs."
    if high and not low <= count <= high:
        yield f"count: {count} is not within min {low} and max {high}. Fix: min <= count <= max."
    if low and not high:
        yield "max: missing, and min is given. Fix: both, for a pool that scales; neither, for one that does not."
    if not high and not count:
        yield "count: 0. Fix: the number of nodes, or min and max for a pool that scales."
    yield from {"gke": _gke_problems, "eks": _eks_problems, "aks": _aks_problems}[provider](pool, settings)


def _gke_problems(pool: Pool, settings: Settings) -> Iterator[str]:
    if not pool.get("accelerator"):
        yield "accelerator: empty. Fix: GKE's name of the GPU, such as nvidia-l4."


def _eks_problems(pool: Pool, settings: Settings) -> Iterator[str]:
    template, ami = _template(pool, settings), settings.get("ami_type") or ""
    if not template and not ami:
        yield (
            "name: no image with NVIDIA's driver is named, and community.aws.eks_nodegroup knows no "
            "AL2023_x86_64_NVIDIA. Fix: launch_template, of the pool or of gpu_node_pool_eks, whose AMI is that of "
            "the SSM parameter /aws/service/eks/optimized-ami/VERSION/amazon-linux-2023/x86_64/nvidia/recommended/"
            "image_id, with nodeadm user data; or gpu_node_pool_eks.ami_type: AL2_x86_64_GPU, for Kubernetes up to "
            "1.32."
        )
    if ami and ami not in EKS_GPU_AMIS:
        yield (
            f"name: gpu_node_pool_eks.ami_type {ami} has no NVIDIA driver. "
            f"Fix: {', '.join(EKS_GPU_AMIS)}, or a launch_template."
        )
    if template and bool(template.get("id")) == bool(template.get("name")):
        yield "launch_template: has id and name, or neither. Fix: one of them."
    # The module takes neither beside a launch template.
    if template and pool.get("disk_gb"):
        yield "disk_gb: the launch template says how large disks are. Fix: set it there."
    if template and pool.get("instance_type"):
        yield (
            f"instance_type: community.aws.eks_nodegroup takes none beside a launch template. Fix: leave it out, and "
            f"have {pool['instance_type']} in the launch template; pools of several machines each name their own "
            f"launch_template."
        )


def _aks_problems(pool: Pool, settings: Settings) -> Iterator[str]:
    name = str(pool["name"])
    if not re.fullmatch(r"[a-z][a-z0-9]{0,11}", name):
        yield f"name: AKS takes no {name}. Fix: lower case letters and digits, 12 at most, a letter first."
    if pool.get("mig") and pool["mig"] not in AKS_MIG:
        yield f"mig: AKS knows no {pool['mig']}. Fix: one of {', '.join(AKS_MIG)}."
    for key in pool.get("labels") or {}:
        if str(key).startswith("kubernetes.azure.com/"):
            yield f"labels: AKS keeps kubernetes.azure.com/ for itself ({key}). Fix: another label."


# ---- what is asked of the cloud --------------------------------------------------------------------------------------


def labels(provider: str, pool: Pool) -> dict[str, str]:
    """The labels of a pool's nodes."""
    own = {POOL_LABEL: str(pool["name"])}
    if pool.get("accelerator"):
        own[ACCELERATOR_LABEL] = str(pool["accelerator"])
    # Both are read by the GPU Operator, which partitions or shares the node's GPUs.
    if pool.get("mig") and provider != "aks":
        own["nvidia.com/mig.config"] = str(pool["mig"])
    if pool.get("time_slicing"):
        own["nvidia.com/device-plugin.config"] = f"replicas-{int(pool['time_slicing'])}"
    return own | {str(key): str(value) for key, value in (pool.get("labels") or {}).items()}


def arguments(provider: str, pool: Pool, cluster: str, settings: Settings) -> dict[str, Any]:
    """The arguments of the provider's module for one pool."""
    return {"gke": _gke, "eks": _eks, "aks": _aks}[provider](pool, cluster, settings)


def _gke(pool: Pool, cluster: str, settings: Settings) -> dict[str, Any]:
    """google.cloud.gcp_container_node_pool. The driver is GKE's own to install."""
    common = {
        key: settings[key] for key in ("project", "location", "auth_kind", "service_account_file") if settings.get(key)
    }
    call: dict[str, Any] = {
        **common,
        "name": pool["name"],
        "cluster": {"name": cluster},
        "initial_node_count": _count(pool),
    }
    if pool.get("state") == "absent":
        return {**call, "state": "absent"}
    config: dict[str, Any] = {
        "machine_type": pool["instance_type"],
        "accelerators": [
            {"accelerator_type": pool["accelerator"], "accelerator_count": int(pool.get("gpus") or 0) or 1}
        ],
        "labels": labels("gke", pool),
        "oauth_scopes": ["https://www.googleapis.com/auth/cloud-platform"],
    }
    if pool.get("disk_gb"):
        config["disk_size_gb"] = int(pool["disk_gb"])
    if pool.get("taints"):
        config["taints"] = _taints(pool)
    call |= {"config": config, "management": {"auto_repair": True, "auto_upgrade": True}, "state": "present"}
    if pool.get("max"):
        call["autoscaling"] = {
            "enabled": True,
            "min_node_count": int(pool.get("min") or 0),
            "max_node_count": int(pool["max"]),
        }
    return call


def _eks(pool: Pool, cluster: str, settings: Settings) -> dict[str, Any]:
    """community.aws.eks_nodegroup. The driver is in the AMI; NVIDIA's device plugin comes with the GPU Operator."""
    call: dict[str, Any] = {"name": pool["name"], "cluster_name": cluster, "wait": True}
    call |= {key: settings[key] for key in ("region", "profile", "endpoint_url") if settings.get(key)}
    if pool.get("state") == "absent":
        return {**call, "state": "absent"}
    count = _count(pool)
    call |= {
        "node_role": settings["node_role"],
        "subnets": list(settings["subnets"]),
        "scaling_config": {
            "min_size": int(pool.get("min") or 0) if pool.get("max") else count,
            "max_size": int(pool.get("max") or 0) or count,
            "desired_size": count,
        },
        "capacity_type": "SPOT" if pool.get("spot") else "ON_DEMAND",
        "labels": labels("eks", pool),
        "taints": _taints(pool),
        # One node at a time: GPUs are scarce, and a second spare one may not be had.
        "update_config": {"max_unavailable": 1},
        "state": "present",
    }
    if template := _template(pool, settings):
        # Says all of the machine: the module takes no instance type, AMI type and disk size beside it.
        call["launch_template"] = {key: str(template[key]) for key in ("id", "name", "version") if template.get(key)}
    else:
        call |= {"instance_types": [pool["instance_type"]], "ami_type": settings["ami_type"]}
        if pool.get("disk_gb"):
            call["disk_size"] = int(pool["disk_gb"])
    return call


def _aks(pool: Pool, cluster: str, settings: Settings) -> dict[str, Any]:
    """azure.azcollection.azure_rm_aksagentpool. AKS installs the driver itself: the GPU Operator's must be off."""
    call: dict[str, Any] = {"name": pool["name"], "cluster_name": cluster, "resource_group": settings["resource_group"]}
    if settings.get("subscription_id"):
        call["subscription_id"] = settings["subscription_id"]
    if pool.get("state") == "absent":
        return {**call, "state": "absent"}
    call |= {
        "vm_size": pool["instance_type"],
        "count": _count(pool),
        "mode": "User",
        "os_type": "Linux",
        "type_properties_type": "VirtualMachineScaleSets",
        "node_labels": labels("aks", pool),
        "node_taints": [
            f"{taint['key']}={taint['value']}:{taint['effect']}"
            if taint.get("value")
            else f"{taint['key']}:{taint['effect']}"
            for taint in pool.get("taints") or []
        ]
        + ([AKS_SPOT_TAINT] if pool.get("spot") else []),
        "enable_auto_scaling": bool(pool.get("max")),
        "state": "present",
    }
    if pool.get("max"):
        call |= {"min_count": int(pool.get("min") or 0), "max_count": int(pool["max"])}
    if pool.get("disk_gb"):
        call["os_disk_size_gb"] = int(pool["disk_gb"])
    if pool.get("spot"):
        call |= {"scale_set_priority": "Spot", "scale_set_eviction_policy": "Delete", "spot_max_price": -1.0}
    if pool.get("mig"):
        call["gpu_instance_profile"] = pool["mig"]
    return call


def _template(pool: Pool, settings: Settings) -> dict[str, Any]:
    """The launch template of an EKS pool: its own, or that of all."""
    return dict(pool.get("launch_template") or settings.get("launch_template") or {})


def _count(pool: Pool) -> int:
    return int(pool.get("count") or 0)


def _taints(pool: Pool) -> list[dict[str, str]]:
    """Taints with effects as the Google and Amazon APIs write them: NO_SCHEDULE."""
    return [
        {
            "key": taint["key"],
            "value": taint.get("value") or "",
            "effect": re.sub(r"(?<!^)(?=[A-Z])", "_", taint["effect"]).upper(),
        }
        for taint in pool.get("taints") or []
    ]


def summary(provider: str, pool: Pool, settings: Settings) -> str:
    """A line that a person can read."""
    if pool.get("state") == "absent":
        return f"{provider}: node pool {pool['name']} is deleted, with its nodes"
    size = f"{_count(pool)} nodes"
    if pool.get("max"):
        size += f" ({int(pool.get('min') or 0)} to {pool['max']})"
    extra = "".join(
        f", {text}"
        for text in (
            f"{pool['gpus']} GPUs each" if pool.get("gpus") else "",
            "spot" if pool.get("spot") else "",
            f"MIG {pool['mig']}" if pool.get("mig") else "",
            f"each GPU shared by {pool['time_slicing']}" if pool.get("time_slicing") else "",
        )
        if text
    )
    kind = f" of {pool['instance_type']}" if pool.get("instance_type") else ""
    if provider == "eks" and (template := _template(pool, settings)):
        kind = f" of launch template {template.get('id') or template.get('name')}"
    return f"{provider}: node pool {pool['name']}: {size}{kind}, {pool.get('accelerator') or 'some GPU'}{extra}"


# ---- what the cloud has ----------------------------------------------------------------------------------------------


def there(provider: str, found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Name -> what the cloud has of a pool, of what the provider's module answered when it was asked."""
    if provider == "gke":
        return {one["name"]: dict(one) for one in found}
    # One answer for each pool that was asked about.
    answers = {one["item"]["name"]: one for one in found if not one.get("skipped")}
    if provider == "aks":
        kept = {name: next(iter(one.get("aks_agent_pools") or []), None) for name, one in answers.items()}
        return {name: dict(pool) for name, pool in kept.items() if pool}
    # The EKS module in check mode: it tells a group that is there, and only that it would make one that is not.
    return {name: dict(one) for name, one in answers.items() if one.get("scaling_config")}


def settle(
    provider: str, pools: Sequence[Pool], cluster: str, settings: Settings, present: Mapping[str, Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The calls that are left when it is known what the cloud has, and what no call can bring about."""
    calls: list[dict[str, Any]] = []
    found: list[str] = []
    for pool in pools:
        name = str(pool["name"])
        call = arguments(provider, pool, cluster, settings)
        here = present.get(name)
        if pool.get("state") == "absent":
            # In check mode AKS' module would delete what is not there, and GKE's says nothing. EKS' is right.
            if here is not None or provider == "eks":
                calls.append({"name": name, "arguments": call})
            continue
        if here is not None:
            found += [
                f"gpu_node_pool_pools[{name}].{one}" for one in differences.differences(provider, pool, call, here)
            ]
            if provider == "gke":
                continue
        calls.append({"name": name, "arguments": _keep_size(provider, pool, call, here)})
    return calls, found


def _keep_size(provider: str, pool: Pool, call: dict[str, Any], here: Mapping[str, Any] | None) -> dict[str, Any]:
    """A pool that scales keeps the size it has, within its bounds: its size is the cluster autoscaler's.

    `count` is what such a pool starts with. Sent again, it would take away nodes whose Pods the autoscaler made room
    for. The number is the cloud's own and not that of the Nodes: nodes that are on their way count.
    """
    if here is None or not pool.get("max"):
        return call
    low, high = int(pool.get("min") or 0), int(pool["max"])
    if provider == "eks":
        size = min(max(int(here["scaling_config"]["desired_size"]), low), high)
        return {**call, "scaling_config": {**call["scaling_config"], "desired_size": size}}
    return {**call, "count": min(max(int(here["count"]), low), high)}


# ---- Ansible ---------------------------------------------------------------------------------------------------------


class ActionModule(ActionBase):
    """See plugins/modules/gpu_node_pool_plan.py for what users read."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """The plan, or every problem at once."""
        result = super().run(tmp, task_vars)
        given = self._task.args
        provider, pools = str(given["provider"]), list(given["pools"])
        cluster, settings = str(given.get("cluster") or ""), dict(given.get("settings") or {})
        found = problems(provider, pools, cluster, settings)
        if found:
            return {**result, "failed": True, "changed": False, "problems": found, "msg": "\n".join(found)}
        calls: list[dict[str, Any]] = []
        if given.get("found") is not None:
            calls, found = settle(provider, pools, cluster, settings, there(provider, list(given["found"])))
            if found:
                return {**result, "failed": True, "changed": False, "problems": found, "msg": "\n".join(found)}
        elif provider != "existing":
            calls = [
                {"name": pool["name"], "arguments": arguments(provider, pool, cluster, settings)} for pool in pools
            ]
        lines = [summary(provider, pool, settings) for pool in pools]
        return {**result, "changed": False, "calls": calls, "summary": lines}
