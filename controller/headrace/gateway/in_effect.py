"""Which state of each route the Envoys have, as far as it can be known, and which of them are out of date. No I/O.

Envoy Gateway calls the hook once for a change. A call that came before our informers had heard of the change is
answered from an older state, and nothing would correct that. So what each translation used is remembered for each
Gateway. Where the informers come to know another state, the Gateway is out of date: `nudge` causes another call.

A replica that Envoy Gateway did not ask goes by what the pools' status says was translated; where that says nothing,
by what was there when this process started."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeAlias

from msgspec import Struct

from headrace.gateway.names import PoolKey
from headrace.gateway.snapshot import Backend, GatewayKey, Object, Snapshot, backends_of, mapping
from headrace.gateway.status import Condition, gateway_of, parents_of_route, pool_plan
from headrace.gateway.xds_names import RuleName
from headrace.kube.routes import rules_of
from headrace.protocol.objects import ROUTES_TRANSLATED
from headrace.protocol.translated import RouteKey, TranslatedRoute, published_routes, uid_of, write_routes

_STATE_LENGTH = 8
_MAX_NAMED = 5


class _Used(Struct, frozen=True):
    """What a translation used of one route. `pools` are those that the route led to."""

    route: TranslatedRoute
    pools: frozenset[PoolKey]


class _Translated:
    """What the last translation for a Gateway used."""

    def __init__(self, used: Mapping[RouteKey, _Used]) -> None:
        self.states = {key: frozenset((found.route,)) for key, found in used.items()}
        by_pool: dict[PoolKey, list[TranslatedRoute]] = {}
        for found in used.values():
            for pool in found.pools:
                by_pool.setdefault(pool, []).append(found.route)
        self.listed = {pool: write_routes(routes) for pool, routes in by_pool.items()}


class _Retranslation(Struct, frozen=True):
    attempt: int
    pools: frozenset[PoolKey]
    routes: frozenset[RouteKey]


# What is in effect of each route; several, where pools' status differs.
_States: TypeAlias = Mapping[RouteKey, frozenset[TranslatedRoute]]
# A route's object, and its backends that are pools: read once, though asked for after each change of anything.
_Parsed: TypeAlias = tuple[Object, tuple[Backend, ...]]


@dataclass(eq=False)
class InEffect:
    """`snapshot` gives the newest state; `pools` the newest pool objects, whose status other replicas write too."""

    snapshot: Callable[[], Snapshot]
    pools: Callable[[], Mapping[PoolKey, Object]]

    def __post_init__(self) -> None:
        self._own: dict[GatewayKey, _Translated] = {}
        self._assumed: dict[GatewayKey, _States] | None = None
        self._retranslations: dict[GatewayKey, _Retranslation] = {}
        self._parsed: dict[RouteKey, _Parsed] = {}

    def start(self) -> None:
        """Take what is there now for translated where nothing says otherwise. Only the first call does anything."""
        if self._assumed is None:
            self._assumed = {}
            for gateway in self.snapshot().our_gateways:
                self.assume(gateway)

    def translated(self, named: Mapping[str, frozenset[RuleName]], snapshot: Snapshot) -> None:
        """A hook call was answered from this snapshot. `named` has the rules of each route configuration, by name."""
        routes: dict[GatewayKey, set[RouteKey]] = {}
        for configuration, rules in named.items():
            namespace, _, rest = configuration.partition("/")
            found = routes.setdefault((namespace, rest.partition("/")[0]), set())
            found.update(rule.route for rule in rules)
        reading = _Reading(snapshot, self._parsed)
        for gateway, keys in routes.items():
            self._own[gateway] = _Translated({key: reading.used(key) for key in keys})
            self._retranslations.pop(gateway, None)

    def is_asked(self, gateway: GatewayKey) -> bool:
        """Whether Envoy Gateway asks this replica about a Gateway, as far as that is known."""
        return gateway in self._own

    def forget(self, gateway: GatewayKey) -> None:
        """Envoy Gateway seems to ask another replica by now."""
        self._own.pop(gateway, None)
        self._retranslations.pop(gateway, None)

    def unpublished(self, gateway: GatewayKey, routes: Iterable[RouteKey]) -> frozenset[RouteKey]:
        """Those of the routes of which no pool's status says what was translated."""
        return frozenset(routes) - self._published().get(gateway, {}).keys()

    def assume(self, gateway: GatewayKey, only: frozenset[RouteKey] | None = None) -> None:
        """Take what is there now for translated where nothing says otherwise. `only` these routes, where given."""
        snapshot = self.snapshot()
        reading = _Reading(snapshot, self._parsed)
        known = self._assumed or {}
        kept = {} if only is None else known.get(gateway, {})
        routes = [key for key in snapshot.routes if _is_accepted(key, gateway, snapshot)] if only is None else only
        self._assumed = {**known, gateway: {**kept, **{key: frozenset((reading.used(key).route,)) for key in routes}}}

    def stale(self) -> dict[GatewayKey, dict[RouteKey, str]]:
        """The routes whose newest state is another than the one in effect, with that newest state, by Gateway."""
        snapshot = self.snapshot()
        reading = _Reading(snapshot, self._parsed)
        gateways = snapshot.our_gateways
        published = self._published() if gateways - self._own.keys() else {}
        found: dict[GatewayKey, dict[RouteKey, str]] = {}
        for gateway in gateways:
            for key, states in self._in_effect(gateway, published).items():
                newest = reading.used(key).route
                if key not in snapshot.routes or any(_covers(state, newest) for state in states):
                    continue
                # No call names a route that the Gateway refuses, so nothing would ever say that it is translated.
                if gateway in self._own or _is_accepted(key, gateway, snapshot):
                    found.setdefault(gateway, {})[key] = newest.state
        self._parsed = {key: parsed for key, parsed in self._parsed.items() if key in snapshot.routes}
        return found

    def _in_effect(self, gateway: GatewayKey, published: Mapping[GatewayKey, _States]) -> _States:
        own = self._own.get(gateway)
        if own is not None:
            return own.states
        return {**(self._assumed or {}).get(gateway, {}), **published.get(gateway, {})}

    def _published(self) -> dict[GatewayKey, _States]:
        """What the pools' status says was translated. While it is being written, pools may differ."""
        found: dict[GatewayKey, dict[RouteKey, frozenset[TranslatedRoute]]] = {}
        for pool in self.pools().values():
            for gateway, routes in _published_by_gateway(pool):
                states = found.setdefault(gateway, {})
                for key, route in routes.items():
                    states[key] = states.get(key, frozenset()) | {route}
        return {**found}

    # ---- causing another translation

    def retranslate(self, gateway: GatewayKey, routes: Iterable[RouteKey], attempt: int) -> bool:
        """Have the status of pools say that routes are to be translated again. False: no pool could say it.

        Envoy Gateway compares the pools that get requests, status included, with those of its last call."""
        snapshot = self.snapshot()
        stale = frozenset(routes)
        pools = _pools_with_weight(stale, snapshot) or _pools_with_weight(
            self._in_effect(gateway, self._published()), snapshot
        )
        if pools:
            self._retranslations[gateway] = _Retranslation(attempt, pools, stale)
        return bool(pools)

    def retranslation_published(self, gateway: GatewayKey) -> None:
        """The status is written. Where Envoy Gateway asks another replica, that one writes the next status."""
        if not self.is_asked(gateway):
            self._retranslations.pop(gateway, None)

    def condition(self, pool: PoolKey, gateway: GatewayKey) -> Condition | None:
        """The condition of a pool for a Gateway. None: this replica has nothing to say, what is there stays."""
        again = self._retranslations.get(gateway)
        own = self._own.get(gateway)
        if again is not None and pool in again.pools:
            listed = own.listed.get(pool, "") if own is not None else self._published_of(pool, gateway)
            named = ", ".join(f"{kind} {space}/{name}" for kind, space, name in sorted(again.routes)[:_MAX_NAMED])
            message = f"attempt {again.attempt} to have {named} translated again; in effect: {listed or 'unknown'}"
            return Condition(ROUTES_TRANSLATED, "False", "Retranslating", message)
        if own is None:
            return None
        if pool in own.listed:
            return Condition(ROUTES_TRANSLATED, "True", "Translated", own.listed[pool])
        # What is there must not go on naming routes that no longer lead to the pool.
        if any(found == gateway for found, _ in _published_by_gateway(self.pools().get(pool, {}))):
            return Condition(ROUTES_TRANSLATED, "True", "Translated", "no translated route leads to this pool")
        return None

    def _published_of(self, pool: PoolKey, gateway: GatewayKey) -> str:
        found = self.pools().get(pool, {})
        return ", ".join(write_routes(routes.values()) for of, routes in _published_by_gateway(found) if of == gateway)


