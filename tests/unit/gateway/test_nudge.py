"""What is out of date, how that is told, and that every change is translated, however late the informers are."""

from __future__ import annotations

import asyncio
import copy
import heapq
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import GA_GROUP
from headrace.gateway.in_effect import InEffect
from headrace.gateway.metrics import Metrics
from headrace.gateway.nudge import _ATTEMPTS, Nudge
from headrace.gateway.snapshot import Snapshot
from headrace.gateway.status import pool_plan
from headrace.gateway.translate import named_rules, translate
from headrace.protocol.objects import ROUTES_TRANSLATED
from headrace.protocol.translated import TranslatedRoute, read_routes, write_routes
from tests.unit.gateway import objects as o

KEY = (GA_GROUP, "default", "pool")
GATEWAY = ("default", "gateway")
ROUTE = ("HTTPRoute", "default", "r")
CALL = o.hook_input([o.xds_route("httproute/default/r/rule/0/match/0/*")])


def plan(found: Snapshot) -> str:
    return pool_plan(found, found.pools[KEY])


def policy(hostname: str) -> dict[str, Any]:
    target = {"group": "", "kind": "Service", "name": "epp"}
    return {"metadata": o.metadata("p"), "spec": {"targetRefs": [target], "validation": {"hostname": hostname}}}


BASE = plan(o.snapshot([o.pool()], services=[o.service()]))


@pytest.mark.parametrize(
    "changed",
    [
        o.snapshot([o.pool()]),
        o.snapshot([o.pool()], services=[o.service(ours=False)]),
        o.snapshot([o.pool()], services=[o.service(appProtocol="kubernetes.io/h2c")]),
        o.snapshot([o.pool()], services=[o.service()], backend_tls_policies=[policy("other.test")]),
        o.snapshot([o.pool(failure_mode="FailOpen")], services=[o.service()]),
        o.snapshot([o.pool(annotations={"headrace.dev/request-body-mode": "BUFFERED"})], services=[o.service()]),
        o.snapshot([o.pool(annotations={"headrace.dev/response-observation": "all"})], services=[o.service()]),
    ],
)
def test_a_plan_says_what_a_translation_takes(changed: Snapshot):
    assert plan(changed) != BASE


def test_a_plan_says_nothing_of_what_a_translation_does_not_take():
    same = o.snapshot(
        [o.pool(annotations={"other": "x"}, labels={"a": "b"}, resourceVersion="9")],
        services=[o.service()],
        pods=[o.pod("a", "10.0.0.1")],
    )
    assert plan(same) == BASE


def route(generation: int = 1, *, weight: int = 1, uid: str = "u1", pool: str = "pool", **more: Any) -> dict[str, Any]:
    found = o.route("r", [o.pool_ref(pool, weight)], **more)
    found["metadata"] |= {"generation": generation, "uid": uid}
    return found


def world(*pools: Mapping[str, Any], **kinds: Any) -> Snapshot:
    base = {
        "http_routes": [route()],
        "gateways": [o.gateway()],
        "gateway_classes": [o.gateway_class()],
        "services": [o.service()],
    }
    return o.snapshot(pools or [o.pool()], **{**base, **kinds})


class Replica:
    """What one controller knows. `pool` is the pool object with the status that is shared with other replicas."""

    def __init__(self, snapshot: Snapshot, pool: dict[str, Any] | None = None) -> None:
        self.snapshot = snapshot
        self.pool = o.pool() if pool is None else pool
        self.in_effect = InEffect(lambda: self.snapshot, lambda: {KEY: self.pool})

    def translate(self) -> None:
        self.in_effect.translated(named_rules(CALL), self.snapshot)

    def write(self) -> None:
        status = o.wanted(self.pool, self.snapshot, "t", translated=self.in_effect.condition)
        self.pool["status"] = {**self.pool.get("status", {}), **(status or {})}

    def condition(self) -> dict[str, Any]:
        (entry,) = self.pool["status"]["parents"]
        return next((found for found in entry["conditions"] if found["type"] == ROUTES_TRANSLATED), {})


