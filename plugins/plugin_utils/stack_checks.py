"""What is wrong with an inventory's stack: ports, names, pools without servers, routes to nowhere.

Pure functions of the variables' values; each yields lines that name the variable, its value and the fix.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# What the group of a pool that names none is, as the roles' defaults have it.
DEFAULT_NAMESPACE = "default"
DEFAULT_PORT = 8000
DEFAULT_PICKER_PORT = 9002
DEFAULT_STARTUP_SECONDS = 600

Values = Mapping[str, Any]


class Unresolved:
    """A value that needs a fact which a later play sets."""


UNRESOLVED = Unresolved()


def stack_problems(values: Values) -> Iterator[str]:
    """All of the below, for an inventory."""
    yield from wrong_ports(values)
    yield from pools_without_parts(values)
    yield from duplicate_names(values)
    yield from routes_to_nowhere(values)
    yield from requests_not_kept(values)
    yield from wrong_place(values, shutil.which, os.path.exists)


def wrong_ports(values: Values) -> Iterator[str]:
    """Ports outside 1 to 65535, wherever the inventory names one."""

    def check(where: str, port: Any) -> Iterator[str]:
        if isinstance(port, Unresolved):
            return
        text = str(port)
        if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
            yield f"{where}: {port} is no port. Fix: a number from 1 to 65535."

    for name in ("vllm_model_server_port", "inference_pool_picker_port"):
        if name in values:
            yield from check(name, values[name])
    for port in _list(values, "inference_pool_target_ports"):
        yield from check("inference_pool_target_ports", port)
    for entry in _entries(values, "vllm_model_server_groups"):
        if "port" in entry:
            yield from check(f"vllm_model_server_groups[{entry.get('name')}].port", entry["port"])
    for entry in _entries(values, "inference_pool_pools"):
        if "picker_port" in entry:
            yield from check(f"inference_pool_pools[{entry.get('name')}].picker_port", entry["picker_port"])
        for port in entry.get("target_ports") or []:
            yield from check(f"inference_pool_pools[{entry.get('name')}].target_ports", port)
    for entry in _entries(values, "inference_gateway_gateways"):
        for listener in entry.get("listeners") or []:
            yield from check(f"inference_gateway_gateways[{entry.get('name')}].listeners.port", listener.get("port"))
    for entry in _entries(values, "inference_gateway_routes"):
        for backend in _backends(entry):
            if "service" in backend:
                yield from check(f"inference_gateway_routes[{entry.get('name')}].backends.port", backend.get("port"))
    address = values.get("local_cluster_publish_address")
    if isinstance(address, str) and address:
        yield from check("local_cluster_publish_address (address:port)", address.rpartition(":")[2])


def duplicate_names(values: Values) -> Iterator[str]:
    """Two entries of one list that would be one object."""
    pools = _entries(values, "inference_pool_pools")
    lists: list[tuple[str, str, list[tuple[Any, ...]]]] = [
        (
            "vllm_model_server_groups",
            "name",
            [
                (_namespace(entry, values, "vllm_model_server"), entry.get("name"))
                for entry in _entries(values, "vllm_model_server_groups")
            ],
        ),
        (
            "inference_pool_pools",
            "name",
            [
                (_namespace(entry, values, "inference_pool"), _version(entry, values), entry.get("name"))
                for entry in pools
            ],
        ),
        (
            "inference_pool_pools",
            "picker",
            [
                (_namespace(entry, values, "inference_pool"), entry.get("picker"))
                for entry in pools
                if entry.get("picker")
            ],
        ),
        (
            "inference_gateway_gateways",
            "name",
            [
                (_namespace(entry, values, "inference_gateway"), entry.get("name"))
                for entry in _entries(values, "inference_gateway_gateways")
            ],
        ),
        (
            "inference_gateway_routes",
            "name",
            [
                (_namespace(entry, values, "inference_gateway"), entry.get("name"))
                for entry in _entries(values, "inference_gateway_routes")
            ],
        ),
        ("gpu_node_pools", "name", [(entry.get("name"),) for entry in _entries(values, "gpu_node_pools")]),
    ]
    for variable, key, names in lists:
        for name in sorted({name for name in names if names.count(name) > 1}, key=str):
            extra = " An endpoint picker serves one pool." if key == "picker" else ""
            yield f"{variable}: two entries have the {key} {name[-1]}.{extra} Fix: give each its own {key}."


def pools_without_parts(values: Values) -> Iterator[str]:
    """Pools that name no endpoint picker, or whose selector matches no model server of the inventory."""
    groups = _entries(values, "vllm_model_server_groups")
    for entry in _entries(values, "inference_pool_pools"):
        name, namespace = entry.get("name"), _namespace(entry, values, "inference_pool")
        if not entry.get("picker"):
            yield (
                f"inference_pool_pools[{name}].picker: the pool names no endpoint picker (EPP). "
                f"Fix: set its key picker to the name of the picker's Service, such as {name}-epp."
            )
        if entry.get("create", values.get("inference_pool_create", True)) is False or entry.get(
            "external_model_servers"
        ):
            continue
        selector = entry.get("selector")
        if not isinstance(selector, dict) or not selector:
            yield (
                f"inference_pool_pools[{name}].selector: the pool selects nothing. Fix: set it to the "
                f"labels of its model servers."
            )
            continue
        matching = [
            group
            for group in groups
            if _namespace(group, values, "vllm_model_server") == namespace
            and selector.items() <= _labels(group).items()
        ]
        if not matching:
            there = "; ".join(
                f"{group.get('name')} in {_namespace(group, values, 'vllm_model_server')} has {_labels(group)}"
                for group in groups
            )
            yield (
                f"inference_pool_pools[{name}].selector: {selector} in namespace {namespace} matches "
                f"no model server of vllm_model_server_groups "
                f"({there or 'there is none'}). Fix: select labels that a group has, or set the "
                f"pool's key external_model_servers to true "
                f"where somebody else runs them."
            )
            continue
        targets = {
            str(port)
            for port in entry.get("target_ports") or values.get("inference_pool_target_ports") or [DEFAULT_PORT]
        }
        for group in matching:
            port = str(group.get("port", values.get("vllm_model_server_port", DEFAULT_PORT)))
            if port not in targets:
                yield (
                    f"inference_pool_pools[{name}].target_ports: requests go to port "
                    f"{', '.join(sorted(targets))}, but model servers "
                    f"{group.get('name')} listen on {port}. Fix: make target_ports and the group's port the same."
                )


def routes_to_nowhere(values: Values) -> Iterator[str]:
    """Routes to pools or Gateways that the inventory has not got."""
    pools = _entries(values, "inference_pool_pools")
    known = {
        (_namespace(entry, values, "inference_pool"), _version(entry, values), entry.get("name")) for entry in pools
    }
    gateways = {
        (_namespace(entry, values, "inference_gateway"), entry.get("name"))
        for entry in _entries(values, "inference_gateway_gateways")
    }
    for route in _entries(values, "inference_gateway_routes"):
        here, namespace = (
            f"inference_gateway_routes[{route.get('name')}]",
            _namespace(route, values, "inference_gateway"),
        )
        parent = (route.get("gateway_namespace", namespace), route.get("gateway"))
        if parent not in gateways:
            close = _nearest(parent[1], [name for _, name in gateways])
            yield (
                f"{here}.gateway: there is no Gateway {parent[1]} in namespace {parent[0]} in "
                f"inference_gateway_gateways. Fix: {close}"
            )
        for backend in _backends(route):
            if "pool" not in backend:
                continue
            target = (backend.get("namespace", namespace), backend.get("api_version", "v1"), backend["pool"])
            if target in known:
                continue
            other = [version for at, version, name in known if (at, name) == (target[0], target[2])]
            fix = (
                f"set the backend's api_version to {other[0]}."
                if other
                else _nearest(target[2], [name for _, _, name in known])
            )
            yield (
                f"{here}.backends: there is no pool {target[2]} ({target[1]}) in namespace {target[0]} in "
                f"inference_pool_pools. Fix: {fix}"
            )


def requests_not_kept(values: Values) -> Iterator[str]:
    """Groups that scale to zero behind a picker that does not keep requests until a first server is ready."""
    pools = {
        (_namespace(entry, values, "inference_pool"), entry.get("name")): entry
        for entry in _entries(values, "inference_pool_pools")
    }
    for group in _entries(values, "vllm_model_server_groups"):
        scaling = group.get("autoscaling") or values.get("vllm_model_server_autoscaling") or {}
        if not isinstance(scaling, dict) or str(scaling.get("min", 1)) != "0" or not scaling.get("pool"):
            continue
        key = (_namespace(group, values, "vllm_model_server"), scaling["pool"])
        here = f"vllm_model_server_groups[{group.get('name')}].autoscaling"
        if key not in pools:
            close = _nearest(key[1], [name for _, name in pools])
            yield f"{here}.pool: there is no pool {key[1]} in namespace {key[0]} in inference_pool_pools. Fix: {close}"
            continue
        startup = group.get("startup_seconds", values.get("vllm_model_server_startup_seconds", DEFAULT_STARTUP_SECONDS))
        yield from _not_kept(values, key, pools[key], here, float(startup))


def _not_kept(
    values: Values, key: tuple[Any, Any], pool: Mapping[str, Any], here: str, startup: float
) -> Iterator[str]:
    config = pool.get("picker_config", values.get("inference_pool_picker_config"))
    config = config if isinstance(config, dict) else {}
    flow = config.get("flowControl") or {}
    # 0 is for ever; what is left out is as long as a request may wait at all.
    ttl = duration_seconds(flow.get("noEndpointRequestTTL", flow.get("defaultRequestTTL", "60s")))
    if "flowControl" not in (config.get("featureGates") or []):
        problem = "its picker does not keep requests"
    elif ttl is not None and (ttl == 0 or ttl > startup):
        problem = ""
    else:
        problem = f"its picker keeps requests for {ttl:g} s" if ttl is not None else "its time to live is no duration"
    if problem:
        yield (
            f"{here}.min: 0, and a server of the group may take {startup:g} s to start, but of pool {key[1]} "
            f"{problem}. "
            f"Fix: give inference_pool_pools[{key[1]}].picker_config featureGates: [flowControl] and "
            f"flowControl: {{noEndpointRequestTTL: {startup * 1.5:.0f}s}}, or set min to 1."
        )
    for route in _entries(values, "inference_gateway_routes"):
        namespace = _namespace(route, values, "inference_gateway")
        for rule in route.get("rules") or []:
            limit = duration_seconds(rule.get("timeout") or "0s") if isinstance(rule, dict) else 0
            leads = any(
                (backend.get("namespace", namespace), backend.get("pool")) == key
                for backend in (rule.get("backends") or [] if isinstance(rule, dict) else [])
                if isinstance(backend, dict)
            )
            if leads and limit and limit <= startup:
                yield (
                    f"inference_gateway_routes[{route.get('name')}].rules.timeout: {rule['timeout']}, but pool "
                    f"{key[1]} may have no server, and one takes up to {startup:g} s to start. "
                    "Fix: a longer timeout, or none."
                )


def duration_seconds(text: Any) -> float | None:
    """A duration such as `1m30s` in seconds; None where it is none."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", str(text))
    if "".join(number + unit for number, unit in parts) != str(text):
        return 0.0 if str(text) == "0" else None
    return sum(float(number) * units[unit] for number, unit in parts)


