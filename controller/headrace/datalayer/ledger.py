"""Which requests are in flight where. Every request that is picked is started here, and every one is ended once.

A request's end is told by whichever stream sees its response: its own, or an observation stream joined to it by
request id. A pick that nobody ever observes (the client went before the gateway sent it on) expires.

Where several replicas serve a pool, a gateway sends picks and observations to any of them. Each request is then the
account of one replica: of the one that observes it, else of the one that picked it. What others account for is in here
too, put in by `peer_accounts`, and counts for its endpoint as ours does."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import Protocol

from msgspec import Struct

from headrace.core import NOT_ASKED, Asked, Request
from headrace.datalayer.evidence import Origin
from headrace.datalayer.store import ARRIVAL_SECONDS, EndpointRecord, EndpointStore

# How long a pick may go unobserved: an observation stream opens within milliseconds of the pick. Without any observer
# (a gateway that shows requests only) the end is never told, and this is all that empties the account.
UNOBSERVED_SECONDS = 5.0
UNOBSERVED_SECONDS_WITHOUT_OBSERVERS = 60.0
_NO_ORIGIN = Origin()


class InFlight(Struct, eq=False):
    """One request on its way. `endpoint` is the `ip:port` it counts for, `record` that endpoint's account: an address
    that another Pod takes over has a new account, and this request no part in it."""

    request_id: str
    endpoint: str
    model: str
    size: int
    started_at: float
    attached: bool
    record: EndpointRecord | None
    observed: bool = False
    asked: Asked = NOT_ASKED
    over: bool = False
    # About how many tokens of its prompt the endpoint has to compute, and how many it will answer with.
    tokens: int = 0
    output_tokens: int = 0
    # The flow and priority it was admitted by.
    flow: str = ""
    priority: int = 0
    computed: bool = False
    # The replica whose account it is, "" for ours, and its number there.
    owner: str = ""
    number: int = 0
    # Where it was picked for: `endpoint` may have changed since.
    picked_for: str = ""
    # Whether its owner observes what another replica picked; and that pick's owner and number, once they are known.
    elsewhere: bool = False
    # Whose request it is, the endpoints that it may go to, best first, and whether its answer is a stream.
    origin: Origin = _NO_ORIGIN
    picks: tuple[str, ...] = ()
    streams: bool = False
    pick: tuple[str, int] | None = None

    def describe(self, pick: InFlight) -> None:
        """Take over what the pick of this request knew of it."""
        self.model, self.size, self.asked = pick.model, pick.size, pick.asked
        self.tokens = 0 if self.computed else pick.tokens
        self.flow, self.priority, self.output_tokens = pick.flow, pick.priority, pick.output_tokens


class LedgerListener(Protocol):
    """Who wants to know of every change of our own entries. Called in the request's path: take a note, no more."""

    def started(self, entry: InFlight) -> None:
        """It is in the account."""

    def changed(self, entry: InFlight) -> None:
        """It counts for another endpoint, or with other tokens."""

    def finished(self, entry: InFlight) -> None:
        """It is no longer in the account."""


