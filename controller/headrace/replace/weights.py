"""What the backendRefs of a rule become at each share. Pure: recorded lists in, new lists out.

The old pool's weight w is divided: w*(100-s)/100 stays, w*s/100 goes to the new pool. Weights are integers from 0 to
1,000,000 (Gateway API), so all weights of the rule are multiplied by the smallest K that makes both whole; that keeps
the proportions of the other backends exactly. Where K would take a weight over the limit, the largest K that fits is
taken and the division is rounded, the sum of the two staying exact. A rule whose weights leave no room even for that
is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from headrace.replace.plan import PoolRef

MAX_WEIGHT = 1_000_000
# Rounding may move the division by at most this many points of the pool's own share.
_TOLERATED = 0.5
# Fields of a backendRef that say no more than where requests go.
_PLAIN = frozenset({"group", "kind", "namespace", "name", "port", "weight"})

Ref = Mapping[str, Any]
Refs = tuple[Ref, ...]


class Unsplittable(ValueError):  # noqa: N818
    """Weights that a step cannot be written with."""


def names(ref: Ref, pool: PoolRef, route_namespace: str) -> bool:
    """Whether a backendRef of a route in a namespace names a pool."""
    return (
        ref.get("kind") == "InferencePool"
        and (ref.get("group") or "") == pool.group
        and (ref.get("namespace") or route_namespace) == pool.namespace
        and ref.get("name") == pool.name
    )


class Swap(Struct, frozen=True):
    """The pools of a replacement, seen from a route's namespace."""

    old: PoolRef
    new: PoolRef
    route_namespace: str

    def is_old(self, ref: Ref) -> bool:
        """Whether a backendRef names the old pool."""
        return names(ref, self.old, self.route_namespace)

    def is_new(self, ref: Ref) -> bool:
        """Whether a backendRef names the new pool."""
        return names(ref, self.new, self.route_namespace)

    def renamed(self, ref: Ref) -> dict[str, Any]:
        """A reference to the old pool as one to the new: everything else (filters, port) is kept."""
        found = {**ref, "group": self.new.group, "name": self.new.name}
        if "namespace" in ref or self.new.namespace != self.route_namespace:
            found["namespace"] = self.new.namespace
        return found


def weight_of(ref: Ref) -> int:
    """The weight of a backendRef; 1 where none is given."""
    weight = ref.get("weight", 1)
    return weight if isinstance(weight, int) and not isinstance(weight, bool) and weight >= 0 else 1


