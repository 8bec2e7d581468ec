"""Routes (HTTP and gRPC) that lead to the old pool: finding, recording and changing them. Pure.

Rules and backendRefs are atomic lists, which server-side apply can only own whole; so weights change by JSON Patch, and
every operation is preceded by a `test` of what it replaces: a route that somebody else changed is never overwritten."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct

from headrace.core.fields import mapping, text
from headrace.kube.routes import is_granted, refs_of, rules_of
from headrace.protocol.objects import GATEWAY_GROUP, HOLD_LABEL, PART_OF_LABEL
from headrace.replace.ownership import Object, Operation, Owner, give_back_patch, owners_of
from headrace.replace.plan import Plan, PoolRef
from headrace.replace.weights import (
    Refs,
    Swap,
    Unsplittable,
    final_refs,
    identity,
    introduced,
    names,
    refs_at,
    restored,
    weight_of,
    without_weight,
)

# Both kinds have rules with backendRefs alike.
KINDS = ("HTTPRoute", "GRPCRoute")


class Foreign(Exception):  # noqa: N818
    """Somebody else changed a route meanwhile; the message names it and what is different."""


class RuleRecord(Struct, frozen=True):
    """A rule as it was found. `index` is its place in the route, `matches` and `name` help to find it again."""

    index: int
    name: str
    matches: Any
    refs: Refs


class RouteRecord(Struct, frozen=True):
    """A route that leads to the old pool, its rules that do, and whose all of its rules were.

    `rest` is a digest of what a replacement leaves alone in the rules: all but the backends of those recorded."""

    namespace: str
    name: str
    uid: str
    rules: tuple[RuleRecord, ...]
    kind: str = "HTTPRoute"
    owners: tuple[Owner, ...] = ()
    rest: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """(kind, namespace, name)."""
        return (self.kind, self.namespace, self.name)

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


def key_of(route: Object) -> tuple[str, str, str]:
    """(kind, namespace, name) of a route; an HTTPRoute, where it does not say its kind."""
    metadata = route.get("metadata") or {}
    kind, name = route.get("kind") or KINDS[0], metadata.get("name") or ""
    return (str(kind), str(metadata.get("namespace") or "default"), str(name))


def _is_held(route: Object) -> bool:
    """Whether a route is one of a replacement's own."""
    return HOLD_LABEL in ((route.get("metadata") or {}).get("labels") or {})


def swap_of(plan: Plan, route_namespace: str) -> Swap:
    """The plan's pools, seen from a namespace."""
    return Swap(plan.old, plan.new, route_namespace)


def record(route: Object, plan: Plan) -> RouteRecord | None:
    """What has to be remembered of a route; None if it does not lead to the old pool."""
    if _is_held(route):
        return None
    kind, namespace, name = key_of(route)
    swap = swap_of(plan, namespace)
    rules = tuple(
        RuleRecord(index, str(rule.get("name") or ""), rule.get("matches"), refs_of(rule))
        for index, rule in enumerate(rules_of(route))
        if any(swap.is_old(ref) for ref in refs_of(rule))
    )
    if not rules:
        return None
    rest = _rest(route, [rule.index for rule in rules])
    return RouteRecord(
        namespace, name, text(mapping(route.get("metadata")).get("uid")), rules, kind, owners_of(route), rest
    )


def records(routes: Iterable[Object], plan: Plan) -> tuple[RouteRecord, ...]:
    """The records of all routes that lead to the old pool, in order."""
    found = (record(route, plan) for route in routes)
    return tuple(sorted((one for one in found if one is not None), key=lambda one: one.key))


def leading_to(routes: Iterable[Object], *pools: PoolRef) -> tuple[tuple[str, str, str], ...]:
    """(kind, namespace, name) of all routes that name one of the pools, with whatever weight; ours aside."""
    found = []
    for route in routes:
        key = key_of(route)
        refs = [ref for rule in rules_of(route) for ref in refs_of(rule)]
        if any(names(ref, pool, key[1]) for pool in pools for ref in refs) and not _is_held(route):
            found.append(key)
    return tuple(sorted(found))


def unsplittable(found: Iterable[RouteRecord], plan: Plan) -> Iterator[str]:
    """Rules whose weights some step cannot be written with."""
    for route in found:
        for rule in route.rules:
            try:
                for percent in plan.steps:
                    refs_at(rule.refs, swap_of(plan, route.namespace), percent)
            except Unsplittable as error:
                yield f"{route}, rule {rule.index}: {error}"


