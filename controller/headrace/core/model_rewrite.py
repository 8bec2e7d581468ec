"""InferenceModelRewrite: which model a request for another one is sent to, split by weight.

Source: `inference.networking.x-k8s.io/v1alpha2` of the Gateway API Inference Extension. Precedence, in this order: a
rule with an exact match over one for every model; the older object; the earlier rule of an object."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from msgspec import Struct

from headrace.core.objective import PoolReference

MAX_WEIGHT = 1_000_000


class RewriteTarget(Struct, frozen=True):
    """A model, and its share among the rule's targets."""

    model: str
    weight: int = 1


class RewriteRule(Struct, frozen=True):
    """Requests for one of `models` (empty: for any) go to one of `targets` (empty: where they were going)."""

    models: frozenset[str]
    targets: tuple[RewriteTarget, ...]


class ModelRewrite(Struct, frozen=True):
    """An InferenceModelRewrite. `created` is its creation timestamp as Kubernetes writes it, which sorts by time."""

    namespace: str
    name: str
    pool: PoolReference
    rules: tuple[RewriteRule, ...]
    created: str = ""


class Rewritten(Struct, frozen=True):
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
