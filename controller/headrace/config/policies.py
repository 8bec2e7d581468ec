"""InferenceObjective and InferenceModelRewrite, from objects of the Kubernetes API.

Source: `inference.networking.x-k8s.io/v1alpha2` of the Gateway API Inference Extension. Objects may have been stored
under another schema, so fields that are not known are no error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta, Struct

from headrace.config.decode import Refused, decode
from headrace.config.pools import Metadata, Name
from headrace.core.model_rewrite import MAX_WEIGHT, ModelRewrite, RewriteRule, RewriteTarget
from headrace.core.objective import InvalidObject, Objective, PoolReference
from headrace.core.pool import EXTENSION_GROUP, GA_GROUP, VERSION_OF_GROUP

_Model = Annotated[str, Meta(min_length=1, max_length=1024)]
_Spec = TypeVar("_Spec")


class _PoolRef(Struct, frozen=True):
    name: Name
    kind: Literal["InferencePool", ""] = "InferencePool"
    group: str = GA_GROUP

    def __post_init__(self) -> None:
        if self.group and self.group not in VERSION_OF_GROUP:
            raise Refused("group", f"use {' or '.join(VERSION_OF_GROUP)}")

    def reference(self) -> PoolReference:
        return PoolReference(self.name, self.group or GA_GROUP)


class _Objective(Struct, frozen=True, rename="camel"):
    pool_ref: _PoolRef
    # Below 0 its requests may be shed.
    priority: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] = 0


class _Asked(Struct, frozen=True):
    value: _Model
    type: Literal["Exact", ""] = "Exact"


class _Match(Struct, frozen=True):
    model: _Asked


class _Target(Struct, frozen=True, rename="camel"):
    model_rewrite: _Model
    weight: Annotated[int, Meta(ge=1, le=MAX_WEIGHT)] | None = None


class _Rule(Struct, frozen=True):
    matches: tuple[_Match, ...] = ()
    targets: tuple[_Target, ...] = ()

    def __post_init__(self) -> None:
        if len({target.weight is None for target in self.targets}) > 1:
            raise Refused("targets", "give a weight to all of them, or to none")


class _Rewrite(Struct, frozen=True, rename="camel"):
    pool_ref: _PoolRef
    rules: tuple[_Rule, ...]


def parse_objective(obj: Mapping[str, Any]) -> Objective:
    """The objective of a Kubernetes object (decoded JSON). Raises InvalidObject."""
    namespace, name, spec = _read(obj, "InferenceObjective", _Objective)
    return Objective(namespace, name, spec.pool_ref.reference(), spec.priority)


def parse_model_rewrite(obj: Mapping[str, Any]) -> ModelRewrite:
    """The rewrite of a Kubernetes object (decoded JSON). Raises InvalidObject."""
    namespace, name, spec = _read(obj, "InferenceModelRewrite", _Rewrite)
    rules = tuple(
        RewriteRule(
            frozenset(match.model.value for match in rule.matches),
            tuple(RewriteTarget(target.model_rewrite, target.weight or 1) for target in rule.targets),
        )
        for rule in spec.rules
    )
    created = obj["metadata"].get("creationTimestamp")
    return ModelRewrite(namespace, name, spec.pool_ref.reference(), rules, created if isinstance(created, str) else "")


def _read(obj: Mapping[str, Any], kind: str, wanted: type[_Spec]) -> tuple[str, str, _Spec]:
    """Namespace, name and spec of an object of the extension group. Raises InvalidObject."""
    version = f"{EXTENSION_GROUP}/{VERSION_OF_GROUP[EXTENSION_GROUP]}"
    for field, known in (("apiVersion", version), ("kind", kind)):
        if obj.get(field) != known:
            raise InvalidObject(field, obj.get(field), f"use {known}")
    metadata = decode(obj.get("metadata"), Metadata, "metadata", InvalidObject)
    spec = decode(obj.get("spec"), wanted, "spec", InvalidObject)
    return metadata.namespace_name, metadata.name, spec