def wrong_place(values: Values, which: Callable[[str], str | None], exists: Callable[[str], bool]) -> Iterator[str]:
    """What an inventory without a cluster of its own must bring, and that it simulates no GPUs."""
    if values.get("headrace_local_cluster"):
        return
    if not values.get("headrace_context"):
        yield (
            "headrace_context: empty. Fix: name the context of the kubeconfig, so that nothing is "
            "applied to another cluster than the one meant."
        )
    kubeconfig = values.get("headrace_kubeconfig")
    if kubeconfig and not exists(str(kubeconfig)):
        yield (
            f"headrace_kubeconfig: there is no file {kubeconfig}. Fix: the path of a kubeconfig, or empty "
            f"for the environment's."
        )
    if not values.get("headrace_controller_image"):
        yield (
            "headrace_controller_image: empty. Fix: the image of Headrace in a registry that the "
            "cluster's nodes can pull from."
        )
    folder = values.get("headrace_binary_dir") or ""
    if not which(f"{folder}/helm" if folder else "helm"):
        where = f"in headrace_binary_dir ({folder})" if folder else "in the PATH"
        yield (
            f"headrace_binary_dir: there is no helm {where}, which installs Envoy Gateway. Fix: install "
            f"Helm 3, or name the folder that holds it."
        )
    simulated = values.get("gpu_node_pool_simulated_gpus", 0)
    if str(simulated) not in ("0", ""):
        yield (
            f"gpu_node_pool_simulated_gpus: {simulated}, but this inventory has no local cluster. On "
            f"a real cluster simulated GPUs would take Pods "
            f"that need real ones. Fix: 0."
        )


