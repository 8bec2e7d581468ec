"""Which requests are in flight where. Every request that is picked is started here, and every one is ended once.

A request's end is told by whichever stream sees its response: its own, or an observation stream joined to it by
request id. A pick that nobody ever observes (the client went before the gateway sent it on) expires."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from itertools import islice

from headrace.core import NOT_ASKED, Asked
from headrace.datalayer.store import ARRIVAL_SECONDS, EndpointRecord, EndpointStore

# How long a pick may go unobserved: an observation stream opens within milliseconds of the pick. Without any observer
# (a gateway that shows requests only) the end is never told, and this is all that empties the account.
UNOBSERVED_SECONDS = 5.0
UNOBSERVED_SECONDS_WITHOUT_OBSERVERS = 60.0


@dataclass(slots=True, eq=False)
class InFlight:
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
    over: bool = field(default=False)
    # About how many tokens of its prompt the endpoint has to compute, and how many it will answer with.
    tokens: int = 0
    output_tokens: int = 0
    # The flow and priority it was admitted by.
    flow: str = ""
    priority: int = 0


class Ledger:
    """The in-flight account of one pool. Times are seconds of the caller's clock."""

    def __init__(self, store: EndpointStore) -> None:
        self._store = store
        self._by_request: dict[str, list[InFlight]] = {}
        # Picks that no stream is sure to end, oldest first.
        self._unobserved: OrderedDict[int, InFlight] = OrderedDict()
        self._observers_seen = False

    def __len__(self) -> int:
        return sum(len(entries) for entries in self._by_request.values())

    @property
    def observers_seen(self) -> bool:
        """Whether any observation stream has come, or was announced: then responses are told by those."""
        return self._observers_seen

    def expect_observers(self) -> None:
        """The gateway says that it observes responses. Under a burst an observation stream may end before it was
        looked at: a pick that nobody observes soon was one of those, not a long answer of a gateway without them."""
        self._observers_seen = True

    def by_model(self) -> Counter[str]:
        """How many requests of each model are in flight."""
        return Counter(entry.model for entries in self._by_request.values() for entry in entries)

    def start(
        self,
        request_id: str,
        endpoint: str,
        model: str,
        size: int,
        now: float,
        *,
        attached: bool,
        asked: Asked = NOT_ASKED,
        tokens: int = 0,
    ) -> InFlight:
        """A request was picked. `attached`: the stream that picked sees its end too. `tokens`: of its prompt, those
        that the endpoint has to compute."""
        record = self._store.get(endpoint)
        entry = InFlight(request_id, endpoint, model, size, now, attached, record, asked=asked, tokens=tokens)
        self._by_request.setdefault(request_id, []).append(entry)
        if not attached:
            self._unobserved[id(entry)] = entry
        if record is not None:
            record.started(model, size, now, tokens)
        return entry

    def observe(self, request_id: str, destination: str, now: float) -> InFlight | None:
        """An observation stream says that this request was sent with this pick; the entry it has to end.

        A request that another replica picked is started here and now, if it goes to this pool; else None."""
        self._observers_seen = True
        first = destination.partition(",")[0]
        for entry in self._by_request.get(request_id, ()):
            if not entry.observed and (not first or entry.endpoint == first):
                entry.observed = True
                self._unobserved.pop(id(entry), None)
                return entry
        if self._store.get(first) is None:
            return None
        entry = self.start(request_id, first, "", 0, now, attached=True)
        entry.observed = True
        return entry

    def move(self, entry: InFlight, endpoint: str, now: float) -> bool:
        """The gateway says another endpoint served it. True if the account changed."""
        if entry.over or not endpoint or endpoint == entry.endpoint:
            return False
        if entry.record is not None:
            entry.record.finished(entry.model, entry.size, now, entry.tokens)
        entry.endpoint = endpoint
        entry.record = self._store.get(endpoint)
        if entry.record is not None:
            entry.record.started(entry.model, entry.size, now, entry.tokens)
        return True

    def prompt_computed(self, entry: InFlight) -> None:
        """The first token came: the endpoint has computed the prompt."""
        if entry.record is not None and not entry.over:
            entry.record.computed(entry.tokens)
            entry.tokens = 0

    def finish(self, entry: InFlight, now: float, *, page_knows: bool = False) -> bool:
        """The request is over. False if it already was. `page_knows`: the server's last page did not count it."""
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
        if entry.record is not None:
            entry.record.finished(entry.model, entry.size, now, entry.tokens, page_knows=page_knows)
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
        limit = UNOBSERVED_SECONDS if self._observers_seen else UNOBSERVED_SECONDS_WITHOUT_OBSERVERS
        expired: list[InFlight] = []
        while self._unobserved:
            entry = next(iter(self._unobserved.values()))
            if now - entry.started_at < limit:
                break
            self.finish(entry, now)
            expired.append(entry)
        return expired