class Ledger:
    """The in-flight account of one pool. Times are seconds of the caller's clock. `listeners` are told of changes."""

    def __init__(self, store: EndpointStore, listeners: Sequence[LedgerListener] = ()) -> None:
        self._listeners = listeners
        self._store = store
        self._by_request: dict[str, list[InFlight]] = {}
        self._own = 0
        self._numbers = count(1)
        # Picks that no stream is sure to end, oldest first.
        self._unobserved: OrderedDict[int, InFlight] = OrderedDict()
        # Observed here, picked elsewhere and over already: the pick may yet be told of. Oldest first.
        self._ended_elsewhere: OrderedDict[tuple[str, str], tuple[float, tuple[str, int] | None]] = OrderedDict()
        # Whether any observation stream has come, or was announced: then responses are reported by those.
        self.observers_seen = False

    def __len__(self) -> int:
        return self._own

    def expect_observers(self) -> None:
        """The gateway says that it observes responses. Under a burst an observation stream may end before it was
        looked at: a pick that nobody observes soon was one of those, not a long answer of a gateway without them."""
        self.observers_seen = True

    def own(self) -> Iterator[InFlight]:
        """The entries of our own account."""
        return (entry for entries in self._by_request.values() for entry in entries if not entry.owner)

    def by_model(self) -> Counter[str]:
        """How many requests of each model are in flight, in our own account."""
        return Counter(entry.model for entry in self.own())

    def start(self, request: Request, endpoint: str, now: float, *, attached: bool, tokens: int = 0) -> InFlight:
        """A request was picked. `attached`: the stream that picked sees its end too. `tokens`: of its prompt, those
        that the endpoint has to compute."""
        record = self._store.get(endpoint)
        model, size, asked = request.model, request.body_size, request.asked
        entry = InFlight(request.request_id, endpoint, model, size, now, attached, record, asked=asked, tokens=tokens)
        entry.picked_for = endpoint
        self._take(entry)
        if not attached:
            self._unobserved[id(entry)] = entry
        if record is not None:
            record.started(model, size, now, tokens)
        for listener in self._listeners:
            listener.started(entry)
        return entry

    def observe(self, request_id: str, destination: str, now: float) -> InFlight | None:
        """An observation stream says that this request was sent with this pick; the entry it has to end.

        A request that another replica picked is ours from now on, if it goes to this pool; else None. It is described
        by its pick, if that is known, or as soon as it is."""
        self.observers_seen = True
        first = destination.partition(",")[0]
        others: InFlight | None = None
        for entry in self._by_request.get(request_id, ()):
            if entry.observed or (first and entry.picked_for != first):
                continue
            if entry.owner:
                others = others or entry
                continue
            entry.observed = True
            self._unobserved.pop(id(entry), None)
            return entry
        if others is not None:
            return self._claim(others)
        record = self._store.get(first)
        if record is None:
            return None
        entry = InFlight(request_id, first, "", 0, now, True, record, observed=True, elsewhere=True, picked_for=first)
        self._take(entry)
        record.started("", 0, now)
        for listener in self._listeners:
            listener.started(entry)
        return entry

    def _claim(self, pick: InFlight) -> InFlight:
        """What another replica picked is observed here: it counts as before, for us."""
        entry = InFlight(pick.request_id, pick.endpoint, "", 0, pick.started_at, True, pick.record, observed=True)
        entry.describe(pick)
        entry.elsewhere, entry.picked_for, entry.pick = True, pick.picked_for, (pick.owner, pick.number)
        self.drop(pick)
        if pick.record is not None:
            pick.record.of_peers -= 1
        self._take(entry)
        for listener in self._listeners:
            listener.started(entry)
        return entry

    def move(self, entry: InFlight, endpoint: str, now: float) -> bool:
        """The gateway says another endpoint served it. True if the account changed."""
        if entry.over or not endpoint or endpoint == entry.endpoint:
            return False
        self.recount(entry, endpoint, now)
        for listener in self._listeners:
            listener.changed(entry)
        return True

    def recount(self, entry: InFlight, endpoint: str, now: float) -> None:
        """Count an entry, ours or another replica's, for another endpoint."""
        self._uncount(entry, now)
        entry.endpoint = endpoint
        entry.record = self._store.get(endpoint)
        if entry.record is not None:
            entry.record.started(entry.model, entry.size, now, entry.tokens)
            entry.record.of_peers += bool(entry.owner)

    def prompt_computed(self, entry: InFlight) -> None:
        """The first token came: the endpoint has computed the prompt."""
        if entry.over or entry.computed:
            return
        entry.computed = True
        self.recompute(entry, 0)
        for listener in self._listeners:
            listener.changed(entry)

    def recompute(self, entry: InFlight, tokens: int) -> None:
        """Of an entry's prompt only so many tokens are still to be computed."""
        if entry.record is not None:
            entry.record.computed(entry.tokens - tokens)
        entry.tokens = tokens

    def finish(self, entry: InFlight, now: float, *, page_knows: bool = False) -> bool:
        """The request is over. False if it already was. `page_knows`: the server's last page did not count it."""
        if not self.drop(entry):
            return False
        if entry.elsewhere and self._listeners:
            # Its pick may yet be reported.
            key = (entry.request_id, entry.picked_for)
            self._ended_elsewhere[key] = (now, entry.pick)
            self._ended_elsewhere.move_to_end(key)
        self._uncount(entry, now, page_knows=page_knows)
        if not entry.owner:
            for listener in self._listeners:
                listener.finished(entry)
        return True

    def abandon(self, entry: InFlight, now: float) -> None:
        """Count another replica's entry no longer, for nobody will tell its end. What the server's last page counted
        goes on counting until the next page."""
        if self.drop(entry):
            self._uncount(entry, now, page_knows=True)

    def described(self, entry: InFlight) -> None:
        """What we observe, and another replica picked, is described by its pick: others may not have heard of that."""
        for listener in self._listeners:
            listener.started(entry)

    def superseded(self, pick: InFlight) -> None:
        """Another replica observes what we picked, and accounts for it."""
        if self.drop(pick):
            for listener in self._listeners:
                listener.finished(pick)

    # The table itself; `peer_accounts` keeps the entries of other replicas in it.

    def _take(self, entry: InFlight) -> None:
        entry.number = next(self._numbers)
        self._own += 1
        self.put(entry)

    def _uncount(self, entry: InFlight, now: float, *, page_knows: bool = False) -> None:
        """Count an entry no longer for its endpoint."""
        if entry.record is not None:
            entry.record.finished(entry.model, entry.size, now, entry.tokens, page_knows=page_knows)
            entry.record.of_peers -= bool(entry.owner)

    def put(self, entry: InFlight) -> None:
        """Into the table; nothing is counted."""
        self._by_request.setdefault(entry.request_id, []).append(entry)

    def drop(self, entry: InFlight) -> bool:
        """Out of the table; nothing is counted. False if it was not in it."""
        if entry.over:
            return False
        entry.over = True
        self._unobserved.pop(id(entry), None)
        entries = self._by_request.get(entry.request_id)
        if entries is not None:
            if entry in entries:
                entries.remove(entry)
            if not entries:
                del self._by_request[entry.request_id]
        if not entry.owner:
            self._own -= 1
        return True

    def find_pick(self, request_id: str, endpoint: str, observer: str) -> InFlight | None:
        """The unobserved pick of a request that `observer` ("": we) observes."""
        for entry in self._by_request.get(request_id, ()):
            if entry.owner != observer and not entry.observed and not entry.elsewhere and entry.picked_for == endpoint:
                return entry
        return None

    def find_observed(self, request_id: str, endpoint: str, pick: tuple[str, int]) -> InFlight | None:
        """The entry of whoever observes this pick of another."""
        for entry in self._by_request.get(request_id, ()):
            known = entry.elsewhere and entry.picked_for == endpoint and entry.owner != pick[0]
            if known and entry.pick in (None, pick):
                return entry
        return None

    def ended_elsewhere(self, request_id: str, endpoint: str, pick: tuple[str, int]) -> bool:
        """Whether this pick was observed to its end before it was told of."""
        key = (request_id, endpoint)
        kept = self._ended_elsewhere.get(key)
        if kept is None or kept[1] not in (None, pick):
            return False
        # A client may use the id again: only this pick is over.
        self._ended_elsewhere[key] = (kept[0], pick)
        return True

    def reconcile(self, record: EndpointRecord, requests: int, asked_at: float, now: float) -> list[InFlight]:
        """End what a server no longer has: its last page, asked for at `asked_at`, counted `requests`.

        Those that are observed tell their end themselves. Of the others that must have arrived by then, as many are
        over as the server has too few; the oldest are taken. One whose observation is late, not lost, comes back with
        it. A server that has requests of others has only more: then nothing is ended."""
        overdue = record.overdue(requests)
        if not overdue or not self._unobserved:
            return []
        before = asked_at - ARRIVAL_SECONDS
        old = (entry for entry in self._unobserved.values() if entry.record is record and entry.started_at <= before)
        ended = list(islice(old, overdue))
        for entry in ended:
            self.finish(entry, now, page_knows=True)
        return ended

    def expire(self, now: float) -> list[InFlight]:
        """End what has gone unobserved for too long."""
        while self._ended_elsewhere:
            key, (ended_at, _) = next(iter(self._ended_elsewhere.items()))
            if now - ended_at < UNOBSERVED_SECONDS:
                break
            del self._ended_elsewhere[key]
        limit = UNOBSERVED_SECONDS if self.observers_seen else UNOBSERVED_SECONDS_WITHOUT_OBSERVERS
        expired: list[InFlight] = []
        while self._unobserved:
            entry = next(iter(self._unobserved.values()))
            if now - entry.started_at < limit:
                break
            self.finish(entry, now)
            expired.append(entry)
        return expired
