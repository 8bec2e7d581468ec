"""The status of InferencePools: which Gateways serve a pool, whether it is accepted, whether its picker resolves. Pure.

Source: the InferencePool API, `status.parents` of v1 and `status.parent` of v1alpha2, which has no controllerName:
there an entry is ours when the class of its Gateway is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct, structs

from headrace.core import EXTENSION_GROUP, GA_GROUP, FailureMode, Pool
from headrace.core.fields import has_condition
from headrace.gateway.backend_filters import InvalidFilter, header_changes
from headrace.gateway.filters import plan_pick
from headrace.gateway.names import PoolKey
from headrace.gateway.snapshot import Backend, GatewayKey, Object, Snapshot, backends_of, mapping, mappings
from headrace.gateway.trust import find_trust
from headrace.kube.routes import rules_of
from headrace.protocol.objects import ACCEPTED, FILTERS_ACCEPTED, GATEWAY_GROUP, RESOLVED_REFS, ROUTES_TRANSLATED
from headrace.protocol.translated import RouteKey, conditions_in

# The reason of ResolvedRefs where the picker is there and its certificate is not trusted.
PICKER_NOT_TRUSTED = "EndpointPickerNotTrusted"
_MAX_MESSAGE = 1000
_MAX_PARENTS = 32


class Condition(Struct, frozen=True):
    """A condition without its times."""

    type: str
    status: str
    reason: str
    message: str


def parents_of_pools(snapshot: Snapshot) -> dict[PoolKey, dict[GatewayKey, bool]]:
    """The Gateways of ours that routes lead to each pool from; the value is whether a route of them was accepted."""
    found: dict[PoolKey, dict[GatewayKey, bool]] = {}
    for key, route in snapshot.routes.items():
        pools = {backend.pool_key for backend in snapshot.pools_of(key, rules_of(route))}
        for gateway, accepted in parents_of_route(key, snapshot) if pools else ():
            for pool in pools:
                parents = found.setdefault(pool, {})
                parents[gateway] = parents.get(gateway, False) or accepted
    return found


def filter_problems(snapshot: Snapshot) -> dict[PoolKey, dict[GatewayKey, list[str]]]:
    """What is wrong with filters of backendRefs to each pool, for each Gateway of ours. Their share is answered 500."""
    found: dict[PoolKey, dict[GatewayKey, list[str]]] = {}
    for key, route in snapshot.routes.items():
        for number, rule in enumerate(rules_of(route)):
            # Few have any, and this is asked after each change of anything.
            if not any(reference.get("filters") for reference in mappings(rule.get("backendRefs"))):
                continue
            for backend in backends_of(rule, key[1]):
                problem = _filter_problem(backend)
                if not problem:
                    continue
                text = f"{key[0]} {key[1]}/{key[2]}, rule {number}, backend {backend.index}: {problem}"
                for gateway, _ in parents_of_route(key, snapshot):
                    found.setdefault(backend.pool_key, {}).setdefault(gateway, []).append(text)
    return found


def _filter_problem(backend: Backend) -> str:
    try:
        if backend.is_pool and backend.weight:
            header_changes(backend.filters)
    except InvalidFilter as error:
        return str(error)
    return ""


def parents_of_route(key: RouteKey, snapshot: Snapshot) -> Iterator[tuple[GatewayKey, bool]]:
    """The Gateways of ours that a route names, each with whether it accepted the route, as far as is known."""
    route = snapshot.routes.get(key, {})
    statuses = list(mappings(mapping(route.get("status")).get("parents")))
    for reference in mappings(mapping(route.get("spec")).get("parentRefs")):
        if reference.get("group", GATEWAY_GROUP) != GATEWAY_GROUP or reference.get("kind", "Gateway") != "Gateway":
            continue
        gateway = (str(reference.get("namespace") or key[1]), str(reference.get("name") or ""))
        if gateway not in snapshot.our_gateways:
            continue
        refused = any(
            has_condition(entry, ACCEPTED, "False")
            for entry in statuses
            if entry.get("controllerName") == snapshot.controller_name and entry.get("parentRef") == dict(reference)
        )
        yield gateway, not refused


def conditions_of(
    snapshot: Snapshot, key: PoolKey, *, route_accepted: bool, untrusted: str = "", filter_problems: Sequence[str] = ()
) -> tuple[Condition, ...]:
    """The conditions of a pool for a Gateway. `untrusted`: why its picker's certificate is not trusted."""
    answered = f"answered 500: {'; '.join(filter_problems)}"
    refused = (_condition(FILTERS_ACCEPTED, False, "UnsupportedValue", answered),) if filter_problems else ()
    pool = snapshot.pools.get(key)
    if pool is None:
        reason = "NotSupportedByParent" if key[0] == GA_GROUP else "NotSupportedByGateway"
        message = str(snapshot.bad_pools.get(key, "the pool cannot be read"))
        return (_condition(ACCEPTED, False, reason, message), *refused)
    if pool.picker is None:
        message = "endpointPickerRef is missing: the Gateway serves only pools with an endpoint picker"
        accepted = _condition(ACCEPTED, False, "EndpointPickerRefMissing", message)
    elif route_accepted:
        accepted = _condition(ACCEPTED, True, ACCEPTED, "the Gateway serves this pool")
    else:
        message = "the Gateway accepts no route that leads to this pool: see the routes' status"
        accepted = _condition(ACCEPTED, False, "HTTPRouteNotAccepted", message)
    return (accepted, _resolved(snapshot, pool, untrusted), *refused)


