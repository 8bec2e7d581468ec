"""Objects that a translation needs and the informers do not have, and those of earlier translations. Pure.

Envoy Gateway calls the hook once for a change, and not again when our informers have caught up with it. So before an
answer is given without an object, that object is looked for in the API server; and where that fails too, its route
keeps what it had."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from headrace.core import Pool
from headrace.gateway.names import PoolKey
from headrace.gateway.snapshot import Object, Snapshot, backends_of
from headrace.gateway.xds_names import RuleName
from headrace.kube.client import Resource
from headrace.kube.objects import POOLS, REFERENCE_GRANTS, ROUTES
from headrace.kube.routes import rules_of
from headrace.protocol.translated import RouteKey

# More than the routes of any translation: what is forgotten is what no translation has named for long.
_REMEMBERED = 10_000


class Missing(NamedTuple):
    """An object that is named and not known: by the key of a route or a pool, or the namespace of a grant, of which any
    one would do."""

    resource: Resource
    key: tuple[str, ...]


def lacking(named: Iterable[RuleName], snapshot: Snapshot) -> frozenset[Missing]:
    """What the rules of a hook call name, directly or through their backends, and the snapshot does not hold.

    A route with fewer rules than the call names is an old one, and counts as missing."""
    return frozenset(_lacking(named, snapshot))


def _lacking(named: Iterable[RuleName], snapshot: Snapshot) -> Iterator[Missing]:
    for rule in set(named):
        rules = rules_of(snapshot.routes.get(rule.route, {}))
        if rule.rule >= len(rules):
            yield Missing(ROUTES[rule.route[0]], rule.route)
            continue
        for backend in backends_of(rules[rule.rule], rule.route[1]):
            if not backend.is_pool:
                continue
            if backend.pool_key not in snapshot.pools and backend.pool_key not in snapshot.bad_pools:
                yield Missing(POOLS[backend.group], backend.pool_key)
            if not snapshot.permits(rule.route, backend):
                yield Missing(REFERENCE_GRANTS, (backend.namespace,))


class Recollection:
    """The routes and pools that translations used, for one that cannot have them.

    A route that Envoy Gateway still names but that is not to be found keeps the object of its last translation. So does
    a pool, unless it is known to be gone."""

    def __init__(self) -> None:
        self._routes: dict[RouteKey, Object] = {}
        self._pools: dict[PoolKey, Pool] = {}

    def complete(self, snapshot: Snapshot, missing: frozenset[Missing], gone: frozenset[Missing]) -> Snapshot:
        """The snapshot with what is remembered in the place of what is missing. `gone` is known not to exist."""
        routes = {key: self._routes[key] for key in self._routes.keys() & {entry.key for entry in missing}}
        pools = {key: self._pools[key] for key in self._pools.keys() & {entry.key for entry in missing - gone}}
        if not pools and not routes:
            return snapshot
        return replace(snapshot, routes={**snapshot.routes, **routes}, pools={**snapshot.pools, **pools})

    def keep(self, named: Iterable[RuleName], snapshot: Snapshot) -> None:
        """Remember what a translation had."""
        for rule in set(named):
            found = snapshot.routes.get(rule.route)
            if found is None:
                continue
            _remember(self._routes, rule.route, found)
            rules = rules_of(found)
            for backend in backends_of(rules[rule.rule], rule.route[1]) if rule.rule < len(rules) else ():
                pool = snapshot.pools.get(backend.pool_key) if backend.is_pool else None
                if pool is not None:
                    _remember(self._pools, backend.pool_key, pool)


def _remember(known: dict[Any, Any], key: tuple[str, str, str], value: object) -> None:
    known.pop(key, None)
    known[key] = value
    if len(known) > _REMEMBERED:
        del known[next(iter(known))]