# ---- reading entries -------------------------------------------------------------------------------------------------


def _list(values: Values, name: str) -> list[Any]:
    value = values.get(name)
    return value if isinstance(value, list) else []


def _entries(values: Values, name: str) -> list[dict[str, Any]]:
    return [entry for entry in _list(values, name) if isinstance(entry, dict)]


def _backends(route: Mapping[str, Any]) -> list[dict[str, Any]]:
    rules = [rule for rule in route.get("rules") or [] if isinstance(rule, dict)]
    return [backend for rule in rules for backend in rule.get("backends") or [] if isinstance(backend, dict)]


def _namespace(entry: Mapping[str, Any], values: Values, role: str) -> Any:
    return entry.get("namespace", values.get(f"{role}_namespace", DEFAULT_NAMESPACE))


def _version(entry: Mapping[str, Any], values: Values) -> Any:
    return entry.get("api_version", values.get("inference_pool_api_version", "v1"))


def _labels(group: Mapping[str, Any]) -> dict[str, Any]:
    return group.get("labels") or {"app": group.get("name")}


def _nearest(name: Any, known: list[Any]) -> str:
    close = difflib.get_close_matches(str(name), [str(one) for one in known], n=1, cutoff=0.5)
    return (
        f"did you mean {close[0]}?"
        if close
        else f"one of {', '.join(sorted(map(str, known))) or 'those you define there'}."
    )
