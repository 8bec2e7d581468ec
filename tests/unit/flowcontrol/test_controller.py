"""Requests that wait: one place is given away once, whoever leaves leaves at once, nobody is forgotten."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from headrace.core import Refusal, RefusalReason, Request
from headrace.flowcontrol import FlowControlConfig, FlowController, Outcome, Ticket
from headrace.flowcontrol.admitters import ProbabilisticAdmitter
from headrace.flowcontrol.config import BandConfig
from headrace.scheduling import EndpointState
from headrace.scheduling.saturation import ConcurrencyDetector

from ...hang import HANG_SECONDS
from .values import request, settings, state


class Pool:
    """Endpoints that take one request each, and a clock that the test sets."""

    def __init__(self, places: int, **fields: Any) -> None:
        self.now = 100.0
        self.places = places
        self.in_flight = 0
        self.most_in_flight = 0
        self.settled_outcomes: list[tuple[str, str, float]] = []
        fields = {"detector": ConcurrencyDetector(max_requests=1), **fields}
        self.flow = FlowController(
            settings(**fields), states=self.states, clock=lambda: self.now, rng=Random(1), observer=self
        )

    def states(self) -> list[EndpointState]:
        each, more = divmod(self.in_flight, self.places) if self.places else (0, 0)
        return [state(n, in_flight=each + (n < more)) for n in range(self.places)]

    def enqueued(self, ticket: Ticket, seconds: float) -> None:
        assert seconds >= 0

    def looked(self, seconds: float) -> None:
        assert seconds >= 0

    def settled(self, ticket: Ticket, seconds: float) -> None:
        assert ticket.outcome is not None
        self.settled_outcomes.append((ticket.request.request_id, ticket.outcome.value, seconds))

    async def take(self, asked: Request) -> Refusal | None:
        """What the director does: be admitted, and be in flight in the same step."""
        refusal = await self.flow.admit(asked)
        if refusal is None:
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        return refusal

    def end(self) -> None:
        self.in_flight -= 1
        self.flow.changed()

    def start(self, *names: str, **fields: Any) -> list[asyncio.Task[Refusal | None]]:
        return [asyncio.create_task(self.take(request(name, **fields))) for name in names]


async def settle() -> None:
    """Let everything run that can run without time passing."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_who_finds_a_place_does_not_wait() -> None:
    pool = Pool(2)
    assert await pool.take(request("a")) is None
    assert await pool.take(request("b")) is None
    assert [outcome for _, outcome, _ in pool.settled_outcomes] == ["Dispatched"] * 2


async def test_one_place_is_given_away_once() -> None:
    pool = Pool(3)
    tasks = pool.start(*"abcdefghij")
    await settle()
    assert pool.in_flight == 3
    assert [task.done() for task in tasks] == [True] * 3 + [False] * 7
    pool.end()
    pool.end()
    await settle()
    assert pool.in_flight == 3
    while pool.in_flight:
        pool.end()
        await settle()
    assert await asyncio.gather(*tasks) == [None] * 10
    assert pool.most_in_flight == 3


async def test_places_that_are_free_at_once_are_filled_in_one_turn_each() -> None:
    class Quick(Pool):
        async def take(self, asked: Request) -> Refusal | None:
            refusal = await super().take(asked)
            self.flow.picked()
            return refusal

    pool = Quick(8)
    tasks = pool.start(*map(str, range(16)))
    await settle()
    assert pool.in_flight == 8
    for _ in range(8):
        pool.end()
    for _ in range(10):
        await asyncio.sleep(0)
    assert pool.in_flight == pool.most_in_flight == 8
    assert all(task.done() for task in tasks)


async def test_a_newcomer_does_not_overtake_in_a_gap() -> None:
    pool = Pool(1)
    first, second = pool.start("a", "b")
    await settle()
    pool.end()
    (third,) = pool.start("c")
    await settle()
    assert (first.done(), second.done(), third.done()) == (True, True, False)
    pool.end()
    await settle()
    assert third.done()


async def test_who_leaves_leaves_at_once_and_gives_the_place_on() -> None:
    pool = Pool(1)
    _, leaving, staying = pool.start("a", "leaving", "staying")
    await settle()
    leaving.cancel()
    await settle()
    assert [ticket.request.request_id for ticket in pool.flow.waiting()] == ["staying"]
    assert ("leaving", "EvictedContextCancelled", 0.0) in pool.settled_outcomes
    pool.end()
    await settle()
    assert staying.done()
    # One that goes in the very moment it is let go does not take the place with it.
    lucky, next_one = pool.start("lucky", "next")
    await settle()
    pool.in_flight -= 1
    pool.flow._look()
    lucky.cancel()
    await settle()
    assert lucky.cancelled()
    assert next_one.done()
    assert pool.in_flight == 1


async def test_requests_survive_endpoints_that_go_and_come() -> None:
    pool = Pool(1)
    _, waiting = pool.start("a", "b")
    await settle()
    pool.places = 0
    pool.flow.changed()
    await settle()
    assert not waiting.done()
    pool.places = 2
    pool.flow.changed()
    await settle()
    assert waiting.done()