@pytest.mark.parametrize(
    "newer",
    [
        world(http_routes=[route(2)]),
        world(http_routes=[route(1, uid="u2")]),
        world(services=[]),
        world(o.pool(failure_mode="FailOpen")),
        world(o.pool(annotations={"headrace.dev/request-body-mode": "BUFFERED"})),
        world(o.pool("other")),
    ],
    ids=["generation", "another object", "picker", "spec of the pool", "annotation", "pool gone"],
)
def test_what_a_translation_has_not_seen_is_out_of_date(newer: Snapshot):
    replica = Replica(world())
    replica.translate()
    assert replica.in_effect.stale() == {}
    replica.snapshot = newer
    assert set(replica.in_effect.stale()[GATEWAY]) == {ROUTE}
    replica.translate()
    assert replica.in_effect.stale() == {}


def test_a_grant_that_comes_or_goes_makes_a_translation_old():
    ref = {"parentRefs": [{"name": "gateway"}], "rules": [{"backendRefs": [o.pool_ref(namespace="far")]}]}
    crossing = {**route(), "spec": ref}
    grant = {
        "metadata": o.metadata("g", "far"),
        "spec": {
            "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "default"}],
            "to": [{"group": GA_GROUP, "kind": "InferencePool"}],
        },
    }
    without = world(http_routes=[crossing])
    replica = Replica(without)
    replica.translate()
    replica.snapshot = world(http_routes=[crossing], reference_grants=[grant])
    assert replica.in_effect.stale()
    replica.translate()
    replica.snapshot = without
    assert replica.in_effect.stale()


@pytest.mark.parametrize(
    "same",
    [
        world(http_routes=[{**route(), "status": {"parents": [{}]}}]),
        world(http_routes=[route(annotations={"a": "b"})]),
        world(o.pool(labels={"a": "b"}, resourceVersion="9")),
        world(pods=[o.pod("a", "10.0.0.1")]),
        world(http_routes=[]),
    ],
    ids=["status", "annotation of a route", "label of a pool", "Pod", "route gone"],
)
def test_what_a_translation_does_not_take_makes_nothing_old(same: Snapshot):
    replica = Replica(world())
    replica.translate()
    replica.snapshot = same
    assert replica.in_effect.stale() == {}


def test_informers_that_are_behind_a_list_make_nothing_old():
    replica = Replica(world())
    replica.in_effect.translated(named_rules(CALL), world(http_routes=[route(3)]))
    assert replica.in_effect.stale() == {}
    # Another route of that name is another one, whatever its generation.
    replica.snapshot = world(http_routes=[route(1, uid="u2")])
    assert replica.in_effect.stale()


def test_each_gateway_has_its_own_translation():
    replica = Replica(world(gateways=[o.gateway(), o.gateway("second")]))
    rules = frozenset().union(*named_rules(CALL).values())
    replica.translate()
    replica.snapshot = world(gateways=[o.gateway(), o.gateway("second")], http_routes=[route(2)])
    replica.in_effect.translated({"default/second/http": rules}, replica.snapshot)
    assert set(replica.in_effect.stale()) == {GATEWAY}


def test_the_status_says_what_is_translated_and_what_is_not_yet():
    replica = Replica(world())
    replica.write()
    assert replica.condition() == {}
    replica.translate()
    replica.write()
    assert replica.condition()["status"] == "True"
    assert read_routes(replica.condition()["message"])[ROUTE].generation == 1
    replica.snapshot = world(http_routes=[route(2)])
    assert replica.in_effect.retranslate(GATEWAY, [ROUTE], 1)
    replica.write()
    first = replica.condition()
    assert (first["status"], read_routes(first["message"])[ROUTE].generation) == ("False", 1)
    # Envoy Gateway compares: another attempt has to look otherwise.
    replica.in_effect.retranslate(GATEWAY, [ROUTE], 2)
    replica.write()
    assert replica.condition()["message"] != first["message"]
    replica.translate()
    replica.write()
    assert replica.condition()["status"] == "True"
    assert read_routes(replica.condition()["message"])[ROUTE].generation == 2


