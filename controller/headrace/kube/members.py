"""Who belongs to a pool: its Pods and those of its endpoint picker, as the API server has them now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from headrace.config.pools import parse_pool
from headrace.core.fields import Object, mapping, mappings
from headrace.core.pool import Pool
from headrace.kube.objects import PODS, POOLS, SERVICES, find, list_all

_METRICS_PORT = 9090
_METRICS_PORT_NAMES = ("http-metrics", "metrics")


class Pickers(Struct, frozen=True):
    """The Pods of a pool's endpoint picker, and the port of their metrics. `trouble` says why there are none."""

    pods: Sequence[Object] = ()
    metrics_port: int = _METRICS_PORT
    trouble: str = ""


def read_pool(group: str, found: Object) -> Pool:
    """The pool of an object of a list, which comes without version and kind. Raises InvalidPool."""
    return parse_pool({"apiVersion": POOLS[group].api_version, "kind": "InferencePool", **found})


async def pods_of(client: Any, pool: Pool) -> list[Object]:
    """The Pods that a pool selects. Raises ApiError."""
    return await _pods(client, pool.namespace, pool.selector) if pool.selector else []


async def pickers_of(client: Any, pool: Pool) -> Pickers:
    """The Pods behind the Service that a pool names. Raises ApiError."""
    if pool.picker is None:
        return Pickers(trouble=f"pool {pool.namespace}/{pool.name} names no endpoint picker")
    if pool.picker.kind != "Service":
        return Pickers(trouble=f"its picker is a {pool.picker.kind}; only Services are followed")
    name = f"Service {pool.namespace}/{pool.picker.name}"
    service = await find(client, SERVICES.path(pool.namespace, pool.picker.name))
    if service is None:
        return Pickers(trouble=f"{name}, its endpoint picker, does not exist")
    spec = mapping(service.get("spec"))
    if not (selector := mapping(spec.get("selector"))):
        return Pickers(trouble=f"{name} selects no Pods")
    port = _METRICS_PORT
    for entry in mappings(spec.get("ports")):
        if entry.get("name") in _METRICS_PORT_NAMES:
            wanted = entry.get("targetPort", entry.get("port"))
            port = wanted if isinstance(wanted, int) else port
    pods = await _pods(client, pool.namespace, selector)
    return Pickers(pods, port, "" if pods else f"no Pod is behind {name}")


async def _pods(client: Any, namespace: str, labels: Mapping[str, Any]) -> list[Object]:
    selector = ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
    return list(mappings(await list_all(client, PODS, namespace, selector)))


def proxy_path(namespace: str, pod: str, port: int, path: str) -> str:
    """The path of a Pod's page through the API server; needs `get` on `pods/proxy`."""
    return f"{PODS.path(namespace, f'{pod}:{port}')}/proxy{path}"
