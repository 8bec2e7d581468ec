"""InferenceModelRewrite: which model a request for another one is sent to, split by weight.

Source: `inference.networking.x-k8s.io/v1alpha2` of the Gateway API Inference Extension. Precedence, in this order: a
rule with an exact match over one for every model; the older object; the earlier rule of an object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from headrace.core.objective import (
    InvalidObject,
    PoolReference,
    read_head,
    read_mapping,
    read_pool_reference,
    read_text,
)

MAX_WEIGHT = 1_000_000
_MAX_MODEL_LENGTH = 1024


@dataclass(frozen=True)
class RewriteTarget:
    """A model, and its share among the rule's targets."""

    model: str
    weight: int = 1


@dataclass(frozen=True)
class RewriteRule:
    """Requests for one of `models` (empty: for any) go to one of `targets` (empty: where they were going)."""

    models: frozenset[str]
    targets: tuple[RewriteTarget, ...]


@dataclass(frozen=True)
class ModelRewrite:
    """An InferenceModelRewrite. `created` is its creation timestamp as Kubernetes writes it, which sorts by time."""

    namespace: str
    name: str
    pool: PoolReference
    rules: tuple[RewriteRule, ...]
    created: str = ""


@dataclass(frozen=True)
class Rewritten:
    """The target that was drawn, and the name of the object that says so."""

    model: str
    rewrite: str


class RewriteTable:
    """The rules of all rewrites of a pool, by their precedence."""

    def __init__(self, rewrites: Iterable[ModelRewrite] = ()) -> None:
        self._exact: dict[str, tuple[str, RewriteRule]] = {}
        self._generic: tuple[str, RewriteRule] | None = None
        for rewrite in sorted(rewrites, key=lambda r: (r.created or "9999", r.namespace, r.name)):
            for rule in rewrite.rules:
                for model in rule.models:
                    self._exact.setdefault(model, (rewrite.name, rule))
                if not rule.models and self._generic is None:
                    self._generic = (rewrite.name, rule)

    def __bool__(self) -> bool:
        return bool(self._exact) or self._generic is not None

    @property
    def models(self) -> list[str]:
        """The models that a rule names, sorted; `*` last where a rule is for every model."""
        return sorted(self._exact) + ["*"] * (self._generic is not None)

    def choose(self, model: str, rng: Random) -> Rewritten | None:
        """The model that a request for `model` goes to; None where no rule is for it."""
        found = self._exact.get(model, self._generic)
        if found is None or not found[1].targets:
            return None
        name, rule = found
        if len(rule.targets) == 1:
            return Rewritten(rule.targets[0].model, name)
        (target,) = rng.choices(rule.targets, [target.weight for target in rule.targets])
        return Rewritten(target.model, name)


def parse_model_rewrite(obj: Mapping[str, Any]) -> ModelRewrite:
    """The rewrite of a Kubernetes object (decoded JSON). Raises InvalidObject."""
    namespace, name, spec = read_head(obj, "InferenceModelRewrite")
    rules = tuple(_rule(entry, path) for entry, path in _entries(spec, "rules", "spec", required=True))
    created = obj["metadata"].get("creationTimestamp")
    return ModelRewrite(namespace, name, read_pool_reference(spec), rules, created if isinstance(created, str) else "")


def _rule(rule: Mapping[str, Any], path: str) -> RewriteRule:
    models = frozenset(_match(entry, at) for entry, at in _entries(rule, "matches", path))
    targets = tuple(_target(entry, at) for entry, at in _entries(rule, "targets", path))
    weighted = [entry.get("weight") is not None for entry, _ in _entries(rule, "targets", path)]
    if any(weighted) and not all(weighted):
        raise InvalidObject(f"{path}.targets", len(weighted), "give a weight to all of them, or to none")
    return RewriteRule(models, targets)


def _match(match: Mapping[str, Any], path: str) -> str:
    model = read_mapping(match, "model", path)
    kind = model.get("type") or "Exact"
    if kind != "Exact":
        raise InvalidObject(f"{path}.model.type", kind, "use Exact")
    return read_text(model, "value", f"{path}.model", _MAX_MODEL_LENGTH)


def _target(target: Mapping[str, Any], path: str) -> RewriteTarget:
    weight = target.get("weight")
    if weight is None:
        weight = 1
    if not isinstance(weight, int) or isinstance(weight, bool) or not 1 <= weight <= MAX_WEIGHT:
        raise InvalidObject(f"{path}.weight", weight, f"give a weight of 1 to {MAX_WEIGHT}")
    return RewriteTarget(read_text(target, "modelRewrite", path, _MAX_MODEL_LENGTH), weight)


def _entries(
    parent: Mapping[str, Any], key: str, path: str, *, required: bool = False
) -> list[tuple[Mapping[str, Any], str]]:
    """The objects of a list, each with its path."""
    listed = parent.get(key)
    if listed is None and not required:
        return []
    if not isinstance(listed, list):
        raise InvalidObject(f"{path}.{key}", listed, "give a list")
    for number, entry in enumerate(listed):
        if not isinstance(entry, Mapping):
            raise InvalidObject(f"{path}.{key}[{number}]", entry, "give an object")
    return [(entry, f"{path}.{key}[{number}]") for number, entry in enumerate(listed)]
