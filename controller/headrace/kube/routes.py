"""Routes (HTTP and gRPC) as the API server has them: their rules and backends, and what they may refer to. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from headrace.core.fields import Object, mapping, mappings
from headrace.protocol.objects import GATEWAY_GROUP
from headrace.protocol.translated import RouteKey


def rules_of(route: Object) -> list[Object]:
    """The rules of a route; unreadable ones as empty, so that places stay right."""
    rules = mapping(route.get("spec")).get("rules")
    return [mapping(rule) for rule in rules] if isinstance(rules, list | tuple) else []


def refs_of(rule: Object) -> tuple[Object, ...]:
    """The backendRefs of a rule."""
    return tuple(mappings(rule.get("backendRefs")))


def is_granted(grants: Iterable[Object], route: RouteKey, group: str, kind: str, namespace: str, name: str) -> bool:
    """Whether a route may refer to an object: the same namespace, or a ReferenceGrant there says so."""
    route_kind, route_namespace, _ = route
    if namespace == route_namespace:
        return True
    for grant in grants:
        if mapping(grant.get("metadata")).get("namespace") != namespace:
            continue
        spec = mapping(grant.get("spec"))
        granted = any(
            peer.get("group") == GATEWAY_GROUP
            and peer.get("kind") == route_kind
            and peer.get("namespace") == route_namespace
            for peer in mappings(spec.get("from"))
        )
        if granted and any(
            (target.get("group") or "") == group
            and target.get("kind") == kind
            and target.get("name") in (None, "", name)
            for target in mappings(spec.get("to"))
        ):
            return True
    return False
