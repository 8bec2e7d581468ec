"""What a translation would need and the informers do not have; and what earlier translations had. Pure.

Envoy Gateway calls the hook once for a change, and not again when our informers have caught up with it. So before an
answer is given without an object, that object is looked for in the API server; and where that fails too, its route
keeps what it had."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from headrace.core import Pool
from headrace.gateway.names import PoolKey
from headrace.gateway.snapshot import Object, Snapshot, backends_of, rules_of
from headrace.gateway.xds_names import KINDS, RuleName

# More than the routes of any translation: what is forgotten is what no translation has named for long.
_REMEMBERED = 10_000

Sort = Literal["httproute", "grpcroute", "pool", "grant"]
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Missing:
    """An object that is named and not known. `group` only of pools; a grant has no name: any one would do."""

    sort: Sort
    namespace: str
    name: str = ""
    group: str = ""


def lacking(named: Iterable[RuleName], snapshot: Snapshot) -> frozenset[Missing]:
    """What the rules of a hook call name, directly or through their backends, and the snapshot does not hold.

    A route with fewer rules than the call names is an old one, and counts as missing."""
    return frozenset(_lacking(named, snapshot))


def _lacking(named: Iterable[RuleName], snapshot: Snapshot) -> Iterator[Missing]:
    for rule in set(named):
        found = snapshot.route(rule.kind, rule.namespace, rule.name)
        rules = rules_of(found) if found is not None else []
        if rule.rule >= len(rules):
            yield Missing("httproute" if rule.kind == "httproute" else "grpcroute", rule.namespace, rule.name)
            continue
        for backend in backends_of(rules[rule.rule], rule.namespace):
            if not backend.is_pool:
                continue
            if backend.pool_key not in snapshot.pools and backend.pool_key not in snapshot.bad_pools:
                yield Missing("pool", backend.namespace, backend.name, backend.group)
            if not snapshot.permits(KINDS[rule.kind], rule.namespace, backend):
                yield Missing("grant", backend.namespace)


class Recollection:
    """The routes and pools that translations used, for one that cannot have them.

    A route that Envoy Gateway still names but that is not to be found keeps the object of its last translation. So does
    a pool, unless it is known to be gone."""

    def __init__(self) -> None:
        self._routes: OrderedDict[tuple[str, str, str], Object] = OrderedDict()
        self._pools: OrderedDict[PoolKey, Pool] = OrderedDict()

    def complete(self, snapshot: Snapshot, missing: Iterable[Missing], gone: frozenset[Missing]) -> Snapshot:
        """The snapshot with what is remembered in the place of what is missing. `gone` is known not to exist."""
        routes: dict[str, dict[tuple[str, str], Object]] = {"httproute": {}, "grpcroute": {}}
        pools: dict[PoolKey, Pool] = {}
        for entry in missing:
            if entry.sort in routes:
                route = self._routes.get((entry.sort, entry.namespace, entry.name))
                if route is not None:
                    routes[entry.sort][(entry.namespace, entry.name)] = route
            elif entry.sort == "pool" and entry not in gone:
                pool = self._pools.get((entry.group, entry.namespace, entry.name))
                if pool is not None:
                    pools[(entry.group, entry.namespace, entry.name)] = pool
        if not pools and not any(routes.values()):
            return snapshot
        return replace(
            snapshot,
            http_routes={**snapshot.http_routes, **routes["httproute"]},
            grpc_routes={**snapshot.grpc_routes, **routes["grpcroute"]},
            pools={**snapshot.pools, **pools},
        )

    def keep(self, named: Iterable[RuleName], snapshot: Snapshot) -> None:
        """Remember what a translation had."""
        for rule in set(named):
            found = snapshot.route(rule.kind, rule.namespace, rule.name)
            if found is None:
                continue
            _remember(self._routes, (rule.kind, rule.namespace, rule.name), found)
            rules = rules_of(found)
            for backend in backends_of(rules[rule.rule], rule.namespace) if rule.rule < len(rules) else ():
                pool = snapshot.pools.get(backend.pool_key) if backend.is_pool else None
                if pool is not None:
                    _remember(self._pools, backend.pool_key, pool)


def _remember(known: OrderedDict[_Key, _Value], key: _Key, value: _Value) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > _REMEMBERED:
        known.popitem(last=False)