@pytest.mark.parametrize(
    ("places", "status", "reason"), [(1, 429, RefusalReason.TTL_EXPIRED), (0, 503, RefusalReason.NO_ENDPOINTS)]
)
async def test_waiting_too_long(places: int, status: int, reason: RefusalReason) -> None:
    pool = Pool(places, request_ttl=5.0, no_endpoint_ttl=5.0)
    pool.in_flight = places
    (waiting,) = pool.start("a")
    await settle()
    pool.now += 5.0
    pool.flow.changed()
    refusal = await waiting
    assert refusal is not None
    assert (refusal.status, refusal.reason) == (status, reason)


async def test_a_wait_ends_without_anybody_telling_of_a_change() -> None:
    pool = Pool(0, no_endpoint_ttl=60.0)
    (waiting,) = pool.start("a")
    await settle()
    pool.places = 1
    assert await asyncio.wait_for(waiting, HANG_SECONDS) is None


async def test_bounds_refuse_with_429() -> None:
    pool = Pool(1, default_band=BandConfig(max_requests=1))
    pool.in_flight = 1
    pool.start("a")
    await settle()
    refusal = await pool.take(request("b"))
    assert refusal is not None
    assert (refusal.status, refusal.reason) == (429, RefusalReason.SATURATED)
    assert refusal.retry_after_seconds


async def test_eviction_wakes_who_was_turned_out() -> None:
    pool = Pool(1, max_requests=1, eviction=True)
    pool.in_flight = 1
    (low,) = pool.start("low", priority=-1)
    await settle()
    (high,) = pool.start("high", priority=1)
    await settle()
    refusal = await low
    assert refusal is not None
    assert (refusal.status, refusal.reason) == (429, RefusalReason.EVICTED_PRIORITY)
    pool.end()
    await settle()
    assert high.result() is None


async def test_shutting_down() -> None:
    pool = Pool(1)
    pool.in_flight = 1
    (waiting,) = pool.start("a")
    await settle()
    pool.flow.close()
    refusal = await waiting
    assert refusal is not None
    assert (refusal.status, refusal.reason) == (503, RefusalReason.SHUTTING_DOWN)
    assert await pool.take(request("b")) == refusal


async def test_other_settings_while_requests_wait() -> None:
    pool = Pool(1)
    pool.in_flight = 1
    waiting = pool.start("a", "b")
    await settle()
    pool.flow.reconfigure(settings(detector=ConcurrencyDetector(max_requests=2)))
    await settle()
    assert [task.done() for task in waiting] == [True, False]
    pool.flow.reconfigure(FlowControlConfig(enabled=False))
    assert await asyncio.gather(*waiting) == [None, None]
    assert await pool.take(request("c")) is None


@pytest.mark.parametrize(
    ("priority", "subset", "shed"), [(0, None, False), (-1, None, False), (-1, ("10.0.0.0",), True)]
)
async def test_without_the_gate_negative_priorities_are_shed_from_full_endpoints(
    priority: int, subset: tuple[str, ...] | None, shed: bool
) -> None:
    pool = Pool(2, enabled=False)
    pool.in_flight = 1
    refusal = await pool.flow.admit(request(priority=priority, subset=subset))
    assert (refusal is not None) == shed
    pool.in_flight = 2
    refusal = await pool.flow.admit(request(priority=priority, subset=subset))
    assert (refusal is not None) == (priority < 0)
    if refusal is not None:
        assert (refusal.status, refusal.reason) == (429, RefusalReason.SATURATED)


@pytest.mark.parametrize("enabled", [False, True])
async def test_admitters_have_the_last_word_on_negative_priorities_only(enabled: bool) -> None:
    always = ProbabilisticAdmitter(k=1e12)
    pool = Pool(2, admitters=(always,))
    pool.states = lambda: [state(1, waiting=2)]  # type: ignore[method-assign]
    pool.flow = FlowController(
        settings(enabled=enabled, admitters=(always,)),
        states=pool.states,
        clock=lambda: 0.0,
        rng=Random(1),
        observer=pool,
    )
    assert await pool.flow.admit(request(priority=0)) is None
    assert await pool.flow.admit(request(priority=-1)) is not None


async def test_every_outcome_that_refuses_has_an_answer() -> None:
    from headrace.flowcontrol.controller import REFUSALS

    answered = set(REFUSALS)
    assert set(Outcome) - answered == {Outcome.DISPATCHED, Outcome.CANCELLED}
    for refusal in REFUSALS.values():
        assert refusal.status in (429, 503)


async def test_no_timer_is_left_when_nobody_waits() -> None:
    pool = Pool(1)
    (held,) = pool.start("a")
    await settle()
    (waiting,) = pool.start("b")
    await settle()
    assert pool.flow._timer is not None
    pool.end()
    await settle()
    assert held.done()
    assert waiting.done()
    assert pool.flow._timer is None
