"""From Pod objects to endpoints: ready Pods of the pool, one endpoint for each of their active target ports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from headrace.core import Endpoint, Pool

# Which of the pool's target ports a Pod serves on (data parallel ranks may be fewer on some Pods): "8000,8002".
ACTIVE_PORTS_ANNOTATIONS = ("inference.networking.k8s.io/active-ports", "llm-d.ai/active-ports")


def endpoints_of(pods: Iterable[Mapping[str, Any]], pool: Pool) -> tuple[Endpoint, ...]:
    """The endpoints of the Pods that belong to the pool, ready and not terminating, sorted by name and port."""
    return _sorted(endpoint for pod in pods for endpoint in _endpoints_of_pod(pod, pool))


class PodEndpoints:
    """`endpoints_of` again and again, for Pods of which a few change: what the others came to is kept.

    A Pod that has changed must be another object."""

    def __init__(self) -> None:
        self._pool: Pool | None = None
        self._known: dict[tuple[str, str], tuple[Mapping[str, Any], tuple[Endpoint, ...]]] = {}

    def of(self, pods: Mapping[tuple[str, str], Mapping[str, Any]], pool: Pool) -> tuple[Endpoint, ...]:
        """The endpoints of these Pods, which are keyed by namespace and name."""
        known = self._known if pool == self._pool else {}
        nothing = (None, ())
        self._pool = pool
        self._known = {
            key: found if (found := known.get(key, nothing))[0] is pod else (pod, tuple(_endpoints_of_pod(pod, pool)))
            for key, pod in pods.items()
        }
        return _sorted(endpoint for _, endpoints in self._known.values() for endpoint in endpoints)


def _sorted(endpoints: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    return tuple(sorted(endpoints, key=lambda e: (e.namespace, e.pod_name, e.port)))


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether the Pod's Ready condition is true and nobody has asked for its end."""
    if (pod.get("metadata") or {}).get("deletionTimestamp") is not None:
        return False
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)


def _endpoints_of_pod(pod: Mapping[str, Any], pool: Pool) -> Iterable[Endpoint]:
    metadata = pod.get("metadata") or {}
    labels = {str(k): str(v) for k, v in (metadata.get("labels") or {}).items()}
    address = (pod.get("status") or {}).get("podIP")
    if metadata.get("namespace") != pool.namespace or not pool.selects(labels) or not address or not is_ready(pod):
        return
    active = _active_ports(metadata.get("annotations") or {})
    for rank, port in enumerate(pool.target_ports):
        if active is None or port in active:
            yield Endpoint(
                namespace=pool.namespace,
                pod_name=str(metadata.get("name", "")),
                address=str(address),
                port=port,
                labels=labels,
                rank=rank,
                uid=str(metadata.get("uid", "")),
                node_name=str((pod.get("spec") or {}).get("nodeName") or ""),
            )


def _active_ports(annotations: Mapping[str, Any]) -> frozenset[int] | None:
    """The ports of the annotation; None where there is none. What is not a number in it names no port."""
    for name in ACTIVE_PORTS_ANNOTATIONS:
        text = annotations.get(name)
        if text is not None:
            parts = (part.strip() for part in str(text).split(","))
            return frozenset(int(part) for part in parts if part.isascii() and part.isdigit())
    return None
