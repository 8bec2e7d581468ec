"""The watch over a pool's health: what the keeper sees, through real ledger, store and pool, on a simulated clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from heapq import heappop, heappush
from random import Random

import pytest

from headrace.core import Endpoint, FailureMode, Request
from headrace.datalayer.evidence import Failure, Origin
from headrace.datalayer.health import Cause, Health
from headrace.datalayer.health_watch import TURN_SECONDS, HealthWatch
from headrace.datalayer.ledger import InFlight, Ledger
from headrace.datalayer.metrics_page import ServerMetrics
from headrace.datalayer.pool_state import PoolState
from headrace.datalayer.store import EndpointStore
from headrace.scheduling import Facts
from headrace.scheduling.health import VERDICT


class World:
    """A pool of some servers on a simulated clock. `served` counts what each has done."""

    def __init__(self, count: int) -> None:
        self.now = 1000.0
        self.store = EndpointStore()
        self.watch = HealthWatch(self.store, clock=lambda: self.now)
        self.ledger = Ledger(self.store)
        self.pool = PoolState(
            self.store, self.ledger, clock=lambda: self.now, followers=[self.watch], observers=[self.watch]
        )
        self.endpoints = tuple(
            Endpoint(namespace="", pod_name=f"pod-{n}", address=f"10.{n // 250}.0.{n % 250}", port=8000)
            for n in range(count)
        )
        self.keys = tuple(endpoint.key for endpoint in self.endpoints)
        self.metrics = dict.fromkeys(self.keys, ServerMetrics(0, 0, 0.0, progress=0.0, first_tokens=0.0))
        self.pool.endpoints_changed(self.endpoints, FailureMode.CLOSE)
        self.watch.turn()
        for key in self.keys:
            self.page(key)

    def page(self, key: str, *, tokens: float = 0, first_tokens: float = 0, **values: object) -> None:
        """A page comes. `tokens`: how much more it counts, `first_tokens`: how many more answers have begun."""
        before = self.metrics[key]
        assert before.progress is not None
        assert before.first_tokens is not None
        after = replace(before, progress=before.progress + tokens, first_tokens=before.first_tokens + first_tokens)
        self.metrics[key] = replace(after, **values)  # type: ignore[arg-type]
        record = self.store.get(key)
        assert record is not None
        record.scraped(self.metrics[key], self.now)
        self.pool.scraped(record)

    def send(
        self, key: str, *, flow: str = "f", block: int = 0, tokens: int = 100, picks: tuple[str, ...] = ()
    ) -> InFlight:
        """A request is picked for and sent."""
        entry = self.pool.started(Request("r", fairness_id=flow), key, attached=True, tokens=tokens)
        self.watch.sent(entry, Origin(flow, block), picks or (key,))
        return entry

    def run(self, seconds: float) -> list[str]:
        """Time passes without a page; gives what is wanted ahead of others."""
        wanted = []
        for _ in range(round(seconds / TURN_SECONDS)):
            self.now += TURN_SECONDS
            wanted += self.watch.turn()
        return wanted

    def health(self, key: str) -> tuple[Health, Cause]:
        server = self.watch.ward.get(key)
        assert server is not None
        return server.health, server.cause


def still(world: World, key: str, seconds: float) -> None:
    """Time passes, and a server's pages say the same all the time."""
    for _ in range(round(seconds / TURN_SECONDS)):
        world.run(TURN_SECONDS)
        world.page(key)


def test_headers_of_streams_do_not_hide_an_engine_that_hangs() -> None:
    world = World(2)
    a, _ = world.keys
    for _ in range(5):
        world.pool.answered(world.send(a), a, 200, streaming=True)
        still(world, a, 0.6)
    assert world.health(a) == (Health.SUSPECT, Cause.NO_PROGRESS)
    still(world, a, 3.0)
    assert world.health(a)[0] is Health.OUT