def _factor(weights: Sequence[int], moving: Sequence[int], percent: int) -> int:
    exact = math.lcm(*(100 // math.gcd(100, weight * percent) for weight in moving), 1)
    top = max((*weights, sum(moving), 1))
    return exact if top * exact <= MAX_WEIGHT else max(1, MAX_WEIGHT // top)


def refs_at(original: Sequence[Ref], swap: Swap, percent: int) -> Refs:
    """The rule's backendRefs with `percent` of the old pool's share at the new pool.

    At 0 they are the original ones and, at their end, the references to the new pool with weight 0. A reference to
    the new pool that the rule has already takes the share instead. Raises Unsplittable."""
    existing = [at for at, ref in enumerate(original) if swap.is_new(ref)]
    moving = [weight_of(ref) for ref in original if swap.is_old(ref)]
    own = weight_of(original[existing[0]]) if existing else 0
    weights = [weight_of(ref) for ref in original]
    divisor, factor = _fitting([*weights, own + sum(moving)], moving, percent)
    weights = [weight // divisor for weight in weights]
    own //= divisor
    moving = [weight // divisor for weight in moving]
    moved = [_rounded(weight * factor * percent) for weight in moving]
    kept = [weight * factor - part for weight, part in zip(moving, moved, strict=True)]
    for weight, part in zip(moving, moved, strict=True):
        if weight and abs(part / (weight * factor) * 100 - percent) > _TOLERATED:
            raise Unsplittable(
                f"weights {[weight_of(ref) for ref in original]} leave no room to give {percent} % of a weight of "
                f"{weight} away: make the rule's weights smaller (at most {MAX_WEIGHT // 100} each, and for both "
                f"pools together, will do)"
            )
    found: list[dict[str, Any]] = []
    left = iter(kept)
    for at, ref in enumerate(original):
        if swap.is_old(ref):
            found.append(_weighted(ref, next(left)))
        elif existing and at == existing[0]:
            found.append(_weighted(ref, own * factor + sum(moved)))
        else:
            found.append(_weighted(ref, weights[at] * factor))
    if not existing:
        olds = [ref for ref in original if swap.is_old(ref)]
        for ref, part in zip(olds, moved, strict=True):
            found.append({**swap.renamed(ref), "weight": part})
    return tuple(found)


def _fitting(weights: Sequence[int], moving: Sequence[int], percent: int) -> tuple[int, int]:
    """(divisor, factor) of all weights. The divisor is other than 1 only where the exact factor would not fit."""
    factor = _factor(weights, moving, percent)
    if all(weight * factor * percent % 100 == 0 for weight in moving):
        return 1, factor
    common = math.gcd(*weights) or 1
    return common, _factor([weight // common for weight in weights], [weight // common for weight in moving], percent)


def _rounded(hundredths: int) -> int:
    return (hundredths + 50) // 100


def _weighted(ref: Ref, weight: int) -> dict[str, Any]:
    """The reference with a weight; untouched where it has that weight already, given or by default."""
    return dict(ref) if weight_of(ref) == weight else {**ref, "weight": weight}


def final_refs(original: Sequence[Ref], swap: Swap) -> Refs:
    """The rule's backendRefs once the replacement is over: the new pool in the old one's place, weights as recorded."""
    existing = [at for at, ref in enumerate(original) if swap.is_new(ref)]
    if not existing:
        return tuple(swap.renamed(ref) if swap.is_old(ref) else dict(ref) for ref in original)
    sum_of_old = sum(weight_of(ref) for ref in original if swap.is_old(ref))
    return tuple(
        _weighted(ref, weight_of(ref) + sum_of_old) if at == existing[0] else dict(ref)
        for at, ref in enumerate(original)
        if not swap.is_old(ref)
    )


def identity(ref: Ref, route_namespace: str) -> tuple[str, str, str, str, Any]:
    """What tells a backend of a rule from another: what it names, with the API's defaults."""
    return (
        ref.get("group") or "",
        ref.get("kind") or "Service",
        ref.get("namespace") or route_namespace,
        ref.get("name") or "",
        ref.get("port"),
    )


def restored(current: Sequence[Ref], original: Sequence[Ref], swap: Swap) -> Refs:
    """The rule's backendRefs as recorded; what somebody else added meanwhile is kept as it is.

    Backends that the record has get their recorded weights, and those that somebody removed stay removed, save the
    pools of the replacement itself: the old one returns and the new one goes, unless the record had it."""
    namespace = swap.route_namespace
    known = {identity(ref, namespace) for ref in original}
    foreign = [ref for ref in current if identity(ref, namespace) not in known and not swap.is_new(ref)]
    present = {identity(ref, namespace) for ref in current}
    if not foreign:
        missing = [
            ref for ref in original
            if identity(ref, namespace) not in present and not swap.is_old(ref) and not swap.is_new(ref)
        ]  # fmt: skip
        if not missing:
            return tuple(dict(ref) for ref in original)
    kept = [ref for ref in original if identity(ref, namespace) in present or swap.is_old(ref) or swap.is_new(ref)]
    return tuple(dict(ref) for ref in (*kept, *foreign))


def without_weight(ref: Ref) -> dict[str, Any]:
    """All of a backendRef but its weight."""
    return {key: value for key, value in ref.items() if key != "weight"}


def introduced(current: Sequence[Ref], wanted: Sequence[Ref], swap: Swap) -> list[Ref]:
    """The backends of `wanted` that a rule with `current` does not have, save the old pool in the new one's place.

    What is wanted comes from a record that others can write. It may give weights and the old pool back; it may bring
    no backend and no filter into a rule, and nothing into a rule that leads to neither pool."""
    there = [without_weight(ref) for ref in current]
    pools = [ref for ref in current if swap.is_old(ref) or swap.is_new(ref)]
    # Where a pool has filters, one without them is another backend.
    plain = bool(pools) and all(set(ref) <= _PLAIN for ref in pools)

    def known(ref: Ref) -> bool:
        if without_weight(ref) in there:
            return True
        if not swap.is_old(ref):
            return False
        return (plain and set(ref) <= _PLAIN) or without_weight(swap.renamed(ref)) in there

    return [ref for ref in wanted if not known(ref)]
