"""InferenceObjective: a name that requests may carry, and the priority it gives them.

Source: `inference.networking.x-k8s.io/v1alpha2` of the Gateway API Inference Extension."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headrace.core.invalid import InvalidField
from headrace.core.pool import EXTENSION_GROUP, GA_GROUP, VERSION_OF_GROUP

_INT64 = 1 << 63


class InvalidObject(InvalidField):
    """An object that cannot be used: names the field, its value and the fix."""


@dataclass(frozen=True)
class PoolReference:
    """The pool an object speaks of, in its own namespace."""

    name: str
    group: str = GA_GROUP


@dataclass(frozen=True)
class Objective:
    """An InferenceObjective. `priority`: higher goes first; below 0 its requests may be shed."""

    namespace: str
    name: str
    pool: PoolReference
    priority: int = 0


def parse_objective(obj: Mapping[str, Any]) -> Objective:
    """The objective of a Kubernetes object (decoded JSON). Raises InvalidObject."""
    namespace, name, spec = read_head(obj, "InferenceObjective")
    priority = spec.get("priority")
    if priority is None:
        priority = 0
    if not isinstance(priority, int) or isinstance(priority, bool) or not -_INT64 <= priority < _INT64:
        raise InvalidObject("spec.priority", priority, "give a whole number; below 0 means that requests may be shed")
    return Objective(namespace, name, read_pool_reference(spec), priority)


def read_head(obj: Mapping[str, Any], kind: str) -> tuple[str, str, Mapping[str, Any]]:
    """Namespace, name and spec of an object of the extension group. Raises InvalidObject."""
    api_version = f"{EXTENSION_GROUP}/{VERSION_OF_GROUP[EXTENSION_GROUP]}"
    if obj.get("apiVersion") != api_version:
        raise InvalidObject("apiVersion", obj.get("apiVersion"), f"use {api_version}")
    if obj.get("kind") != kind:
        raise InvalidObject("kind", obj.get("kind"), f"use {kind}")
    metadata = read_mapping(obj, "metadata", "")
    name = read_text(metadata, "name", "metadata")
    return str(metadata.get("namespace") or "default"), name, read_mapping(obj, "spec", "")


def read_pool_reference(spec: Mapping[str, Any]) -> PoolReference:
    """`spec.poolRef`. Raises InvalidObject."""
    reference = read_mapping(spec, "poolRef", "spec")
    kind = reference.get("kind") or "InferencePool"
    if kind != "InferencePool":
        raise InvalidObject("spec.poolRef.kind", kind, "use InferencePool")
    group = reference.get("group") or GA_GROUP
    if not isinstance(group, str) or group not in VERSION_OF_GROUP:
        raise InvalidObject("spec.poolRef.group", group, f"use {' or '.join(VERSION_OF_GROUP)}")
    return PoolReference(read_text(reference, "name", "spec.poolRef"), group)


def read_mapping(parent: Mapping[str, Any], key: str, path: str) -> Mapping[str, Any]:
    """An object field. Raises InvalidObject."""
    value = parent.get(key)
    if not isinstance(value, Mapping):
        raise InvalidObject(f"{path}.{key}" if path else key, value, "give an object")
    return value


def read_text(parent: Mapping[str, Any], key: str, path: str, limit: int = 253) -> str:
    """A text field of 1 to `limit` characters. Raises InvalidObject."""
    value = parent.get(key)
    if not isinstance(value, str) or not value or len(value) > limit:
        raise InvalidObject(f"{path}.{key}", value, f"give a text of 1 to {limit} characters")
    return value