def granted(known: RouteRecord, plan: Plan, grants: Iterable[Object]) -> bool:
    """Whether a route may refer to the new pool."""
    return is_granted(grants, known.key, plan.new.group, "InferencePool", plan.new.namespace, plan.new.name)


# ---- patches ---------------------------------------------------------------------------------------------------------


def _place(route: Object, rule: RuleRecord, swap: Swap) -> int | None:
    """Where a recorded rule is now: by its name, else by its matches, at its old place first."""
    now = rules_of(route)

    def ours(at: int) -> bool:
        return any(swap.is_old(ref) or swap.is_new(ref) for ref in refs_of(now[at]))

    order = sorted(range(len(now)), key=lambda at: (at != rule.index, at))
    if rule.name:
        named = [at for at in order if now[at].get("name") == rule.name]
        if named:
            return named[0]
    same = [at for at in order if now[at].get("matches") == rule.matches and ours(at)]
    return same[0] if same else None


def _allowed(rule: RuleRecord, plan: Plan, swap: Swap) -> list[list[dict[str, Any]]]:
    """Every list of backendRefs that a replacement itself leaves in a rule."""
    found = [list(rule.refs), list(final_refs(rule.refs, swap))]
    found += [list(refs_at(rule.refs, swap, percent)) for percent in (0, *plan.steps)]
    return [[dict(ref) for ref in refs] for refs in found]


def shift_patch(route: Object, known: RouteRecord, plan: Plan, percent: int) -> list[Operation]:
    """The operations that give the new pool `percent`; none where the route is so already. Raises Foreign."""
    swap = swap_of(plan, known.namespace)
    return _patch(route, known, plan, [refs_at(rule.refs, swap, percent) for rule in known.rules])


def final_patch(route: Object, known: RouteRecord, plan: Plan) -> list[Operation]:
    """The operations that put the new pool in the old one's place, weights as recorded. Raises Foreign."""
    swap = swap_of(plan, known.namespace)
    return _patch(route, known, plan, [final_refs(rule.refs, swap) for rule in known.rules])


def _patch(route: Object, known: RouteRecord, plan: Plan, wanted: Sequence[Refs]) -> list[Operation]:
    swap = swap_of(plan, known.namespace)
    operations: list[Operation] = []
    places = [_place(route, rule, swap) for rule in known.rules]
    for number, found in enumerate(rules_of(route)):
        if number not in places and any(swap.is_old(ref) for ref in refs_of(found)):
            raise Foreign(f"{known}, rule {number}: somebody else changed it to lead to {plan.old}")
    for rule, refs, at in zip(known.rules, wanted, places, strict=True):
        if at is None:
            raise Foreign(f"{known}: its rule {rule.index}, which led to the pool, is gone")
        current = refs_of(rules_of(route)[at])
        if [dict(ref) for ref in current] not in _allowed(rule, plan, swap):
            raise Foreign(f"{known}, rule {at}: somebody else changed its backends to {_shown(current, swap)}")
        operations += rule_patch(at, current, refs)
    return operations


def restore_patch(route: Object, known: RouteRecord, plan: Plan) -> list[Operation]:
    """The operations that give a route its recorded backends and weights back, whatever became of it since.

    Raises Foreign where the record has backends that the rule does not have: then it is another rule's, or forged."""
    swap = swap_of(plan, known.namespace)
    operations: list[Operation] = []
    places = [_place(route, rule, swap) for rule in known.rules]
    for number, rule in enumerate(known.rules):
        if places[number] is None:
            places[number] = _stray(route, rule, plan, swap, places)
        at = places[number]
        if at is not None:
            current = refs_of(rules_of(route)[at])
            wanted = restored(current, rule.refs, swap)
            strange = introduced(current, wanted, swap)
            if strange or not any(swap.is_old(ref) for ref in rule.refs):
                raise Foreign(f"{known}, rule {at}: the record does not fit it: {_shown(rule.refs, swap)}")
            operations += rule_patch(at, current, wanted)
    return operations


def _stray(route: Object, rule: RuleRecord, plan: Plan, swap: Swap, taken: Sequence[int | None]) -> int | None:
    """Where a rule is whose matches somebody changed: told by backends that only a replacement writes."""
    ours = _allowed(rule, plan, swap)
    found = [
        at
        for at, other in enumerate(rules_of(route))
        if at not in taken and any(swap.is_new(ref) for ref in refs_of(other)) and [*map(dict, refs_of(other))] in ours
    ]
    return rule.index if rule.index in found else found[0] if len(found) == 1 else None