def test_a_pool_without_weight_cannot_carry_the_word():
    replica = Replica(world(http_routes=[route(weight=0)]))
    replica.translate()
    assert not replica.in_effect.retranslate(GATEWAY, [ROUTE], 1)


def test_a_replica_that_is_not_asked_goes_by_the_status():
    asked = Replica(world())
    asked.translate()
    asked.write()
    other = Replica(world(), asked.pool)
    other.in_effect.start()
    other.snapshot = world(http_routes=[route(2)])
    assert other.in_effect.stale()
    # It leaves alone what the other one wrote.
    other.write()
    assert other.condition()["status"] == "True"
    asked.snapshot = other.snapshot
    asked.translate()
    asked.write()
    assert other.in_effect.stale() == {}
    # One that was asked itself goes by its own translation: another Envoy Gateway may ask the other replica.
    late = Replica(world(), asked.pool)
    late.translate()
    late.snapshot = other.snapshot
    assert late.in_effect.stale()
    late.in_effect.forget(GATEWAY)
    assert late.in_effect.stale() == {}


def test_what_was_there_at_the_start_is_taken_for_translated():
    replica = Replica(world())
    replica.in_effect.start()
    assert replica.in_effect.stale() == {}
    replica.snapshot = world(services=[])
    assert replica.in_effect.stale()
    replica.in_effect.start()
    assert replica.in_effect.stale()
    replica.in_effect.assume(GATEWAY)
    assert replica.in_effect.stale() == {}


entries = st.builds(
    TranslatedRoute,
    st.tuples(
        st.sampled_from(["HTTPRoute", "GRPCRoute"]),
        st.from_regex(r"[a-z0-9-]{1,20}", fullmatch=True),
        st.from_regex(r"[a-z0-9.-]{1,40}", fullmatch=True),
    ),
    st.integers(0, 1 << 50),
    st.from_regex(r"[0-9a-f]{0,8}", fullmatch=True),
    st.from_regex(r"[0-9a-f]{0,8}", fullmatch=True),
)


@given(st.lists(entries, max_size=20, unique_by=lambda entry: entry.key))
def test_the_routes_of_a_status_are_read_as_they_were_written(routes: list[TranslatedRoute]):
    text = f"attempt 3 to have HTTPRoute default/r translated again; in effect: {write_routes(routes)}"
    assert read_routes(text) == {entry.key: entry for entry in routes}


def test_the_routes_of_a_status_fit_into_a_condition():
    routes = [TranslatedRoute(("HTTPRoute", "n" * 63, f"{number}{'x' * 240}"), 1, "u", "s") for number in range(500)]
    assert len(write_routes(routes)) <= 30_000
    assert read_routes(None) == {}


# ---- late informers, in virtual time