def test_whole_answers_tokens_and_pages_are_progress() -> None:
    world = World(3)
    a, b, c = world.keys
    for _ in range(10):
        for key in world.keys:
            world.send(key)
        world.pool.answered(world.send(a), a, 200)
        world.pool.first_token(world.send(b))
        world.page(c, tokens=1)
        for key in (a, b):
            still(world, key, 0.6)
        assert world.watch.ward.verdict == {}


@pytest.mark.parametrize("status", [400, 404, 429])
def test_a_refusal_is_no_progress_and_no_failure(status: int) -> None:
    world = World(2)
    a, _ = world.keys
    world.send(a)
    for _ in range(8):
        entry = world.send(a)
        world.pool.answered(entry, a, status)
        world.pool.finished(entry)
        still(world, a, 0.2)
    assert world.watch.ward.verdict == {}
    still(world, a, 0.6)
    assert world.health(a)[0] is Health.SUSPECT


def test_an_answer_of_another_is_a_failure_of_each_before_it() -> None:
    world = World(4)
    a, b, c, _ = world.keys
    for number in range(3):
        entry = world.send(a, flow=f"flow-{number}", picks=(a, b, c))
        world.pool.answered(entry, c, 200)
        world.pool.finished(entry)
    world.run(TURN_SECONDS)
    assert world.health(a) == (Health.OUT, Cause.UNAVAILABLE)
    assert world.health(b) == (Health.OUT, Cause.UNAVAILABLE)
    assert world.health(c)[0] is Health.GOOD
    world.run(5.2)
    assert world.health(a) == (Health.TRIAL, Cause.RECOVERING)
    # One failure ends a trial.
    world.pool.answered(world.send(a, picks=(a, c)), c, 200)
    assert world.health(a) == (Health.OUT, Cause.UNAVAILABLE)


def test_an_answer_from_outside_the_list_speaks_against_the_first_alone() -> None:
    world = World(4)
    a, b, c, d = world.keys
    for number in range(3):
        world.pool.answered(world.send(a, flow=f"flow-{number}", picks=(a, b, c)), d, 200)
    world.run(TURN_SECONDS)
    assert world.watch.ward.verdict == {a: 0}


def test_a_page_that_does_not_come_is_a_sign_in_turns_of_the_picker() -> None:
    world = World(2)
    a, b = world.keys
    for key in world.keys:
        world.send(key)
        record = world.store.get(key)
        assert record is not None
        record.asked_at = world.now
    # The picker itself stood still.
    world.now += 60.0
    world.run(0.8)
    assert world.watch.ward.verdict == {}
    world.page(b, tokens=1)
    record = world.store.get(b)
    assert record is not None
    record.asked_at = None
    world.run(1.4)
    assert world.health(a) == (Health.SUSPECT, Cause.NO_PROGRESS)
    assert world.health(b)[0] is Health.GOOD


def test_what_several_replicas_have_seen_adds_up() -> None:
    worlds = [World(4) for _ in range(3)]
    a, b, *_ = worlds[0].keys
    for world in worlds:
        for other in worlds:
            if other is not world:
                world.watch.on_failure = _both(world.watch.on_failure, other.watch.told)
    for number, world in enumerate(worlds):
        assert world.watch.ward.verdict == {}
        world.pool.answered(world.send(a, flow=f"flow-{number}", picks=(a, b)), b, 200)
    # Each has seen one flow alone.
    assert [world.watch.ward.verdict for world in worlds] == [{a: 0}] * 3


def _both(first: Callable[[Failure], None], then: Callable[[Failure], None]) -> Callable[[Failure], None]:
    def tell(failure: Failure) -> None:
        first(failure)
        then(failure)

    return tell


def test_what_another_replica_picked_is_evidence_by_what_its_observer_sees() -> None:
    world = World(4)
    a, b, *_ = world.keys
    for number in range(3):
        entry = world.pool.observed(f"r-{number}", f"{a},{b}", f"flow-{number}")
        assert entry is not None
        world.pool.answered(entry, b, 200)
    assert world.watch.ward.verdict == {a: 0}