def _rest(route: Object, places: Iterable[int]) -> str:
    ours = set(places)
    rules = [
        {key: value for key, value in rule.items() if key != "backendRefs" or at not in ours}
        for at, rule in enumerate(rules_of(route))
    ]
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def give_back(route: Object, known: RouteRecord, plan: Plan) -> list[Operation]:
    """The operations that make the rules those's again who had them; none where somebody else has changed a rule since:
    then the rules stay ours, and the next server-side apply says so instead of undoing that change."""
    swap, now = swap_of(plan, known.namespace), rules_of(route)
    places = []
    for rule in known.rules:
        at = _place(route, rule, swap)
        if at is None or refs_of(now[at]) not in (rule.refs, final_refs(rule.refs, swap)):
            return []
        places.append(at)
    return give_back_patch(route, known.owners) if _rest(route, places) == known.rest else []


def rule_patch(at: int, current: Refs, wanted: Refs) -> list[Operation]:
    """From one list of backendRefs to another: weights alone where the backends are the same."""
    path = f"/spec/rules/{at}/backendRefs"
    before, after = [dict(ref) for ref in current], [dict(ref) for ref in wanted]
    if before == after:
        return []
    if [without_weight(ref) for ref in before] == [without_weight(ref) for ref in after]:
        operations: list[Operation] = []
        for place, (old, new) in enumerate(zip(before, after, strict=True)):
            if old == new:
                continue
            operations.append({"op": "test", "path": f"{path}/{place}", "value": old})
            if "weight" in new:
                operations.append({"op": "add", "path": f"{path}/{place}/weight", "value": new["weight"]})
            else:
                operations.append({"op": "remove", "path": f"{path}/{place}/weight"})
        return operations
    return [{"op": "test", "path": path, "value": before}, {"op": "replace", "path": path, "value": after}]


def _shown(refs: Refs, swap: Swap) -> str:
    return ", ".join(f"{identity(ref, swap.route_namespace)[3]}={weight_of(ref)}" for ref in refs) or "nothing"


def hold_label(pool: PoolRef) -> str:
    """The value of HOLD_LABEL: a pool's name may be longer than a label's value."""
    return pool.name[:63].rstrip("-.")


def hold(route: Object, known: RouteRecord, plan: Plan, name: str, header: str, token: str) -> dict[str, Any] | None:
    """A route of our own to each of the pools, for requests with a header that no client sends.

    The warm-up asks the new pool alone through it. And it keeps both pools in the gateway's configuration while routes
    name one of them with weight 0: a gateway drops what gets nothing, and would have to learn it anew, losing requests,
    when a weight rises again. It copies the first rule that leads to the old pool, so that it is matched before it
    (the same path, one header more) and does the same to requests. None if no such rule is left."""
    swap = swap_of(plan, known.namespace)
    for rule in known.rules:
        at = _place(route, rule, swap)
        old = next((ref for ref in rule.refs if swap.is_old(ref)), None)
        if at is None or old is None:
            continue
        found = rules_of(route)[at]
        everything: Object = {"path": {"type": "PathPrefix", "value": "/"}} if known.kind == "HTTPRoute" else {}
        matches = [match for match in found.get("matches") or () if isinstance(match, Mapping)] or [everything]
        rules = []
        for which, ref in (("new", swap.renamed(old)), ("old", dict(old))):
            own = {"type": "Exact", "name": header, "value": f"{token}-{which}"}
            copied: dict[str, Any] = {
                "matches": [{**match, "headers": [*(match.get("headers") or ()), own]} for match in matches],
                "backendRefs": [{**ref, "weight": 1}],
            }
            if found.get("filters"):
                copied["filters"] = found["filters"]
            rules.append(copied)
        spec = {key: value for key, value in (route.get("spec") or {}).items() if key in ("parentRefs", "hostnames")}
        return {
            "apiVersion": f"{GATEWAY_GROUP}/v1",
            "kind": known.kind,
            "metadata": {
                "name": name,
                "namespace": known.namespace,
                "labels": {PART_OF_LABEL: "headrace", HOLD_LABEL: hold_label(plan.old)},
            },
            "spec": {**spec, "rules": rules},
        }
    return None
