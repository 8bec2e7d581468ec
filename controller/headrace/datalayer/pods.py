"""From Pod objects to endpoints: ready Pods of the pool, one endpoint for each of their active target ports."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from headrace.core import Endpoint, Pool, fields
from headrace.core.fields import has_condition, is_digits, mapping
from headrace.protocol.objects import ACTIVE_PORTS_ANNOTATIONS, READY

logger = logging.getLogger(__name__)

_MOST_SHOWN = 100


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
    if mapping(pod.get("metadata")).get("deletionTimestamp") is not None:
        return False
    return has_condition(pod.get("status"), READY)


def _endpoints_of_pod(pod: Mapping[str, Any], pool: Pool) -> Iterable[Endpoint]:
    metadata = mapping(pod.get("metadata"))
    labels = {str(k): v for k, v in mapping(metadata.get("labels")).items() if isinstance(v, str)}
    address = fields.address(mapping(pod.get("status")).get("podIP"))
    if metadata.get("namespace") != pool.namespace or not pool.selects(labels) or not address or not is_ready(pod):
        return
    name = fields.text(metadata.get("name"))
    active = _active_ports(mapping(metadata.get("annotations")), f"{pool.namespace}/{name}")
    for rank, port in enumerate(pool.target_ports):
        if active is None or port in active:
            yield Endpoint(
                namespace=pool.namespace,
                pod_name=name,
                address=address,
                port=port,
                labels=labels,
                rank=rank,
                uid=fields.text(metadata.get("uid")),
                node_name=fields.text(mapping(pod.get("spec")).get("nodeName")),
            )


def _active_ports(annotations: Mapping[str, Any], pod: str) -> frozenset[int] | None:
    """The ports of the annotation; None where there is none. What is not a port in it names none, and is logged."""
    for name in ACTIVE_PORTS_ANNOTATIONS:
        value = annotations.get(name)
        if value is not None:
            parts = [part.strip() for part in fields.text(value).split(",")]
            if not all(is_digits(part, 5) for part in parts):
                _complain(pod, name, fields.text(value)[:_MOST_SHOWN])
            return frozenset(int(part) for part in parts if is_digits(part, 5))
    return None


@lru_cache(maxsize=4096)
def _complain(pod: str, annotation: str, value: str) -> None:
    """Log it once: Pods are read anew after each change of any of them."""
    logger.warning("Pod %s: annotation %s: %r: write the numbers of ports, as 8000,8001", pod, annotation, value)