def test_only_good_answers_bring_back_a_server_that_answered_badly() -> None:
    world = World(2)
    a, b = world.keys
    for number in range(3):
        world.pool.answered(world.send(a, flow=f"flow-{number}"), a, 500)
        world.pool.answered(world.send(b, flow=f"flow-{number}"), b, 200)
    world.run(30.2)
    assert world.watch.ward.verdict == {a: 1}
    for _ in range(20):
        # What it had before it began to fail goes on, as with vLLM that drains.
        world.page(a, tokens=10)
        world.run(TURN_SECONDS)
    assert world.watch.ward.verdict == {a: 1}
    for _ in range(5):
        world.pool.answered(world.send(a), a, 200, streaming=True)
        world.run(0.6)
        world.page(a, tokens=10)
    assert world.watch.ward.verdict == {}


def test_a_new_server_whose_page_counts_nothing_is_good_by_its_answers() -> None:
    world = World(2)
    more = Endpoint(namespace="", pod_name="new", address="10.9.0.1", port=8000)
    world.pool.endpoints_changed((*world.endpoints, more), FailureMode.CLOSE)
    record = world.store.get(more.key)
    assert record is not None
    for _ in range(6):
        record.scraped(ServerMetrics(1, 0, 0.1), world.now)
        world.pool.scraped(record)
        entry = world.send(more.key)
        world.pool.answered(entry, more.key, 200, streaming=True)
        world.pool.finished(entry)
        world.run(0.6)
    assert world.watch.ward.verdict == {}


def test_requests_that_another_replica_accounts_for_are_forgotten() -> None:
    world = World(2)
    a, _ = world.keys
    entry = world.send(a)
    world.ledger.superseded(entry)
    world.run(6.0)
    sent = world.watch._sent[a]
    assert not sent.open
    assert not sent.unheard


@pytest.mark.parametrize("status", [500, 503])
def test_a_server_that_only_fails_is_out(status: int) -> None:
    world = World(2)
    a, b = world.keys
    for number in range(3):
        world.pool.answered(world.send(a, flow=f"flow-{number}"), a, status)
        world.pool.answered(world.send(b, flow=f"flow-{number}"), b, 200)
    world.run(TURN_SECONDS)
    assert world.health(a) == (Health.OUT, Cause.FAILURES)
    assert world.health(b)[0] is Health.GOOD


def test_an_alarm_says_what_most_of_a_sick_pool_have() -> None:
    world = World(2)
    assert world.watch.alarm() == ""
    for key in world.keys:
        world.page(key, asleep=True)
        world.run(TURN_SECONDS)
        sick = [world.health(key)[0] for key in world.keys] == [Health.OUT] * 2
        assert (world.watch.alarm() != "") == sick
    assert "of 2 endpoints" in world.watch.alarm()
    assert f"2 of them: {Cause.ASLEEP.value}" in world.watch.alarm()


def test_the_page_tells_that_prompts_are_computed() -> None:
    world = World(2)
    a, _ = world.keys
    # 40,000 tokens may take 120 s at the rate that is taken for slowest.
    for tokens in (40_000, 10):
        world.send(a, tokens=tokens)
    world.run(1.0)
    # One answer has begun: the short one, for all that is known.
    world.page(a, tokens=1, first_tokens=1)
    still(world, a, 60)
    assert world.watch.ward.verdict == {}
    world.page(a, tokens=1, first_tokens=1)
    still(world, a, 1.8)
    assert world.watch.ward.verdict == {}
    still(world, a, 0.4)
    assert world.health(a)[0] is Health.SUSPECT


def test_a_servers_own_rate_is_what_it_is_judged_by() -> None:
    world = World(2)
    a, b = world.keys
    world.send(a, tokens=20_000)
    still(world, a, 1.0)
    world.page(a, tokens=1, first_tokens=1)
    # 20,000 tokens a second, three times as long for 40,000: six seconds. The other's group has shown the same.
    for key in (a, b):
        world.send(key, tokens=40_000)
    for _ in range(28):
        world.run(TURN_SECONDS)
        for key in (a, b):
            world.page(key)
    assert world.watch.ward.verdict == {}
    world.run(0.8)
    assert [world.health(key)[0] for key in (a, b)] == [Health.SUSPECT, Health.SUSPECT]


