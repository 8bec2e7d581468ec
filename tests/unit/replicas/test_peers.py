"""Replicas' books agree: every request counts once for everybody, whoever picked it and whoever observes it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.datalayer.evidence import Failure, Origin
from headrace.datalayer.ledger import UNOBSERVED_SECONDS, InFlight
from headrace.datalayer.metrics_page import ServerMetrics
from headrace.replicas import peers_pb2 as messages
from headrace.replicas.peer_accounts import SILENT_SECONDS, OutOfStep, Peer, read_update

from .replicas import KEYS, Fleet, Replica

NOTHING = dict.fromkeys(KEYS, (0, 0, 0))


def one(key: str = KEYS[0], tokens: int = 10) -> dict[str, tuple[int, int, int]]:
    return {**NOTHING, key: (1, 100, tokens)}


def test_a_request_counts_at_every_replica_until_it_ends() -> None:
    fleet = Fleet.of(3)
    a = fleet.replicas[0]
    entry = a.pick("r", KEYS[1])
    fleet.settle()
    assert [replica.counts() for replica in fleet.replicas] == [one(KEYS[1])] * 3
    assert [len(replica.ledger) for replica in fleet.replicas] == [1, 0, 0]
    assert a.ledger.observe("r", KEYS[1], fleet.clock()) is entry
    a.ledger.prompt_computed(entry)
    fleet.settle()
    assert [replica.counts() for replica in fleet.replicas] == [one(KEYS[1], 0)] * 3
    a.ledger.move(entry, KEYS[2], fleet.clock())
    fleet.settle()
    assert [replica.counts() for replica in fleet.replicas] == [one(KEYS[2], 0)] * 3
    a.ledger.finish(entry, fleet.clock())
    fleet.settle()
    assert [replica.counts() for replica in fleet.replicas] == [NOTHING] * 3


@pytest.mark.parametrize("told_first", [True, False])
def test_an_observation_elsewhere_ends_the_right_request(told_first: bool) -> None:
    """Whether the pick is known where it is observed, or the observation is faster."""
    fleet = Fleet.of(3)
    a, b, _ = fleet.replicas
    pick = a.pick("r")
    pick.flow = "tenant"
    if told_first:
        fleet.settle()
    observed = b.ledger.observe("r", KEYS[0], fleet.clock())
    assert observed is not None
    fleet.settle()
    assert (observed.model, observed.flow, observed.tokens) == ("model", "tenant", 10)
    assert pick.over
    assert [replica.counts() for replica in fleet.replicas] == [one()] * 3
    assert [len(replica.ledger) for replica in fleet.replicas] == [0, 1, 0]
    assert not a.ledger.expire(fleet.clock() + 2 * UNOBSERVED_SECONDS)
    b.ledger.finish(observed, fleet.clock())
    fleet.settle()
    assert [replica.counts() for replica in fleet.replicas] == [NOTHING] * 3


def test_an_observation_that_is_over_before_the_pick_is_told() -> None:
    fleet = Fleet.of(3)
    a, b, c = fleet.replicas
    a.pick("r")
    observed = b.ledger.observe("r", KEYS[0], fleet.clock())
    assert observed is not None
    b.ledger.finish(observed, fleet.clock())
    c.hear(b)
    fleet.settle()
    assert [replica.counts() for replica in fleet.replicas] == [NOTHING] * 3
    assert len(a.ledger) == 0
    # The same client may use the id again.
    a.pick("r")
    fleet.settle()
    assert [replica.counts() for replica in fleet.replicas] == [one()] * 3


def test_the_prompt_was_computed_before_the_pick_is_told() -> None:
    fleet = Fleet.of(2)
    a, b = fleet.replicas
    a.pick("r")
    observed = b.ledger.observe("r", KEYS[0], fleet.clock())
    assert observed is not None
    b.ledger.prompt_computed(observed)
    fleet.settle()
    assert [replica.counts() for replica in fleet.replicas] == [one(tokens=0)] * 2


def test_a_dead_replica_takes_its_counts_with_it() -> None:
    fleet = Fleet.of(2)
    a, b = fleet.replicas
    a.pick("mine")
    b.pick("theirs", KEYS[1])
    b.pick("observed by us")
    fleet.settle()
    ours = a.ledger.observe("observed by us", KEYS[0], fleet.clock())
    fleet.settle()
    assert a.counts() == {**NOTHING, KEYS[0]: (2, 200, 20), KEYS[1]: (1, 100, 10)}
    fleet.clock.now += SILENT_SECONDS - 0.1
    assert a.peers.expire() == []
    fleet.clock.now += 0.2
    assert a.peers.expire() == ["replica-1"]
    # What it picked and we observe is ours.
    assert a.counts() == {**NOTHING, KEYS[0]: (2, 200, 20)}
    assert ours is not None
    a.ledger.finish(ours, fleet.clock())
    assert a.counts() == one()
    # It was only slow.
    with pytest.raises(OutOfStep):
        a.peers.receive(read_update(b.journal.sign_of_life()))
    fleet.settle()
    assert a.counts() == {**NOTHING, KEYS[0]: (1, 100, 10), KEYS[1]: (1, 100, 10)}


def test_a_slow_replica_gets_the_account_as_a_whole() -> None:
    fleet = Fleet.of(2, kept_bytes=2000)
    a, b = fleet.replicas
    entries = []
    for number in range(100):
        entries.append(a.pick(f"r{number}"))
        a.journal.cut()
    for entry in entries[:60]:
        a.ledger.finish(entry, fleet.clock())
    assert a.journal.lag(b.links["replica-0"].sequence or 0) == 0.0  # no time has passed
    b.hear(a)
    assert b.counts() == a.counts() == {**NOTHING, KEYS[0]: (40, 4000, 400)}


def test_a_long_account_comes_in_parts_and_changes_meanwhile() -> None:
    fleet = Fleet.of(2)
    a, b = fleet.replicas
    entries = [a.pick(f"r{number}") for number in range(1200)]
    sequence, parts = a.journal.account(a.ledger.own())
    b.peers.receive(read_update(next(parts)))
    for entry in (*entries[:10], *entries[-10:]):
        a.ledger.finish(entry, fleet.clock())
    a.ledger.move(entries[600], KEYS[1], fleet.clock())
    for raw in parts:
        b.peers.receive(read_update(raw))
    b.links["replica-0"].sequence = sequence
    b.hear(a)
    assert b.counts() == a.counts()
    assert b.counts()[KEYS[1]] == (1, 100, 10)


def test_an_endpoint_that_another_replica_knew_first() -> None:
    fleet = Fleet.of(2)
    a, b = fleet.replicas
    b.set_endpoints(*KEYS[1:])
    a.pick("r", KEYS[0])
    fleet.settle()
    assert KEYS[0] not in b.counts()
    b.set_endpoints(*KEYS)
    assert b.counts() == one()


def test_prefixes_are_told_and_a_new_replica_learns_all() -> None:
    fleet = Fleet.of(2)
    a, b = fleet.replicas
    a.index.insert([1, 2, 3], KEYS[0])
    a.journal.sent(KEYS[0], [1, 2, 3])
    a.pick("r")
    fleet.settle()
    assert b.index.matches([1, 2, 3, 4]) == {KEYS[0]: 3}
    a.index.insert([7, 8], KEYS[1])
    new = Replica("new", fleet.clock)
    for raw in (*a.journal.account(a.ledger.own())[1], *a.journal.prefixes(a.journal.sequence)):
        new.peers.receive(read_update(raw))
    assert {key: new.index.blocks(key) for key in KEYS} == {key: a.index.blocks(key) for key in KEYS}
    # Hashes of blocks of another size mean nothing.
    update = messages.Update(replica="x", reset=True)
    update.sent.add(endpoint=KEYS[2], block_bytes=1, blocks=[9])
    new.peers.receive(update)
    assert new.index.matches([9]) == {}


def test_failures_are_told_once_and_only_to_those_who_follow() -> None:
    fleet = Fleet.of(2)
    a, b = fleet.replicas
    heard: list[Failure] = []
    b.peers.on_failure = heard.append
    failures = [Failure(KEYS[0], Origin("flow", 7), KEYS[1]), Failure(KEYS[2], Origin("x" * 500, -1))]
    for failure in failures:
        a.journal.failed(failure)
    fleet.settle()
    assert heard == [failures[0], Failure(KEYS[2], Origin("x" * 128, (1 << 64) - 1))]
    heard.clear()
    for _ in range(5000):
        a.journal.failed(failures[0])
    fleet.settle()
    assert len(heard) == 100
    # Of the account as a whole they are no part.
    heard.clear()
    a.journal.failed(failures[0])
    b.cut_off(a)
    b.follow(a)
    fleet.settle()
    assert heard == []
    alone = Replica("alone", fleet.clock)
    alone.journal.failed(failures[0])
    assert not alone.journal.pending.is_set()


def test_pages_that_counted_a_replicas_requests_are_not_corrected_by_them_again() -> None:
    fleet = Fleet.of(2)
    a, b = fleet.replicas
    for number in range(5):
        b.pick(f"r{number}")
    record = a.store.get(KEYS[0])
    assert record is not None
    fleet.clock.now += 1.0
    record.scraped(ServerMetrics(running=5, waiting=0), asked_at=fleet.clock() - 0.1)
    a.follow(b)
    a.hear(b)
    assert (a.store.snapshot()[0].running, a.store.snapshot()[0].waiting) == (5, 0)
    b.pick("new")
    a.hear(b)
    assert (a.store.snapshot()[0].running, a.store.snapshot()[0].waiting) == (5, 1)
    # The server goes on with what a dead replica sent.
    a.peers.forget("replica-1")
    assert (a.store.snapshot()[0].running, a.store.snapshot()[0].in_flight) == (5, 0)


def test_a_page_with_too_few_requests_ends_only_our_share() -> None:
    fleet = Fleet.of(2)
    for number in range(4):
        for replica in fleet.replicas:
            replica.pick(f"{replica.name} {number}")
    fleet.settle()
    fleet.clock.now += 1.0
    a = fleet.replicas[0]
    record = a.store.get(KEYS[0])
    assert record is not None
    record.scraped(ServerMetrics(running=4, waiting=0), asked_at=fleet.clock())
    assert len(a.ledger.reconcile(record, 4, fleet.clock(), fleet.clock())) == 2


@pytest.mark.parametrize("raw", [b"\xff\xff", b"", b"\x0a\x05ab", b"\x12\x00"])
def test_what_is_no_update_is_said_to_be_none(raw: bytes) -> None:
    with pytest.raises(OutOfStep):
        read_update(raw)


def test_an_update_out_of_turn_is_refused() -> None:
    fleet = Fleet.of(2)
    a, _ = fleet.replicas
    peer = a.peers.get("replica-1")
    assert peer is not None
    for sequence in (peer.sequence + 2, peer.sequence - 1 if peer.sequence else 7):
        with pytest.raises(OutOfStep, match="in place of"):
            a.peers.receive(messages.Update(replica="replica-1", sequence=sequence))


def test_lag_is_what_comes_on_top_of_the_fastest_way_whatever_the_clocks_say() -> None:
    peer = Peer("r", heard_at=0.0)
    peer.heard(made_at=5000.0, now=10.0)
    assert peer.lag == 0.0
    peer.heard(made_at=5001.0, now=11.5)
    assert peer.lag == pytest.approx(0.5, abs=0.001)
    peer.heard(made_at=5002.0, now=12.0)
    assert peer.lag == pytest.approx(0.0, abs=0.001)
    # The other clock is slow: over a day that must not look like lag.
    for second in range(0, 86_400, 60):
        peer.heard(made_at=5002.0 + second * 0.9999, now=12.0 + second)
    assert peer.lag < 0.02


class Replicas(RuleBasedStateMachine):
    """Any order of picks, observations, ends, messages, broken streams and deaths; at rest all books are the truth's.

    The truth: a request counts from its pick to its end, for the endpoint that served it. Its size and tokens are known
    only where the pick was told of: not always, where a stream broke in between."""

    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet.of(3, kept_bytes=1500)
        self.number = 0
        # Requests that are on their way: who picked it and where, and, if it is observed, its entry and by whom.
        self.picked: dict[str, tuple[Replica, InFlight]] = {}
        self.observed: dict[str, tuple[Replica, InFlight]] = {}
        self.unbroken = True

    @rule(who=st.integers(0, 2), key=st.sampled_from(KEYS), blocks=st.integers(0, 3))
    def pick(self, who: int, key: str, blocks: int) -> None:
        replica = self.fleet.replicas[who % len(self.fleet.replicas)]
        self.number += 1
        entry = replica.pick(f"r{self.number}", key)
        replica.journal.sent(key, list(range(self.number, self.number + blocks)))
        self.picked[entry.request_id] = replica, entry

    @precondition(lambda self: self.picked)
    @rule(who=st.integers(0, 2), data=st.data())
    def observe(self, who: int, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.picked)))
        _, pick = self.picked.pop(request_id)
        replica = self.fleet.replicas[who % len(self.fleet.replicas)]
        entry = replica.ledger.observe(request_id, pick.picked_for, self.fleet.clock())
        assert entry is not None
        self.observed[request_id] = replica, entry

    @precondition(lambda self: self.observed)
    @rule(what=st.sampled_from(["end", "end", "token", "move"]), key=st.sampled_from(KEYS), data=st.data())
    def go_on(self, what: str, key: str, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.observed)))
        replica, entry = self.observed[request_id]
        if what == "end":
            del self.observed[request_id]
            assert replica.ledger.finish(entry, self.fleet.clock())
        elif what == "token":
            replica.ledger.prompt_computed(entry)
        else:
            replica.ledger.move(entry, key, self.fleet.clock())

    @rule(who=st.integers(0, 2), other=st.integers(0, 2), batches=st.integers(1, 3))
    def tell(self, who: int, other: int, batches: int) -> None:
        count = len(self.fleet.replicas)
        if who % count != other % count:
            self.fleet.replicas[who % count].hear(self.fleet.replicas[other % count], batches)

    @rule(who=st.integers(0, 2))
    def cut(self, who: int) -> None:
        self.fleet.replicas[who % len(self.fleet.replicas)].journal.cut()

    @rule(who=st.integers(0, 2), other=st.integers(0, 2))
    def reconnect(self, who: int, other: int) -> None:
        count = len(self.fleet.replicas)
        if who % count != other % count:
            self.unbroken = False
            self.fleet.replicas[who % count].follow(self.fleet.replicas[other % count])

    @precondition(lambda self: len(self.fleet.replicas) > 1)
    @rule(who=st.integers(0, 2))
    def kill(self, who: int) -> None:
        self.unbroken = False
        dead = self.fleet.replicas.pop(who % len(self.fleet.replicas))
        self.picked = {name: found for name, found in self.picked.items() if found[0] is not dead}
        self.observed = {name: found for name, found in self.observed.items() if found[0] is not dead}
        for replica in self.fleet.replicas:
            replica.peers.forget(dead.name)
            replica.cut_off(dead)

    @invariant()
    def nothing_is_below_zero(self) -> None:
        for replica in self.fleet.replicas:
            for record in replica.store.records():
                assert 0 <= record.of_peers <= record.in_flight
                assert record.in_flight_bytes >= 0
                assert record.in_flight_tokens >= 0

    def teardown(self) -> None:
        fleet = self.fleet
        fleet.settle()
        # What nobody observes any more (its observer died before it told anybody) expires. The others are observed.
        for owner, pick in self.picked.values():
            assert owner.ledger.observe(pick.request_id, pick.picked_for, fleet.clock()) is pick
        for replica in fleet.replicas:
            replica.ledger.expire(fleet.clock() + UNOBSERVED_SECONDS)
        fleet.settle()
        entries = [entry for _, entry in (*self.picked.values(), *self.observed.values())]
        for replica in fleet.replicas:
            assert {key: counts[0] for key, counts in replica.counts().items()} == {
                key: Counter(entry.endpoint for entry in entries)[key] for key in KEYS
            }
        if self.unbroken and not any(replica.anew for replica in fleet.replicas):
            assert all(replica.counts() == fleet.replicas[0].counts() for replica in fleet.replicas)
        for owner, entry in (*self.picked.values(), *self.observed.values()):
            owner.ledger.finish(entry, fleet.clock())
        fleet.settle()
        for replica in fleet.replicas:
            assert replica.counts() == NOTHING
            assert len(replica.ledger) == 0


TestReplicas = Replicas.TestCase
TestReplicas.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    # A busy machine is no fault of the strategies.
    suppress_health_check=[HealthCheck.too_slow],
)
