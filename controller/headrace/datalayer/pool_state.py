"""The keeper of what is known of a pool: its endpoints, what they report, and what is in flight there.

Everything that changes it goes through `PoolState`, which tells observers what has happened."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass

from headrace.core import Endpoint, FailureMode, Request
from headrace.datalayer.evidence import Origin
from headrace.datalayer.ledger import InFlight, Ledger
from headrace.datalayer.store import EndpointRecord, EndpointStore
from headrace.extproc import Usage
from headrace.scheduling.producer import FollowsEndpoints

logger = logging.getLogger(__name__)

# A gateway tries the first of a pick's list, and two more.
MOST_TRIED = 3


@dataclass(slots=True)
class ResponseTotals:
    """A response's body so far: its bytes, when its first piece came (streamed ones only), the usage it reported."""

    size: int = 0
    first_at: float | None = None
    usage: Usage | None = None


class PoolObserver:
    """Told what happens to a pool and its requests; in the request's path, so it takes a note and no more. Does nothing
    by itself: observers override what matters to them."""

    def endpoint_removed(self, endpoint: Endpoint) -> None:
        """An endpoint left the pool."""

    def load_changed(self) -> None:
        """The endpoints changed, or what is in flight there, otherwise than by a pick."""

    def started(self, entry: InFlight, request: Request) -> None:
        """A request was sent to an endpoint."""

    def answered(self, entry: InFlight, status: int, *, elsewhere: bool = False) -> None:
        """The response's headers were seen. `elsewhere`: from another endpoint than the first one picked."""

    def first_token(self, entry: InFlight, seconds: float) -> None:
        """A streamed response has begun, this long after the pick."""

    def responded(self, entry: InFlight, response: ResponseTotals, seconds: float, decode: float | None) -> None:
        """The response is complete, this long after the pick, and `decode` seconds after its first piece."""

    def finished(self, entry: InFlight, seconds: float) -> None:
        """A request is over, this long after its pick."""

    def unobserved(self, entry: InFlight) -> None:
        """A request was given up: no stream ever told its end."""

    def scraped(self, record: EndpointRecord) -> None:
        """A server's page has come."""

    def scrape_failed(self, record: EndpointRecord, refused: bool) -> None:
        """A server's page has not come. `refused`: nobody listens where it was asked for."""


@dataclass(eq=False)
class PoolState:
    """Everything known of one pool, kept on one event loop. `clock` gives seconds that only go forward. `followers`
    keep something for each endpoint."""

    store: EndpointStore
    ledger: Ledger
    _: KW_ONLY
    clock: Callable[[], float]
    followers: Sequence[FollowsEndpoints] = ()
    observers: Sequence[PoolObserver] = ()

    def __post_init__(self) -> None:
        self.failure_mode = FailureMode.CLOSE
        # Whether the pool's endpoints are known.
        self.synced = False
        self._on_started = _overridden(self.observers, "started")
        self._on_finished = _overridden(self.observers, "finished")
        self._on_load_changed = _overridden(self.observers, "load_changed")
        self._synced = asyncio.Event()

    async def wait_synced(self) -> None:
        """Wait until the pool's endpoints are known."""
        await self._synced.wait()

    def endpoints_changed(self, endpoints: tuple[Endpoint, ...], failure_mode: FailureMode) -> None:
        """The pool is this from now on."""
        self.failure_mode = failure_mode
        came, gone = self.store.replace(endpoints)
        for endpoint in gone:
            for follower in self.followers:
                follower.remove(endpoint.key)
            for observer in self.observers:
                observer.endpoint_removed(endpoint)
        for endpoint in came:
            for follower in self.followers:
                follower.add(endpoint.key)
        if came or gone:
            logger.info(
                "the pool has %d endpoints",
                len(endpoints),
                extra={"came": [e.key for e in came][:50], "gone": [e.key for e in gone][:50]},
            )
        self.synced = True
        self._synced.set()
        self._load_changed()

    def started(self, request: Request, key: str, *, attached: bool, tokens: int = 0) -> InFlight:
        """A request is sent to an endpoint. `attached`: the stream that picked sees its end too. `tokens`: of its
        prompt, those that the endpoint has to compute."""
        entry = self.ledger.start(request, key, self.clock(), attached=attached, tokens=tokens)
        for tell in self._on_started:
            tell(entry, request)
        return entry

    def observed(self, request_id: str, destination: str, flow: str = "") -> InFlight | None:
        """An observation stream has begun; the entry it has to end, if it concerns this pool."""
        entry = self.ledger.observe(request_id, destination, self.clock())
        if entry is not None and entry.elsewhere:
            entry.picks, entry.origin = tuple(destination.split(",")[:MOST_TRIED]), Origin(flow)
        return entry

    def answered(self, entry: InFlight, served: str, status: int, *, streaming: bool = False) -> None:
        """The response's headers were seen. `served`: the endpoint that the gateway says they are from, or ""."""
        entry.streams = streaming
        elsewhere = bool(served) and self.ledger.move(entry, served, self.clock())
        for observer in self.observers:
            observer.answered(entry, status, elsewhere=elsewhere)

    def first_token(self, entry: InFlight) -> None:
        """The first piece of a streamed response went by."""
        self.ledger.prompt_computed(entry)
        seconds = self.clock() - entry.started_at
        for observer in self.observers:
            observer.first_token(entry, seconds)

    def responded(self, entry: InFlight, response: ResponseTotals) -> None:
        """The response is complete, and its body was seen. Comes before `finished`."""
        now = self.clock()
        decode = None if response.first_at is None else now - response.first_at
        if response.usage is not None:
            entry.output_tokens = response.usage.output_tokens
        for observer in self.observers:
            observer.responded(entry, response, now - entry.started_at, decode)

    def finished(self, entry: InFlight) -> None:
        """The request is over, however it ended. May come twice."""
        now = self.clock()
        if self.ledger.finish(entry, now):
            seconds = now - entry.started_at
            for tell in self._on_finished:
                tell(entry, seconds)
            self._load_changed()

    def scraped(self, record: EndpointRecord) -> None:
        """A server's page has come. What it no longer has, and nobody observes, is over."""
        for observer in self.observers:
            observer.scraped(record)
        metrics = record.metrics
        if metrics is None or metrics.running is None or metrics.waiting is None or record.scraped_at is None:
            return
        requests = metrics.running + metrics.waiting
        self._given_up(self.ledger.reconcile(record, requests, record.scraped_at, self.clock()))
        self._load_changed()

    def scrape_failed(self, record: EndpointRecord, refused: bool) -> None:
        """A server's page has not come. `refused`: nobody listens where it was asked for."""
        for observer in self.observers:
            observer.scrape_failed(record, refused)

    def expire(self) -> None:
        """End what nobody will tell the end of. Call it about once a second."""
        expired = self.ledger.expire(self.clock())
        self._given_up(expired)
        if expired:
            self._load_changed()

    def _given_up(self, entries: Sequence[InFlight]) -> None:
        for entry in entries:
            logger.debug("a pick was never observed", extra={"request_id": entry.request_id})
            for observer in self.observers:
                observer.unobserved(entry)

    def _load_changed(self) -> None:
        for tell in self._on_load_changed:
            tell()


def _overridden(observers: Sequence[PoolObserver], name: str) -> list[Callable[..., None]]:
    """The observers' methods of a name, without those that do nothing: these are called for each request."""
    does_nothing = getattr(PoolObserver, name)
    return [getattr(observer, name) for observer in observers if getattr(type(observer), name) is not does_nothing]
