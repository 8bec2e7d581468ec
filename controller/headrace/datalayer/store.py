"""What is known of each endpoint, in one place with one owner, and the states that decisions are made from.

Load is what a server last said of itself, corrected by the requests the picker has sent it and seen finish since that
page was asked for: gauges are old by up to a scrape interval, and a burst fits into one. It is never less than what is
in flight there: a server that is asleep or hangs may count nothing of what it was sent."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Set
from itertools import islice
from typing import NamedTuple

from headrace.core import Endpoint
from headrace.datalayer.adapters import AdapterNames
from headrace.datalayer.metrics_page import ServerMetrics
from headrace.scheduling import EndpointState
from headrace.scheduling.columns import Columns
from headrace.scheduling.slots import Slots

# Changes since the last page kept per endpoint. Only a server whose metrics fail for long gets here, and for such a
# server the changes are not used.
_MOST_CHANGES = 20_000
# Names that clients choose: only those that turn out to be adapters matter, and no server holds this many.
_MOST_MODELS = 256
# A server counts a request it was sent within this time, if the request is still on its way there at all.
ARRIVAL_SECONDS = 0.5

_UNKNOWN = ServerMetrics()


class Usual(NamedTuple):
    """The mean over the pool's endpoints with fresh metrics: requests running, and the used share (0..1) of the KV
    cache. Stands in for what an endpoint without fresh metrics does not say."""

    running: int = 0
    kv_usage: float = 0.0


class _Changes:
    """What has changed since a store last looked: the records, and whether pages have come or grown old."""

    __slots__ = ("pages", "records")

    def __init__(self) -> None:
        self.records: list[EndpointRecord] = []
        self.pages = True


class EndpointRecord:
    """One endpoint's account. Times are seconds of the store's clock. `slot` is its slot in the store's columns."""

    def __init__(self, endpoint: Endpoint, slot: int, changes: _Changes) -> None:
        self.slot = slot
        self._changes_of_all = changes
        self._changed = False
        self.endpoint = endpoint
        self.metrics: ServerMetrics | None = None
        self.fresh = False
        # When the last good page was asked for, and why the last attempt failed ("" if it did not).
        self.scraped_at: float | None = None
        self.scrape_error = ""
        # Since when a page has been asked for that has not come yet.
        self.asked_at: float | None = None
        self.in_flight = 0
        self.in_flight_bytes = 0
        self.in_flight_tokens = 0
        # How many of those in flight are the account of other replicas.
        self.of_peers = 0
        self.last_pick_at: float | None = None
        # Models by last use, newest last; and those with requests on the way.
        self._used: OrderedDict[str, None] = OrderedDict()
        self._models_sent: dict[str, int] = {}
        self._changes: deque[tuple[float, int]] = deque(maxlen=_MOST_CHANGES)
        self._delta = 0
        # When the latest requests were sent that the last page may not have counted yet.
        self._starts: deque[float] = deque(maxlen=_MOST_CHANGES)
        self._change()

    def _change(self) -> None:
        """Its state is another one from now on."""
        if not self._changed:
            self._changed = True
            self._changes_of_all.records.append(self)

    def replaced(self, endpoint: Endpoint) -> None:
        """What is known of the endpoint itself is this now."""
        self.endpoint = endpoint
        self._change()

    def started(self, model: str, size: int, now: float, tokens: int = 0, *, page_knows: bool = False) -> None:
        """A request was sent here; `tokens` of its prompt are to be computed. `page_knows`: the last page counted it
        (another replica sent it a while ago)."""
        self.in_flight += 1
        self.in_flight_bytes += size
        self.in_flight_tokens += tokens
        self.last_pick_at = now
        self._name(model)
        if not page_knows:
            self._changes.append((now, 1))
            self._starts.append(now)
            self._delta += 1
        self._change()

    def described(self, model: str, size: int, tokens: int) -> None:
        """Of a request that was started without them, model, size and tokens are known now."""
        self.in_flight_bytes += size
        self.in_flight_tokens += tokens
        self._name(model)
        self._change()

    def _name(self, model: str) -> None:
        """A request of this model is on the way."""
        if model:
            sent = self._models_sent
            sent[model] = sent.get(model, 0) + 1
            self._used[model] = None
            self._used.move_to_end(model)
            if len(self._used) > _MOST_MODELS:
                self._used.popitem(last=False)

    def computed(self, tokens: int) -> None:
        """So many tokens of prompts are computed; their requests go on."""
        self.in_flight_tokens -= tokens
        self._change()

    def finished(self, model: str, size: int, now: float, tokens: int = 0, *, page_knows: bool = False) -> None:
        """A request that was sent here is over. `page_knows`: the last page did not count it any more."""
        self.in_flight -= 1
        self.in_flight_bytes -= size
        self.in_flight_tokens -= tokens
        if model:
            self._models_sent[model] -= 1
            if self._models_sent[model] <= 0:
                del self._models_sent[model]
        if not page_knows:
            self._changes.append((now, -1))
            self._delta -= 1
        self._change()

    def overdue(self, requests: int) -> int:
        """How many requests the last page should have counted and did not: it counted `requests`. Of those that other
        replicas account for too, only our share: each replica finds out for itself."""
        missing = max(0, self.in_flight - len(self._starts) - requests)
        return missing * (self.in_flight - self.of_peers) // self.in_flight if self.of_peers else missing

    def scraped(self, metrics: ServerMetrics, asked_at: float, note: str = "") -> None:
        """A page has come that was asked for at `asked_at`. `note` says what is wrong with it, if anything."""
        self.metrics = metrics
        self.fresh = True
        self.scraped_at = asked_at
        self.scrape_error = note
        while self._changes and self._changes[0][0] <= asked_at:
            self._changes.popleft()
        self._delta = sum(change for _, change in self._changes)
        while self._starts and self._starts[0] <= asked_at - ARRIVAL_SECONDS:
            self._starts.popleft()
        self._changes_of_all.pages = True
        self._change()

    def scrape_failed(self, error: str, *, stale: bool) -> None:
        """No page has come. `stale`: what is known is too old to use from now on."""
        self.scrape_error = error
        if stale and self.fresh:
            self.fresh = False
            self._changes_of_all.pages = True
            self._change()

    def state(self, usual: Usual, adapters: Set[str]) -> EndpointState:
        """This endpoint as it is now: no change is left to be seen. `adapters` are the pool's adapters. Without fresh
        metrics, as many of its requests as `usual` are taken as running and the rest as waiting."""
        self._changed = False
        known = self.metrics if self.fresh and self.metrics is not None else None
        if known is not None:
            counted = (known.running or 0) + (known.waiting or 0) + self._delta
            running = max(0, min(known.running or 0, counted))
            waiting = max(0, counted, self.in_flight) - running
            kv_usage = known.kv_usage or 0.0
        else:
            known = _UNKNOWN
            running = min(self.in_flight, usual.running)
            waiting = self.in_flight - running
            kv_usage = usual.kv_usage
        sent = frozenset(self._models_sent) & adapters
        return EndpointState(
            key=self.endpoint.key,
            endpoint=self.endpoint,
            waiting=waiting,
            running=running,
            kv_usage=kv_usage,
            in_flight=self.in_flight,
            in_flight_bytes=self.in_flight_bytes,
            # What was sent there is, or is about to be, in use: the server's own list tells it later, if at all.
            running_adapters=known.running_adapters | sent if sent else known.running_adapters,
            waiting_adapters=known.waiting_adapters,
            resident_adapters=self._resident(known.max_adapters, adapters) if adapters else frozenset(),
            max_adapters=known.max_adapters,
            models=known.models,
            fresh=self.fresh,
            in_flight_tokens=self.in_flight_tokens,
            custom=known.custom,
            cache_tokens=self.metrics.cache_tokens if self.metrics is not None else 0,
        )

    def _resident(self, slots: int, adapters: Set[str]) -> frozenset[str]:
        """The adapters last used here, as many as the server holds: it keeps them when their requests are done, and
        then no longer reports them."""
        used = (model for model in reversed(self._used) if model in adapters)
        return frozenset(islice(used, max(1, slots)))


