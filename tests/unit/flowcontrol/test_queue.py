"""The rules of waiting: priorities, fairness, bounds, times to live, eviction; and what always holds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.flowcontrol.config import BandConfig
from headrace.flowcontrol.fairness import GlobalStrict, LeastAttainedService, RoundRobin
from headrace.flowcontrol.limits import PriorityHoldback, StaticLimit
from headrace.flowcontrol.ordering import EarliestDeadlineFirst, SloDeadline
from headrace.flowcontrol.queue import BAND_IDLE_SECONDS, FlowQueue, Outcome, Ticket

from .values import request, settings


def queue(**fields: object) -> FlowQueue:
    made = FlowQueue(settings(**fields))
    made.set_endpoints(True, 0.0)
    return made


def drain(made: FlowQueue, now: float = 1.0, saturation: float = 0.0) -> list[str]:
    """Who goes, in order, while the pool stays as full as this."""
    order = []
    while (ticket := made.dispatch(saturation, now)) is not None:
        order.append(ticket.request.request_id)
    return order


def test_higher_priorities_go_first_and_each_in_order() -> None:
    made = queue()
    for number, priority in enumerate([0, -1, 5, 0, 5]):
        made.offer(request(f"{priority}.{number}", priority), float(number))
    assert drain(made) == ["5.2", "5.4", "0.0", "0.3", "-1.1"]


def test_nobody_goes_while_the_pool_is_full_or_has_no_endpoints() -> None:
    made = queue()
    made.offer(request("a"), 0.0)
    assert made.dispatch(1.0, 0.0) is None
    made.set_endpoints(False, 0.0)
    assert made.dispatch(0.0, 0.0) is None
    made.set_endpoints(True, 0.0)
    assert drain(made) == ["a"]


def test_a_lower_band_does_not_overtake_a_gated_one() -> None:
    made = queue(usage_limit=PriorityHoldback(0.2, 0.8))
    made.offer(request("high", 1), 0.0)
    made.offer(request("low", 0), 0.0)
    assert drain(made, saturation=0.9) == []
    assert drain(made, saturation=0.5) == ["high"]
    assert drain(made, saturation=0.1) == ["low"]
    threshold = queue(usage_limit=StaticLimit(0.5))
    threshold.offer(request("x"), 0.0)
    assert drain(threshold, saturation=0.5) == []
    assert drain(threshold, saturation=0.49) == ["x"]


def test_round_robin_gives_every_flow_its_turn() -> None:
    made = queue(default_band=BandConfig(fairness=RoundRobin()))
    for number in range(4):
        made.offer(request(f"greedy{number}", flow="greedy"), float(number))
    made.offer(request("modest0", flow="modest"), 5.0)
    made.offer(request("modest1", flow="modest"), 6.0)
    assert drain(made) == ["greedy0", "modest0", "greedy1", "modest1", "greedy2", "greedy3"]


def test_global_strict_is_one_queue() -> None:
    made = queue(default_band=BandConfig(fairness=GlobalStrict()))
    for number, flow in enumerate(["a", "a", "b", "a"]):
        made.offer(request(str(number), flow=flow), float(number))
    assert drain(made) == ["0", "1", "2", "3"]


def test_least_attained_service_lets_the_poor_go_first() -> None:
    made = queue(default_band=BandConfig(fairness=LeastAttainedService()))
    made.charge(0, "rich", 1000.0, 0.0)
    made.offer(request("rich0", flow="rich"), 0.0)
    made.offer(request("poor0", flow="poor"), 0.5)
    assert drain(made) == ["poor0", "rich0"]


def test_deadline_orderings() -> None:
    by_slo = queue(default_band=BandConfig(ordering=SloDeadline()))
    by_slo.offer(request("none"), 0.0)
    by_slo.offer(request("late", slo_ttft_ms=9000.0), 0.0)
    by_slo.offer(request("soon", slo_ttft_ms=100.0), 1.0)
    assert drain(by_slo) == ["soon", "late", "none"]
    by_deadline = queue(default_band=BandConfig(ordering=EarliestDeadlineFirst()))
    for number in range(3):
        by_deadline.offer(request(str(number)), float(number))
    assert drain(by_deadline, 3.0) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("fields", "sizes", "outcomes"),
    [
        ({"max_requests": 2}, [1, 1, 1], [None, None, Outcome.REJECTED_CAPACITY]),
        ({"max_bytes": 10}, [6, 5, 4], [None, Outcome.REJECTED_CAPACITY, None]),
        ({"default_band": BandConfig(max_requests=1)}, [1, 1], [None, Outcome.REJECTED_CAPACITY]),
        ({"default_band": BandConfig(max_bytes=3)}, [4, 3], [Outcome.REJECTED_CAPACITY, None]),
    ],
)
def test_bounds(fields: dict[str, object], sizes: list[int], outcomes: list[Outcome | None]) -> None:
    made = queue(**fields)
    assert [made.offer(request(size=size), 0.0).outcome for size in sizes] == outcomes


def test_a_full_queue_of_a_pool_without_endpoints_says_so() -> None:
    made = FlowQueue(settings(max_requests=1))
    made.offer(request(), 0.0)
    assert made.offer(request(), 0.0).outcome is Outcome.REJECTED_NO_ENDPOINTS


def test_bands_have_bounds_of_their_own() -> None:
    made = queue(
        bands={3: BandConfig(max_requests=1)}, default_negative_band=BandConfig(max_requests=1), max_requests=0
    )
    kept = [made.offer(request(priority=p), 0.0).outcome for p in (3, 3, -1, -1, 0, 0)]
    full = Outcome.REJECTED_CAPACITY
    assert kept == [None, full, None, full, None, None]
    # Each negative priority is a band.
    assert made.offer(request(priority=-2), 0.0).outcome is None


def test_too_long_a_wait() -> None:
    made = queue(request_ttl=10.0, no_endpoint_ttl=100.0)
    early, late = made.offer(request("a"), 0.0), made.offer(request("b"), 4.0)
    assert made.expires_at() == 10.0
    made.expire(10.0)
    assert (early.outcome, late.outcome) == (Outcome.EXPIRED, None)
    # Without endpoints another time counts, from when they went; and back.
    made.set_endpoints(False, 12.0)
    assert made.expires_at() == 104.0, "never longer than the longer of both"
    made.set_endpoints(True, 60.0)
    assert made.expires_at() == 70.0
    made.set_endpoints(False, 69.0)
    made.expire(104.0)
    assert late.outcome is Outcome.EXPIRED_NO_ENDPOINTS
    assert made.expires_at() is None


def test_no_time_to_live() -> None:
    made = queue(request_ttl=0.0, no_endpoint_ttl=5.0)
    ticket = made.offer(request(), 0.0)
    assert made.expires_at() is None
    made.expire(1e9)
    assert ticket.outcome is None
    made.set_endpoints(False, 1e9)
    assert made.expires_at() == 1e9 + 5.0


def test_eviction_turns_out_the_least_important_and_latest() -> None:
    made = queue(max_requests=3, eviction=True)
    tickets = {
        name: made.offer(request(name, priority), 0.0) for name, priority in (("-1", -1), ("-2a", -2), ("-2b", -2))
    }
    newcomer = made.offer(request("0", 0), 1.0)
    assert newcomer.outcome is None
    assert tickets["-2b"].outcome is Outcome.EVICTED_PRIORITY
    assert made.offer(request("-1b", -1), 1.0).outcome is None
    assert tickets["-2a"].outcome is Outcome.EVICTED_PRIORITY
    # Not for its equals.
    assert made.offer(request("-1c", -1), 1.0).outcome is Outcome.REJECTED_CAPACITY
    assert tickets["-1"].outcome is None
    # Never of priority 0 and more.
    full = queue(max_requests=1, eviction=True)
    full.offer(request("0", 0), 0.0)
    assert full.offer(request("9", 9), 0.0).outcome is Outcome.REJECTED_CAPACITY


def test_eviction_for_bytes_takes_as_many_as_it_needs_and_none_in_vain() -> None:
    made = queue(max_bytes=10, eviction=True)
    small = [made.offer(request(str(n), -1, size=3), 0.0) for n in range(3)]
    kept = made.offer(request("kept", 0, size=1), 0.0)
    assert made.offer(request("too large", 0, size=11), 0.0).outcome is Outcome.REJECTED_CAPACITY
    assert made.offer(request("cannot fit", 0, size=10), 0.0).outcome is Outcome.REJECTED_CAPACITY
    assert [t.outcome for t in small] == [None] * 3
    assert made.offer(request("large", 0, size=6), 0.0).outcome is None
    assert [t.outcome for t in small] == [None, Outcome.EVICTED_PRIORITY, Outcome.EVICTED_PRIORITY]
    assert kept.outcome is None
    assert made.size == 3 + 1 + 6


def test_leaving() -> None:
    made = queue()
    first, second = made.offer(request("a"), 0.0), made.offer(request("b"), 0.0)
    made.cancel(first, 1.0)
    made.cancel(first, 1.0)
    assert first.outcome is Outcome.CANCELLED
    assert drain(made) == ["b"]
    made.cancel(second, 1.0)
    assert [t.outcome for t in made.take_settled()] == [Outcome.CANCELLED, Outcome.DISPATCHED]
    assert made.take_settled() == []


def test_closing() -> None:
    made = queue()
    waiting = made.offer(request(), 0.0)
    made.close(1.0)
    assert waiting.outcome is Outcome.CLOSED
    assert made.offer(request(), 1.0).outcome is Outcome.REJECTED_CLOSED


def test_other_rules_keep_who_waits() -> None:
    made = queue(default_band=BandConfig(fairness=LeastAttainedService()))
    made.charge(0, "a", 1000.0, 0.0)
    made.offer(request("a0", flow="a"), 0.0)
    made.offer(request("b0", flow="b", slo_ttft_ms=1.0), 0.0)
    rules = settings(
        max_requests=1, default_band=BandConfig(fairness=GlobalStrict(), ordering=SloDeadline(), max_requests=1)
    )
    made.reconfigure(rules, 1.0)
    assert len(made) == 2
    assert made.offer(request("c"), 1.0).outcome is Outcome.REJECTED_CAPACITY
    assert drain(made) == ["b0", "a0"]


def test_bands_of_clients_are_forgotten_and_configured_ones_are_not() -> None:
    made = queue(bands={7: BandConfig()})
    made.offer(request(priority=3), 0.0)
    drain(made, 1.0)
    # From when the last one left, not from when the first one came.
    made.expire(BAND_IDLE_SECONDS + 0.5)
    assert sorted(made._priorities) == [3, 7]
    made.expire(BAND_IDLE_SECONDS + 2.0)
    assert made._priorities == [7]


class Waiting(RuleBasedStateMachine):
    """Whatever comes in whatever order: every request is settled once, the bounds hold, the accounts agree."""

    def __init__(self) -> None:
        super().__init__()
        self.rules = settings(
            max_requests=6,
            max_bytes=20,
            request_ttl=5.0,
            no_endpoint_ttl=9.0,
            eviction=True,
            bands={1: BandConfig(max_requests=3, fairness=RoundRobin(), ordering=EarliestDeadlineFirst())},
            default_band=BandConfig(fairness=LeastAttainedService()),
        )
        self.queue = FlowQueue(self.rules)
        self.now = 0.0
        self.tickets: list[Ticket] = []
        self.settled: Counter[int] = Counter()

    @rule(priority=st.integers(-2, 2), flow=st.sampled_from("abc"), size=st.integers(0, 8))
    def offer(self, priority: int, flow: str, size: int) -> None:
        self.tickets.append(self.queue.offer(request("r", priority, flow, size), self.now))

    @rule(saturation=st.floats(0, 2))
    def dispatch(self, saturation: float) -> None:
        highest = max((t.request.priority for t in self.queue.waiting()), default=None)
        taken = self.queue.dispatch(saturation, self.now)
        if taken is not None:
            assert saturation < 1.0
            assert taken.request.priority == highest

    @rule(seconds=st.floats(0, 4))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.queue.expire(self.now)
        expires_at = self.queue.expires_at()
        assert expires_at is None or expires_at > self.now

    @rule(any_endpoints=st.booleans())
    def endpoints(self, any_endpoints: bool) -> None:
        self.queue.set_endpoints(any_endpoints, self.now)
        self.queue.expire(self.now)

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.queue.cancel(data.draw(st.sampled_from(self.tickets)), self.now)

    @rule(flow=st.sampled_from("abc"), cost=st.floats(0, 100))
    def serve(self, flow: str, cost: float) -> None:
        self.queue.charge(0, flow, cost, self.now)

    @rule(bound=st.integers(1, 6))
    def reload(self, bound: int) -> None:
        self.queue.reconfigure(replace(self.rules, max_requests=bound), self.now)
        self.queue.reconfigure(self.rules, self.now)

    @invariant()
    def accounts_agree(self) -> None:
        for ticket in self.queue.take_settled():
            self.settled[ticket.number] += 1
        waiting = [ticket for ticket in self.tickets if ticket.outcome is None]
        assert list(self.queue.waiting()) == waiting
        assert self.queue.size == sum(ticket.request.body_size for ticket in waiting) <= 20
        assert len(waiting) <= 6
        assert all(count == 1 for count in self.settled.values())
        assert len(self.settled) == len(self.tickets) - len(waiting)
        # Nobody has waited longer than the longer of both times.
        assert all(self.now - ticket.came_at <= 9.0 for ticket in waiting)


TestWaiting = Waiting.TestCase
TestWaiting.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
