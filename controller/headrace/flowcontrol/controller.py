"""Makes requests wait by the queue's rules, on one event loop.

A request is let go one at a time: the next one only when the last one's pick is in the account of what is in flight, so
that a free place is given away once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from random import Random
from typing import Protocol

from headrace.core import Refusal, RefusalReason, Request
from headrace.flowcontrol.config import FlowControlConfig
from headrace.flowcontrol.fairness import INPUT_TOKEN_COST, OUTPUT_TOKEN_COST
from headrace.flowcontrol.queue import FlowQueue, Outcome, Ticket
from headrace.scheduling import EndpointState, Facts
from headrace.scheduling.filters import SubsetFilter

# While requests wait the pool is looked at this often even if nothing tells of a change.
_LOOK_SECONDS = 0.1
_RETRY_AFTER_SECONDS = 1
_SUBSET = SubsetFilter()

_BUSY = "all model servers are busy"
REFUSALS = {
    Outcome.REJECTED_CAPACITY: Refusal(
        429, RefusalReason.SATURATED, f"{_BUSY}, and too many requests wait", _RETRY_AFTER_SECONDS
    ),
    Outcome.REJECTED_NO_ENDPOINTS: Refusal(
        503, RefusalReason.NO_ENDPOINTS, "no model server is ready, and too many requests wait", _RETRY_AFTER_SECONDS
    ),
    Outcome.EXPIRED: Refusal(
        429, RefusalReason.TTL_EXPIRED, f"{_BUSY}: none became free in time", _RETRY_AFTER_SECONDS
    ),
    Outcome.EXPIRED_NO_ENDPOINTS: Refusal(
        503, RefusalReason.NO_ENDPOINTS, "no model server became ready in time", _RETRY_AFTER_SECONDS
    ),
    Outcome.EVICTED_PRIORITY: Refusal(
        429, RefusalReason.EVICTED_PRIORITY, f"{_BUSY}, and more important requests came", _RETRY_AFTER_SECONDS
    ),
    Outcome.REJECTED_CLOSED: Refusal(503, RefusalReason.SHUTTING_DOWN, "the endpoint picker is shutting down"),
    Outcome.CLOSED: Refusal(503, RefusalReason.SHUTTING_DOWN, "the endpoint picker is shutting down"),
}
_SHED = Refusal(429, RefusalReason.SATURATED, f"{_BUSY}, and the request's priority is below 0", _RETRY_AFTER_SECONDS)


class Observer(Protocol):
    """Who wants to know, for metrics."""

    def enqueued(self, ticket: Ticket, seconds: float) -> None:
        """A request was given a place, or refused one; this took so long."""

    def settled(self, ticket: Ticket, seconds: float) -> None:
        """A request got its outcome, this long after it came."""

    def looked(self, seconds: float) -> None:
        """The queue was looked at for one to let go; this took so long."""


@dataclass(eq=False)
class FlowController:
    """The admission of one pool. `states` gives its endpoints as they are now, `clock` seconds that only go forward."""

    config: FlowControlConfig
    _: KW_ONLY
    states: Callable[[], Sequence[EndpointState]]
    clock: Callable[[], float]
    rng: Random
    observer: Observer

    def __post_init__(self) -> None:
        self._queue = FlowQueue(self.config)
        # The request that was let go and has not been picked for yet.
        self._going: Ticket | None = None
        self._soon = False
        self._timer: asyncio.TimerHandle | None = None

    def waiting(self) -> Iterable[Ticket]:
        """The requests that wait, longest first."""
        return self._queue.waiting()

    def saturation(self) -> float:
        """How full the pool is, as the configured detector sees it."""
        return self.config.detector.saturation(self.states())

    @property
    def may_wait(self) -> bool:
        """Whether requests may have to wait. If not, `admit_at_once` does."""
        return self.config.enabled

    async def admit(self, request: Request) -> Refusal | None:
        """None when the request may go on, which its caller must then do without waiting for anything else.

        A caller that is cancelled leaves the queue at once."""
        if self.config.enabled:
            refusal = await self._wait(request)
            return refusal if refusal is not None else self._shed(request)
        return self.admit_at_once(request)

    def admit_at_once(self, request: Request) -> Refusal | None:
        """The same where requests do not wait."""
        if request.priority >= 0:
            return None
        if self.config.detector.saturation(self._candidates(request)) >= 1.0:
            return _SHED
        return self._shed(request)

    def _shed(self, request: Request) -> Refusal | None:
        """Whether an admitter turns a request of low priority away."""
        admitters = self.config.admitters
        if request.priority < 0 and admitters:
            states = self._candidates(request)
            if any(admitter.sheds(request, states, self.rng) for admitter in admitters):
                return _SHED
        return None

    def changed(self) -> None:
        """The load or the endpoints changed: somebody may be able to go."""
        if self._queue and not self._soon:
            self._soon = True
            asyncio.get_running_loop().call_soon(self._look)

    def picked(self) -> None:
        """The request that was let go is in the account of what is in flight: the next one need not wait for the next
        turn of the event loop, which takes long when there is much to do."""
        if self._queue and self._going is None:
            self._look()

    def charge(self, priority: int, flow: str, input_tokens: int, output_tokens: int) -> None:
        """A flow got this much of the pool."""
        cost = INPUT_TOKEN_COST * input_tokens + OUTPUT_TOKEN_COST * output_tokens
        if cost and self.config.enabled:
            self._queue.charge(priority, flow, cost, self.clock())

    def reconfigure(self, config: FlowControlConfig) -> None:
        """Other settings from now on. Who waits, waits on, or goes at once where waiting was switched off."""
        was_enabled = self.config.enabled
        self.config = config
        self._queue.reconfigure(config, self.clock())
        if was_enabled and not config.enabled:
            self._queue.release(self.clock())
            self._tell()
        self.changed()

    def close(self) -> None:
        """Refuse those who wait, and whoever comes."""
        self._queue.close(self.clock())
        self._tell()
        self._stop_timer()

    async def _wait(self, request: Request) -> Refusal | None:
        started = time.perf_counter()
        ticket = self._queue.offer(request, self.clock())
        self.observer.enqueued(ticket, time.perf_counter() - started)
        if ticket.outcome is None:
            self._look()
        else:
            self._tell()
        try:
            if ticket.outcome is None:
                ticket.waiter = asyncio.get_running_loop().create_future()
                await ticket.waiter
        finally:
            if ticket.outcome is None:
                self._queue.cancel(ticket, self.clock())
                self._tell()
            if self._going is ticket:
                self._going = None
                # The pick is made in this step of the task; should it fail to be, the next look comes after it.
                self.changed()
        return None if ticket.outcome is Outcome.DISPATCHED else REFUSALS[ticket.outcome or Outcome.CLOSED]

    def _look(self) -> None:
        """Settle who has waited too long, and let one go if it may."""
        self._soon = False
        started = time.perf_counter()
        now = self.clock()
        states = self.states()
        queue = self._queue
        queue.set_endpoints(bool(states), now)
        queue.expire(now)
        if queue and states and self._going is None:
            self._going = queue.dispatch(self.config.detector.saturation(states), now)
        self._tell()
        self.observer.looked(time.perf_counter() - started)
        self._set_timer(now)

    def _tell(self) -> None:
        now = self.clock()
        for ticket in self._queue.take_settled():
            self.observer.settled(ticket, now - ticket.came_at)
            waiter = ticket.waiter
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    def _set_timer(self, now: float) -> None:
        self._stop_timer()
        if not self._queue:
            return
        expires_at = self._queue.expires_at()
        seconds = _LOOK_SECONDS if expires_at is None else min(_LOOK_SECONDS, max(0.0, expires_at - now))
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _candidates(self, request: Request) -> Sequence[EndpointState]:
        states = self.states()
        if request.subset is None:
            return states
        return _SUBSET.keep(states, Facts(request, 0.0, self.rng))