class Simulation:
    """Envoy Gateway, the API server and the controller on one clock. Envoy Gateway sees everything at once, and calls
    where what it compares differs from its last call; the informers hear of everything `late`."""

    def __init__(self, late: float) -> None:
        self.late = late
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self.route = route(1)
        self.pool = o.pool()
        self.known_route, self.known_pool = self.route, self.pool
        self.compared: object = None
        self.envoy_generation = 0
        self.calls = 0
        self.failing_calls = 0
        self.in_effect = InEffect(self.snapshot, lambda: {KEY: self.known_pool})
        self.nudge = Nudge(self.in_effect, self.write, self.compare, Metrics(), clock=lambda: self.now)
        self.nudge.changed()

    def snapshot(self) -> Snapshot:
        return world(self.known_pool, http_routes=[self.known_route])

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), action))

    def patch(self, weight: int) -> None:
        self.route = route(self.route["metadata"]["generation"] + 1, weight=weight)
        newest = self.route
        self.after(self.late, lambda: setattr(self, "known_route", newest))
        self.reconcile()

    def reconcile(self) -> None:
        content = copy.deepcopy((self.route["spec"], self.pool.get("status")))
        if content == self.compared:
            return
        self.compared = content
        self.calls += 1
        if self.failing_calls:
            self.failing_calls -= 1
            return
        snapshot = self.snapshot()
        translate(CALL, snapshot)
        self.nudge.translated(named_rules(CALL), snapshot)
        found = snapshot.routes.get(("HTTPRoute", "default", "r"))
        assert found is not None
        self.envoy_generation = found["metadata"]["generation"]

    async def write(self) -> None:
        """The writer knows what its own writes made of the pool."""
        snapshot = self.snapshot()
        status = o.wanted(self.pool, snapshot, str(self.now), translated=self.in_effect.condition)
        if status is not None:
            self.pool = {**self.pool, "status": status}
            newest = self.pool
            self.after(self.late, lambda: setattr(self, "known_pool", newest))

    async def compare(self) -> None:
        self.reconcile()

    async def run(self, seconds: float) -> None:
        """Let time pass: after each change, and whenever it asked to be, the nudge is awake."""
        end = self.now + seconds
        while True:
            pause = await self.nudge.step()
            await self.write()
            times = [self._events[0][0]] if self._events else []
            if pause is not None:
                times.append(self.now + pause)
            if not times or min(times) > end:
                break
            self.now = max(self.now, min(times))
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
        self.now = end


@pytest.mark.parametrize("late", [0.002, 0.02, 0.2, 1.0, 5.0])
async def test_a_change_of_weights_is_translated_however_late_the_informers_are(late: float):
    found = Simulation(late)
    found.reconcile()
    for weight in (3, 1, 3):
        found.patch(weight)
        assert found.envoy_generation < found.route["metadata"]["generation"]
        await found.run(late + 2.0)
        assert found.envoy_generation == found.route["metadata"]["generation"]
        assert found.in_effect.stale() == {}
    # One call with the change, one that was caused: nothing goes on by itself.
    before = found.calls
    await found.run(1_000.0)
    assert found.calls == before <= 1 + 2 * 3


@given(
    late=st.floats(0.001, 6.0),
    pauses=st.lists(st.floats(0.0, 4.0), min_size=1, max_size=12),
    failing=st.integers(0, 3),
)
def test_no_change_is_lost(late: float, pauses: list[float], failing: int):
    async def run() -> None:
        found = Simulation(late)
        found.reconcile()
        found.failing_calls = failing
        for number, pause in enumerate(pauses):
            found.patch(1 + number % 3)
            await found.run(pause)
        # Calls that fail are tried again, at 2 s, 4 s and so on.
        await found.run(late + 40.0)
        assert found.envoy_generation == found.route["metadata"]["generation"]

    asyncio.run(run())


async def test_a_replica_that_nobody_asks_any_more_stops_by_itself():
    found = Simulation(0.02)
    found.reconcile()
    asked, found.calls = found.calls, 0
    # Envoy Gateway asks another replica, which does not tell: no call comes here any more.
    found.failing_calls = 1_000
    found.patch(3)
    await found.run(70.0)
    assert not found.in_effect.is_asked(GATEWAY)
    assert asked == 1


# ---- a replica that is not asked, in virtual time

BOTH = o.hook_input([o.xds_route(f"httproute/default/{name}/rule/0/match/0/*") for name in ("r", "other")])
OTHER_ROUTE = o.route("other", [o.pool_ref()])


def refused(found: dict[str, Any]) -> dict[str, Any]:
    parent = {
        "controllerName": o.CONTROLLER,
        "parentRef": {"name": "gateway"},
        "conditions": [{"type": "Accepted", "status": "False"}],
    }
    return {**found, "status": {"parents": [parent]}}