def test_servers_that_come_later_are_new() -> None:
    world = World(2)
    more = Endpoint(namespace="", pod_name="new", address="10.9.0.1", port=8000)
    world.pool.endpoints_changed((*world.endpoints, more), FailureMode.CLOSE)
    assert world.watch.ward.verdict == {more.key: 1}
    world.pool.endpoints_changed(world.endpoints, FailureMode.CLOSE)
    assert world.watch.ward.verdict == {}


def test_picks_are_told_only_where_the_filter_is_not_off() -> None:
    world = World(2)
    world.page(world.keys[0], asleep=True)
    facts = Facts(Request("r"), world.now, Random(1))
    world.watch.prepare(facts, ())
    assert facts.attributes[VERDICT] == {world.keys[0]: 0}
    world.watch.tells = False
    facts = Facts(Request("r"), world.now, Random(1))
    world.watch.prepare(facts, ())
    assert facts.attributes == {}


@pytest.mark.parametrize(("servers", "minutes", "burst", "usual"), [(1000, 4, 40, 6), (20, 30, 3, 1)])
def test_a_healthy_pool_stays_healthy(servers: int, minutes: int, burst: int, usual: int) -> None:
    """A mixed load: bursts, a 100,000-token prompt alone on a server, slow and leaving clients, one client whose
    requests all get 400 or 500. Pages come every ten seconds, or a second after the picker asks for one."""
    world, rng = World(servers), Random(4)
    rate = 8000.0
    # By server: until when it computes prompts, and what it has done that its next page will say.
    computing = dict.fromkeys(world.keys, world.now)
    done = {key: [0, 0] for key in world.keys}
    # What happens when: a prompt is computed, a token is written, a request is over.
    events: list[tuple[float, int, str, str, InFlight]] = []
    number = 0
    suspect_turns = 0
    for turn in range(round(minutes * 60 / TURN_SECONDS)):
        hastened = world.run(TURN_SECONDS)
        while events and events[0][0] <= world.now:
            at, _, what, key, entry = heappop(events)
            if what == "over":
                world.pool.finished(entry)
            elif not entry.over:
                done[key][0] += 1
                done[key][1] += what == "first"
        for _ in range(burst if turn % 300 < 5 else usual if turn % 10 < 6 else 0):
            key = rng.choice(world.keys)
            tokens = 100_000 if rng.random() < 0.002 else rng.randrange(50, 4000)
            entry = world.send(key, flow=f"flow-{rng.randrange(50)}", block=rng.randrange(1 << 30), tokens=tokens)
            world.pool.answered(entry, key, 200, streaming=True)
            first = computing[key] = max(world.now, computing[key]) + tokens / rate
            ends = first + rng.uniform(0.5, 20.0)
            # Some leave, most of them before they are answered.
            leaves = world.now + rng.uniform(0.0, 1.0) if rng.random() < 0.05 else ends
            steps = [(first + 0.1 * step, "token") for step in range(1, int((ends - first) / 0.1))]
            for at, what in [(first, "first"), *steps, (leaves, "over")]:
                number += 1
                heappush(events, (at, number, what, key, entry))
        # One client that gets nothing else.
        for key in rng.sample(world.keys, 2):
            entry = world.send(key, flow="bad client", block=turn)
            world.pool.answered(entry, key, rng.choice((400, 500)))
            world.pool.finished(entry)
        for at_turn, key in enumerate(world.keys):
            if key in hastened or turn % 50 == at_turn % 50:
                written, begun = done[key]
                done[key] = [0, 0]
                world.page(key, tokens=written, first_tokens=begun)
        counts = world.watch.ward.counts()
        assert not counts[Health.OUT], turn
        suspect_turns += counts[Health.SUSPECT]
    assert suspect_turns == 0