def pool_plan(snapshot: Snapshot, pool: Pool) -> str:
    """How a pool's requests are picked for, in one line. Equal lines are equal translations of the pool and its picker.

    It says all that a translation takes from objects whose changes Envoy Gateway does not tell the hook of: annotations
    of the pool, the picker's Service, its BackendTLSPolicy."""
    service, _ = snapshot.picker_service(pool)
    plan = plan_pick(pool, service)
    transport = "cleartext"
    if not service.cleartext:
        transport = f"TLS as {find_trust(snapshot, service).hostname}"
    streams = f"a stream of its own, observation {plan.observation}" if service.is_ours else "one stream both ways"
    return f"{plan.pool.failure_mode}, {transport}, request bodies {plan.body_mode}, responses in {streams}"


def _resolved(snapshot: Snapshot, pool: Pool, untrusted: str) -> Condition:
    service, unresolved = snapshot.picker_service(pool)
    if unresolved:
        return _condition(RESOLVED_REFS, False, "InvalidExtensionRef", unresolved)
    plan = pool_plan(snapshot, pool)
    message = f"the endpoint picker is Service {service.namespace}/{service.name}, port {service.port}: {plan}"
    trust = find_trust(snapshot, service)
    if service.cleartext or not (trust.problem or untrusted):
        return _condition(RESOLVED_REFS, True, RESOLVED_REFS, message)
    problem = trust.problem or (
        f"its certificate fails ({untrusted}): give it one for {trust.hostname}, signed by the CA in the ConfigMap of"
        " its BackendTLSPolicy"
    )
    answer = "are served without a pick" if pool.failure_mode is FailureMode.OPEN else "are answered 503"
    message += f"; the gateway does not trust it, and requests {answer}: {problem}"
    return _condition(RESOLVED_REFS, False, PICKER_NOT_TRUSTED, message)


def _condition(kind: str, holds: bool, reason: str, message: str) -> Condition:
    return Condition(kind, "True" if holds else "False", reason, message[:_MAX_MESSAGE])


