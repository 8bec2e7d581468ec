"""The rules of waiting: who may wait, who goes next, who has waited too long. No clock and no event loop in here.

Requests wait in bands by priority: a lower band is served only while no higher one has a request that may go. Within a
band a fairness policy chooses the flow, and an ordering policy the request of the flow. Every request that is offered
is settled once, with an outcome.

Source: flow control of Gateway API Inference Extension v1.5.0 and llm-d-router."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from headrace.core import Request
from headrace.flowcontrol.config import BandConfig, FlowControlConfig
from headrace.flowcontrol.fairness import Fairness, Service

DEFAULT_FLOW = "default-flow"
# A band that no configuration names is forgotten when it has been empty for so long.
BAND_IDLE_SECONDS = 600.0
# The service a flow got counts for nothing any more.
SERVICE_KEPT_SECONDS = 3600.0


class Outcome(StrEnum):
    """What became of a request that was offered; the values are the reference picker's metric label."""

    DISPATCHED = "Dispatched"
    REJECTED_CAPACITY = "RejectedCapacity"
    REJECTED_NO_ENDPOINTS = "RejectedNoEndpoints"
    REJECTED_CLOSED = "RejectedOther"
    EXPIRED = "EvictedTTL"
    EXPIRED_NO_ENDPOINTS = "EvictedNoEndpoints"
    CANCELLED = "EvictedContextCancelled"
    EVICTED_PRIORITY = "EvictedPriority"
    CLOSED = "EvictedOther"


@dataclass(slots=True, eq=False)
class Ticket:
    """One request's place. `outcome` is None while it waits; `waiter` is the driver's, to wake who waits."""

    number: int
    request: Request
    flow: str
    came_at: float
    order_key: float = 0.0
    outcome: Outcome | None = None
    waiter: Any = None


@dataclass(slots=True, eq=False)
class _Flow:
    """The waiting requests of a flow, best first. Those settled meanwhile are dropped when they come up."""

    heap: list[tuple[float, int, Ticket]] = field(default_factory=list)
    waiting: int = 0

    def push(self, ticket: Ticket) -> None:
        self.waiting += 1
        if len(self.heap) > 2 * self.waiting + 64:
            self.heap = [entry for entry in self.heap if entry[2].outcome is None]
            heapq.heapify(self.heap)
        heapq.heappush(self.heap, (ticket.order_key, ticket.number, ticket))

    def head(self) -> Ticket:
        while self.heap[0][2].outcome is not None:
            heapq.heappop(self.heap)
        return self.heap[0][2]

    @property
    def head_came_at(self) -> float:
        return self.head().came_at


class _Band:
    """The requests of one priority. `tickets` are in the order in which they came."""

    def __init__(self, config: BandConfig, service: Service) -> None:
        self.config = config
        self.service = service
        self.tickets: OrderedDict[int, Ticket] = OrderedDict()
        self.flows: OrderedDict[str, _Flow] = OrderedDict()
        self.size = 0
        self.empty_since: float = 0.0

    def queue_name(self, ticket: Ticket) -> str:
        return ticket.flow if self.config.fairness.by_flow else ""

    def add(self, ticket: Ticket) -> None:
        self.tickets[ticket.number] = ticket
        self.size += ticket.request.body_size
        self.flows.setdefault(self.queue_name(ticket), _Flow()).push(ticket)

    def remove(self, ticket: Ticket, now: float) -> None:
        del self.tickets[ticket.number]
        self.size -= ticket.request.body_size
        name = self.queue_name(ticket)
        flow = self.flows[name]
        flow.waiting -= 1
        if not flow.waiting:
            del self.flows[name]
        if not self.tickets:
            self.empty_since = now

    def next(self, now: float) -> Ticket:
        name = self.config.fairness.choose(self.flows, self.service, now)
        self.flows.move_to_end(name)
        return self.flows[name].head()