class EndpointStore:
    """The pool's endpoints. Not safe for threads: one event loop owns it. Who else keeps sets of them
    shares `slots`."""

    def __init__(self, slots: Slots | None = None) -> None:
        self._slots = slots if slots is not None else Slots()
        self._records: dict[str, EndpointRecord] = {}
        self._columns = Columns(self._slots)
        self._changes = _Changes()
        self._usual = Usual()
        self._snapshot: tuple[EndpointState, ...] | None = ()
        # As of the last look.
        self.adapters = AdapterNames()

    def replace(self, endpoints: Iterable[Endpoint]) -> tuple[list[Endpoint], list[Endpoint]]:
        """Make these the pool's endpoints. What is known of those that stay is kept; returns who came and who went.

        An address taken over by another Pod is a new endpoint."""
        wanted = {endpoint.key: endpoint for endpoint in endpoints}
        gone: list[Endpoint] = []
        for key, record in list(self._records.items()):
            new = wanted.get(key)
            if new is None or new.uid != record.endpoint.uid or new.pod_name != record.endpoint.pod_name:
                gone.append(record.endpoint)
                del self._records[key]
                self._columns.remove(record.slot)
                self._slots.release(key)
                self.adapters.report(key, frozenset())
            elif new != record.endpoint:
                record.replaced(new)
        came = [endpoint for key, endpoint in wanted.items() if key not in self._records]
        for endpoint in came:
            slot = self._slots.take(endpoint.key)
            self._records[endpoint.key] = EndpointRecord(endpoint, slot, self._changes)
        self._records = {key: self._records[key] for key in wanted}
        self._changes.pages = True
        self._snapshot = None
        return came, gone

    def get(self, key: str) -> EndpointRecord | None:
        """The record of `ip:port`, if it is in the pool."""
        return self._records.get(key)

    def records(self) -> tuple[EndpointRecord, ...]:
        """Every record, in the pool's order."""
        return tuple(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    def columns(self) -> Columns:
        """The states of the endpoints as they are now. Not to be kept: they change with the next call."""
        changed = self._changes.records
        if not changed:
            return self._columns
        self._changes.records = []
        self._snapshot = None
        # Some may have left the pool since.
        changed = [record for record in changed if self._records.get(record.endpoint.key) is record]
        for record in changed:
            if record.metrics is not None:
                self.adapters.report(record.endpoint.key, record.metrics.known_adapters)
        if self._changes.pages:
            self._changes.pages = False
            self._usual = _usual(self._records.values())
        for record in changed:
            self._columns.put(record.slot, record.state(self._usual, self.adapters.names))
        return self._columns

    def snapshot(self) -> tuple[EndpointState, ...]:
        """The state of every endpoint, in the pool's order."""
        states = self.columns().by_slot
        if self._snapshot is None:
            self._snapshot = tuple([states[record.slot] for record in self._records.values()])
        return self._snapshot


def _usual(records: Iterable[EndpointRecord]) -> Usual:
    """The mean of what servers with fresh metrics report."""
    known = [record.metrics for record in records if record.fresh and record.metrics is not None]
    if not known:
        return Usual()
    running = sum(metrics.running or 0 for metrics in known) // len(known)
    return Usual(running, sum(metrics.kv_usage or 0.0 for metrics in known) / len(known))