def wanted_status(
    pool: Object,
    key: PoolKey,
    snapshot: Snapshot,
    conditions: Mapping[GatewayKey, Sequence[Condition]],
    now: str,
    written: frozenset[GatewayKey] = frozenset(),
) -> dict[str, Any] | None:
    """The status keys to write for a pool; None where nothing is to be changed.

    Entries of other controllers stay, in their places. `written` are Gateways that we wrote entries for: a v1alpha2
    entry of a Gateway that is gone can be told for ours by nothing else. `now` is RFC 3339, for changed conditions.
    Where `conditions` do not say which routes are translated, another replica's condition stays."""
    field = "parents" if key[0] == GA_GROUP else "parent"
    status = mapping(pool.get("status"))
    old = list(mappings(status.get(field)))
    seen = mapping(pool.get("metadata")).get("generation")
    generation = seen if isinstance(seen, int) else 0
    kept: list[dict[str, Any]] = []
    ours: dict[GatewayKey, Mapping[str, Any]] = {}
    for entry in old:
        gateway = gateway_of(entry, key[1])
        if gateway is not None and _is_ours(entry, key[0], gateway, snapshot, written):
            ours[gateway] = entry
        elif not (key[0] == EXTENSION_GROUP and conditions and _is_placeholder(entry)):
            kept.append(dict(entry))
    wanted = list(kept)
    for gateway in sorted(conditions)[: max(0, _MAX_PARENTS - len(kept))]:
        entry = {
            "parentRef": {"group": GATEWAY_GROUP, "kind": "Gateway", "namespace": gateway[0], "name": gateway[1]},
            "conditions": _stamped(conditions[gateway], ours.get(gateway), generation, now),
        }
        if key[0] == GA_GROUP:
            entry["controllerName"] = snapshot.controller_name
        wanted.append(entry)
    if _same(wanted, [dict(entry) for entry in old]):
        return None
    return {field: wanted}


def untrusted_message(status: Mapping[str, Any]) -> str:
    """What a status says of a picker that is not trusted; "" where it says nothing of the kind."""
    said = (condition for _, condition in conditions_in(status) if condition.get("reason") == PICKER_NOT_TRUSTED)
    return next((str(condition["message"]) for condition in said), "")


def gateway_of(entry: Object, pool_namespace: str) -> GatewayKey | None:
    """The Gateway that a status entry is about; None where it is about something else."""
    reference = mapping(entry.get("parentRef"))
    if reference.get("kind", "Gateway") != "Gateway" or (reference.get("group") or GATEWAY_GROUP) != GATEWAY_GROUP:
        return None
    return (str(reference.get("namespace") or pool_namespace), str(reference.get("name") or ""))


def _is_ours(
    entry: Object, group: str, gateway: GatewayKey, snapshot: Snapshot, written: frozenset[GatewayKey]
) -> bool:
    if group == GA_GROUP and entry.get("controllerName"):
        return bool(entry.get("controllerName") == snapshot.controller_name)
    return gateway in (snapshot.our_gateways if gateway in snapshot.gateways else written)


def _is_placeholder(entry: Object) -> bool:
    """The entry that the v1alpha2 CRD puts in as a default, until a Gateway takes the pool."""
    reference = mapping(entry.get("parentRef"))
    return reference.get("kind") == "Status" and reference.get("name") == "default"


def _stamped(
    conditions: Sequence[Condition], old: Mapping[str, Any] | None, generation: int, now: str
) -> list[dict[str, Any]]:
    """Conditions with times: the time of the last change of their status, not of this write."""
    known = {found.get("type"): found for found in mappings(mapping(old).get("conditions"))}
    found: list[dict[str, Any]] = []
    for condition in conditions:
        before = known.get(condition.type, {})
        since = before.get("lastTransitionTime") if before.get("status") == condition.status else None
        times = {"observedGeneration": generation, "lastTransitionTime": since or now}
        found.append({**structs.asdict(condition), **times})
    if ROUTES_TRANSLATED in known and all(condition.type != ROUTES_TRANSLATED for condition in conditions):
        found.append(dict(known[ROUTES_TRANSLATED]))
    return found


def _same(wanted: list[dict[str, Any]], old: list[dict[str, Any]]) -> bool:
    """Whether nothing changes, in whatever order the entries are."""

    def parent(entry: Mapping[str, Any]) -> list[str]:
        return sorted(map(str, mapping(entry.get("parentRef")).items()))

    return sorted(wanted, key=parent) == sorted(old, key=parent)
