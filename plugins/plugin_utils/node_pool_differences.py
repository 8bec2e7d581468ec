"""What a GPU node pool of a cloud is other than it is asked to be, where the cloud's module would leave it so. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from ansible.module_utils.common.dict_transformations import camel_dict_to_snake_dict

Pool = Mapping[str, Any]


def differences(provider: str, pool: Pool, call: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """What differs, and the provider's module would leave so without a word."""
    if provider == "gke":
        yield from _gke_differences(pool, call, here)
    if provider == "eks":
        # It looks at the labels' keys only, and tells keys with capitals changed.
        asked: dict[str, Any] = camel_dict_to_snake_dict(dict(call["labels"]))
        has = here.get("labels") or {}
        for key in sorted(asked.keys() & has.keys()):
            if str(has[key]) != str(asked[key]):
                region = shlex.join(["--region", call["region"]])
                wanted = next(own for own in call["labels"] if camel_dict_to_snake_dict({own: ""}).keys() == {key})
                change = shlex.quote(f"addOrUpdateLabels={{{wanted}={asked[key]}}}")
                yield (
                    f"labels: {wanted} is {has[key]} there, and {asked[key]} is asked for; community.aws.eks_nodegroup "
                    f"changes no label's value. Fix: aws eks update-nodegroup-config "
                    f"{shlex.join(['--cluster-name', call['cluster_name'], '--nodegroup-name', str(call['name'])])} "
                    f"--labels {change} {region}"
                )


def _gke_differences(pool: Pool, call: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """google.cloud.gcp_container_node_pool finds no difference, whatever there is: each gets gcloud's command."""
    name, cluster, config = str(call["name"]), str(call["cluster"]["name"]), call["config"]
    has = here.get("config") or {}
    where = ["--location", str(call["location"]), "--project", str(call["project"])]

    def update(*flags: str) -> str:
        command = ["gcloud", "container", "node-pools", "update", name, "--cluster", cluster, *where, *flags]
        return shlex.join(command)

    def differs(key: str, old: Any, new: Any, command: str) -> str:
        return (
            f"{key}: {old} there, and {new} is asked for; google.cloud.gcp_container_node_pool changes no node pool "
            f"that exists. Fix: {command}"
        )

    scales = here.get("autoscaling") or {}
    bounds = (int(scales.get("minNodeCount") or 0), int(scales.get("maxNodeCount") or 0))
    old = f"min {bounds[0]} and max {bounds[1]}" if scales.get("enabled") else "does not scale"
    if asked := call.get("autoscaling"):
        low, high = asked["min_node_count"], asked["max_node_count"]
        if not scales.get("enabled") or bounds != (low, high):
            flags = ("--enable-autoscaling", "--min-nodes", str(low), "--max-nodes", str(high))
            yield differs("max", old, f"min {low} and max {high}", update(*flags))
    else:
        if scales.get("enabled"):
            yield differs("max", old, "a pool that does not scale", update("--no-enable-autoscaling"))
        count = int(here.get("initialNodeCount") or 0)
        # Of a pool that scales it is what the pool started with. Resizing a pool changes it.
        if count != call["initial_node_count"]:
            number = str(call["initial_node_count"])
            command = ["gcloud", "container", "clusters", "resize", cluster, "--node-pool", name, "--num-nodes", number]
            yield differs("count", count, number, shlex.join([*command, *where]))
    if has.get("machineType") != config["machine_type"]:
        command = update("--machine-type", config["machine_type"])
        yield differs("instance_type", has.get("machineType"), config["machine_type"], command)
    if "disk_size_gb" in config and int(has.get("diskSizeGb") or 0) != config["disk_size_gb"]:
        size = str(config["disk_size_gb"])
        yield differs("disk_gb", has.get("diskSizeGb"), size, update("--disk-size", size))
    [gpus] = config["accelerators"]
    new_gpus = (gpus["accelerator_type"], gpus["accelerator_count"])
    # The API writes numbers of 64 bits as strings.
    old_gpus = [
        (one.get("acceleratorType"), int(one.get("acceleratorCount") or 0)) for one in has.get("accelerators") or []
    ]
    if old_gpus != [new_gpus]:
        text = " and ".join(f"{count} {kind}" for kind, count in old_gpus) or "no GPU"
        command = update("--accelerator", f"type={new_gpus[0]},count={new_gpus[1]}")
        yield differs("accelerator", text, f"{new_gpus[1]} {new_gpus[0]}", command)
    old_labels = {key: value for key, value in (has.get("labels") or {}).items() if not _of_google(key)}
    new_labels = {key: value for key, value in config["labels"].items() if not _of_google(key)}
    if old_labels != new_labels:
        flag = ",".join(f"{key}={value}" for key, value in config["labels"].items())
        yield differs("labels", _pairs(old_labels), _pairs(new_labels), update("--node-labels", flag))
    new_taints = {(one["key"], one["value"], one["effect"]) for one in config.get("taints") or []}
    old_taints = {(one.get("key"), one.get("value") or "", one.get("effect")) for one in has.get("taints") or []}
    # GKE taints nodes with GPUs by itself.
    old_taints -= {("nvidia.com/gpu", "present", "NO_SCHEDULE")} - new_taints
    if old_taints != new_taints:
        flag = ",".join(f"{one['key']}={one.get('value') or ''}:{one['effect']}" for one in pool.get("taints") or [])
        texts = [
            ", ".join(sorted(f"{key}={value}:{effect}" for key, value, effect in each)) or "none"
            for each in (old_taints, new_taints)
        ]
        yield differs("taints", *texts, update("--node-taints", flag))


def _of_google(label: str) -> bool:
    """GKE labels nodes by itself too."""
    domain = label.partition("/")[0] if "/" in label else ""
    return label.startswith("goog-") or domain.endswith(("gke.io", "google.com"))


def _pairs(labels: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(labels.items())) or "none"