def _is_accepted(key: RouteKey, gateway: GatewayKey, snapshot: Snapshot) -> bool:
    """Whether a route names a Gateway that does not refuse it. One without a verdict yet may well be translated."""
    return (gateway, True) in parents_of_route(key, snapshot)


def _covers(used: TranslatedRoute, newest: TranslatedRoute) -> bool:
    """Whether what is in effect is as new as what the informers have. They may be behind a list, or another replica."""
    return used.state == newest.state or (used.uid == newest.uid and used.generation > newest.generation)


def _published_by_gateway(pool: Object) -> Iterator[tuple[GatewayKey, dict[RouteKey, TranslatedRoute]]]:
    """What a pool's status says was translated, by Gateway."""
    namespace = str(mapping(pool.get("metadata")).get("namespace") or "")
    for parent, routes in published_routes(pool):
        if (gateway := gateway_of(parent, namespace)) is not None:
            yield gateway, routes


def _pools_with_weight(routes: Iterable[RouteKey], snapshot: Snapshot) -> frozenset[PoolKey]:
    """The pools that get requests by these routes: Envoy Gateway leaves out those of weight 0."""
    return frozenset(
        backend.pool_key
        for key in routes
        for backend in snapshot.pools_of(key, rules_of(snapshot.routes.get(key, {})))
        if backend.weight
    )