def to_service(generation: int) -> dict[str, Any]:
    found = route(generation)
    return {**found, "spec": {**found["spec"], "rules": [{"backendRefs": [{"name": "web", "port": 80}]}]}}


async def attempts_of(replica: Replica, seconds: float = 2_000.0) -> int:
    """How often a replica causes a translation in that time, where no call comes to it and no status is written by
    another replica."""
    now, attempts = 0.0, 0

    async def said() -> None:
        replica.write()

    async def compare() -> None:
        nonlocal attempts
        attempts += 1

    nudge = Nudge(replica.in_effect, said, compare, Metrics(), clock=lambda: now)
    while (pause := await nudge.step()) is not None and now < seconds:
        now += pause
    return attempts


async def test_a_route_that_leads_to_a_service_by_now_is_not_translated_again_for_ever():
    before, after = world(http_routes=[route(), OTHER_ROUTE]), world(http_routes=[to_service(2), OTHER_ROUTE])
    asked = Replica(before)
    other = Replica(before, asked.pool)
    other.in_effect.start()
    asked.snapshot = other.snapshot = after
    asked.in_effect.translated(named_rules(BOTH), after)
    asked.write()
    assert set(read_routes(asked.condition()["message"])) == {("HTTPRoute", "default", "other")}
    assert await attempts_of(other) == _ATTEMPTS
    assert other.in_effect.stale() == {}


@pytest.mark.parametrize(
    "newer",
    [world(http_routes=[route(2), OTHER_ROUTE]), world(o.pool("another"))],
    ids=["not in the status", "pool gone"],
)
async def test_a_route_of_which_no_status_tells_is_not_translated_again_for_ever(newer: Snapshot):
    replica = Replica(world(http_routes=[route(), OTHER_ROUTE]))
    replica.in_effect.start()
    replica.snapshot = newer
    assert 0 < await attempts_of(replica) <= _ATTEMPTS
    assert replica.in_effect.stale() == {}
    # The next change is looked after as the first one was.
    replica.snapshot = world(http_routes=[route(3), OTHER_ROUTE])
    assert await attempts_of(replica) == _ATTEMPTS


async def test_giving_up_one_route_gives_up_no_other():
    replica = Replica(world(http_routes=[route(), OTHER_ROUTE]))
    replica.translate()
    replica.write()
    late = Replica(replica.snapshot, replica.pool)
    late.in_effect.start()
    newer = {**OTHER_ROUTE, "metadata": {**OTHER_ROUTE["metadata"], "generation": 2}}
    late.snapshot = world(http_routes=[route(2), newer])
    assert await attempts_of(late) > 2 * _ATTEMPTS
    assert set(late.in_effect.stale()[GATEWAY]) == {ROUTE}


@pytest.mark.parametrize("first", [route(), refused(route())], ids=["accepted at first", "never accepted"])
async def test_a_route_that_the_gateway_refuses_is_not_waited_for(first: dict[str, Any]):
    replica = Replica(world(http_routes=[first, OTHER_ROUTE]))
    replica.in_effect.start()
    replica.snapshot = world(http_routes=[refused(route(2)), OTHER_ROUTE])
    assert await attempts_of(replica) == 0


async def test_the_status_stops_naming_routes_when_the_last_translated_one_leaves_a_pool():
    asked = Replica(world(http_routes=[route(), refused(OTHER_ROUTE)]))
    other = Replica(asked.snapshot, asked.pool)
    asked.translate()
    asked.write()
    other.in_effect.start()
    asked.snapshot = other.snapshot = world(http_routes=[to_service(2), refused(OTHER_ROUTE)])
    asked.translate()
    asked.write()
    assert read_routes(asked.condition()["message"]) == {}
    assert await attempts_of(other) <= _ATTEMPTS
    # What the other one wrote on the pool does not stay.
    asked.write()
    assert (asked.condition()["status"], asked.condition()["reason"]) == ("True", "Translated")