class FlowQueue:
    """The state of one pool's waiting requests. Times are seconds of one clock that only goes forward.

    What a call settles, dispatched requests included, is handed out by `take_settled`, once."""

    def __init__(self, config: FlowControlConfig) -> None:
        self._config = config
        self._services: dict[Fairness, Service] = {}
        self._bands: dict[int, _Band] = {}
        self._priorities: list[int] = []
        self._waiting: OrderedDict[int, Ticket] = OrderedDict()
        self._size = 0
        self._numbers = 0
        self._turn = 0
        self._has_endpoints = False
        # Since when there have been endpoints, or none: whose time to live counts has changed then.
        self._regime_since = float("-inf")
        self._settled: list[Ticket] = []
        self._closed = False
        self._open_configured_bands()

    def __len__(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    @property
    def size(self) -> int:
        """How many bytes wait."""
        return self._size

    def waiting(self) -> Iterable[Ticket]:
        """The waiting requests, longest first."""
        return self._waiting.values()

    def take_settled(self) -> list[Ticket]:
        """What was settled since the last call."""
        settled, self._settled = self._settled, []
        return settled

    def offer(self, request: Request, now: float) -> Ticket:
        """A request wants to go. It waits until `dispatch` takes it, unless there is no room for it."""
        self._numbers += 1
        ticket = Ticket(self._numbers, request, request.fairness_id or DEFAULT_FLOW, now)
        if self._closed:
            return self._settle(ticket, Outcome.REJECTED_CLOSED)
        band = self._band(request.priority, now)
        if not self._fits_band(band, request.body_size) or not self._make_room(request, now):
            full = Outcome.REJECTED_CAPACITY if self._has_endpoints else Outcome.REJECTED_NO_ENDPOINTS
            return self._settle(ticket, full)
        ticket.order_key = band.config.ordering.order_key(request, now, self._config.request_ttl)
        self._insert(ticket, band)
        return ticket

    def dispatch(self, saturation: float, now: float) -> Ticket | None:
        """The request that goes next, if one may at this saturation of the pool. One a call: each one adds to it."""
        if not self._waiting or not self._has_endpoints:
            return None
        self._turn += 1
        ceilings = self._config.usage_limit.ceilings(saturation, self._priorities, self._turn)
        for priority, ceiling in zip(self._priorities, ceilings, strict=True):
            band = self._bands[priority]
            if not band.tickets:
                continue
            if saturation >= ceiling:
                return None
            return self._end(band.next(now), Outcome.DISPATCHED, now)
        return None

    def release(self, now: float) -> None:
        """Let everybody go."""
        for ticket in list(self._waiting.values()):
            self._end(ticket, Outcome.DISPATCHED, now)

    def cancel(self, ticket: Ticket, now: float) -> None:
        """Who waited has gone. Without effect on what is settled."""
        if ticket.outcome is None:
            self._end(ticket, Outcome.CANCELLED, now)

    def set_endpoints(self, there_are_any: bool, now: float) -> None:
        """Whether the pool has endpoints. Where that changes, those who wait start a new time to live."""
        if there_are_any != self._has_endpoints:
            self._has_endpoints = there_are_any
            self._regime_since = now

    def expires_at(self) -> float | None:
        """When the next request has waited too long; None where none ever will as things are."""
        first = next(iter(self._waiting.values()), None)
        return None if first is None else self._deadline(first)

    def expire(self, now: float) -> None:
        """Settle those who have waited too long, and forget what is idle."""
        # Deadlines come in the order of arrival.
        outcome = Outcome.EXPIRED if self._has_endpoints else Outcome.EXPIRED_NO_ENDPOINTS
        while self._waiting:
            ticket = next(iter(self._waiting.values()))
            deadline = self._deadline(ticket)
            if deadline is None or now < deadline:
                break
            self._end(ticket, outcome, now)
        for priority, band in list(self._bands.items()):
            idle = not band.tickets and now - band.empty_since > BAND_IDLE_SECONDS
            if idle and priority not in self._config.bands:
                del self._bands[priority]
                self._priorities.remove(priority)
        for service in self._services.values():
            service.forget(now - SERVICE_KEPT_SECONDS)

    def charge(self, priority: int, flow: str, cost: float, now: float) -> None:
        """A flow got this much service, in weighted tokens."""
        fairness = self._band_config(priority).fairness
        if fairness.half_life is not None:
            service = self._services.setdefault(fairness, Service())
            service.add(flow or DEFAULT_FLOW, cost, now, fairness.half_life)

    def reconfigure(self, config: FlowControlConfig, now: float) -> None:
        """Other rules from now on. Who waits, waits on: no bound turns away what was let in."""
        self._config = config
        waiting = list(self._waiting.values())
        self._bands, self._priorities = {}, []
        self._services = {kept: service for kept, service in self._services.items() if kept in config.fairness_policies}
        self._waiting.clear()
        self._size = 0
        self._open_configured_bands()
        for ticket in waiting:
            band = self._band(ticket.request.priority, now)
            ticket.order_key = band.config.ordering.order_key(ticket.request, ticket.came_at, config.request_ttl)
            self._insert(ticket, band)

    def close(self, now: float) -> None:
        """No more: those who wait are settled, and so is whoever comes."""
        self._closed = True
        for ticket in list(self._waiting.values()):
            self._end(ticket, Outcome.CLOSED, now)

    # What the above is made of.

    def _open_configured_bands(self) -> None:
        for priority in self._config.bands:
            self._band(priority, 0.0)

    def _band_config(self, priority: int) -> BandConfig:
        config = self._config
        other = config.default_negative_band if priority < 0 else config.default_band
        return config.bands.get(priority, other)

    def _band(self, priority: int, now: float) -> _Band:
        band = self._bands.get(priority)
        if band is None:
            config = self._band_config(priority)
            band = _Band(config, self._services.setdefault(config.fairness, Service()))
            band.empty_since = now
            self._bands[priority] = band
            self._priorities = sorted(self._bands, reverse=True)
        return band

    @staticmethod
    def _fits_band(band: _Band, size: int) -> bool:
        return len(band.tickets) < band.config.max_requests and band.size + size <= band.config.max_bytes

    def _fits(self, count: int, size: int) -> bool:
        """Whether so many requests, and so many bytes, may wait in all bands together."""
        config = self._config
        return (not config.max_requests or count <= config.max_requests) and (
            not config.max_bytes or size <= config.max_bytes
        )

    def _make_room(self, request: Request, now: float) -> bool:
        """Room under the bounds for all bands, if need be and allowed by turning out the latest of the least
        important requests: below 0, and below this one's priority."""
        config, count, size = self._config, len(self._waiting) + 1, self._size + request.body_size
        if self._fits(count, size):
            return True
        if not config.eviction or (config.max_bytes and request.body_size > config.max_bytes):
            return False
        victims: list[Ticket] = []
        for priority in reversed(self._priorities):
            if priority >= min(0, request.priority):
                return False
            for ticket in reversed(self._bands[priority].tickets.values()):
                victims.append(ticket)
                count -= 1
                size -= ticket.request.body_size
                if self._fits(count, size):
                    for victim in victims:
                        self._end(victim, Outcome.EVICTED_PRIORITY, now)
                    return True
        return False

    def _insert(self, ticket: Ticket, band: _Band) -> None:
        band.add(ticket)
        self._waiting[ticket.number] = ticket
        self._size += ticket.request.body_size

    def _end(self, ticket: Ticket, outcome: Outcome, now: float) -> Ticket:
        """It waits no more."""
        self._bands[ticket.request.priority].remove(ticket, now)
        del self._waiting[ticket.number]
        self._size -= ticket.request.body_size
        return self._settle(ticket, outcome)

    def _settle(self, ticket: Ticket, outcome: Outcome) -> Ticket:
        ticket.outcome = outcome
        self._settled.append(ticket)
        return ticket

    def _deadline(self, ticket: Ticket) -> float | None:
        config = self._config
        budget = config.request_ttl if self._has_endpoints else config.no_endpoint_ttl
        if not budget:
            return None
        deadline = max(ticket.came_at, self._regime_since) + budget
        longest = max(config.request_ttl, config.no_endpoint_ttl)
        both = config.request_ttl and config.no_endpoint_ttl
        # However often endpoints come and go, nobody waits longer than the longer of both.
        return min(deadline, ticket.came_at + longest) if both else deadline