@dataclass(eq=False)
class _Reading:
    """Reads the state of routes from one snapshot."""

    snapshot: Snapshot
    parsed: dict[RouteKey, _Parsed]

    def __post_init__(self) -> None:
        self._plans: dict[PoolKey, str] = {}

    def used(self, key: RouteKey) -> _Used:
        """What a translation from the snapshot uses of a route. Its state is "" where it leads to no pool."""
        route = self.snapshot.routes.get(key, {})
        metadata = mapping(route.get("metadata"))
        backends = self._backends(key, route)
        pools = frozenset(found.pool_key for found in backends)
        generation = metadata.get("generation")
        state = ""
        if pools:
            permitted = [self.snapshot.permits(key, found) for found in backends]
            parts = (metadata.get("uid"), generation, permitted, [self._plan(found.pool_key) for found in backends])
            state = sha256(repr(parts).encode()).hexdigest()[:_STATE_LENGTH]
        number = generation if isinstance(generation, int) else 0
        return _Used(TranslatedRoute(key, number, uid_of(metadata), state), pools)

    def _backends(self, key: RouteKey, route: Object) -> tuple[Backend, ...]:
        known = self.parsed.get(key)
        if known is None or known[0] is not route:
            backends = (found for rule in rules_of(route) for found in backends_of(rule, key[1]))
            known = self.parsed[key] = (route, tuple(found for found in backends if found.is_pool))
        return known[1]

    def _plan(self, key: PoolKey) -> str:
        """All that a translation takes from a pool and what stands around it."""
        if key not in self._plans:
            pool = self.snapshot.pools.get(key)
            plan = "cannot be used" if key in self.snapshot.bad_pools else "is not there"
            if pool is not None:
                plan = pool_plan(self.snapshot, pool)
                plan = f"{plan}, {pool.picker}, {pool.app_protocol}"
            self._plans[key] = plan
        return self._plans[key]
