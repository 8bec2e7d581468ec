"""Feeds the ward of a pool's servers with what the keeper of the pool sees, and tells picks its verdict."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from heapq import nsmallest
from operator import itemgetter

from headrace.datalayer.evidence import Evidence, Failure, Origin
from headrace.datalayer.health import Cause, Health, Page, Server, Ward
from headrace.datalayer.ledger import InFlight
from headrace.datalayer.pool_state import MOST_TRIED, PoolObserver, ResponseTotals
from headrace.datalayer.store import EndpointRecord, EndpointStore
from headrace.scheduling import EndpointState, Facts
from headrace.scheduling.health import VERDICT

logger = logging.getLogger(__name__)

# Between two looks at the servers.
TURN_SECONDS = 0.2
# A page that takes longer does not come, for all that is known: it takes a server milliseconds.
LATE_TURNS = 5
_FAILED = (500, 503)
# Pages wanted ahead of others, in one turn.
_MOST_HASTENED = 20
_PURGE_SECONDS = 5.0
# In a pool of so many, each failure is judged at once.
_FEW = 64


class _Sent:
    """What was sent to one server and is not over."""

    __slots__ = ("asked_at", "computed", "first_tokens", "late_turns", "open", "page_at", "unheard")

    def __init__(self) -> None:
        # In the order they were sent, those whose first token nobody has seen, and the tokens of their prompts.
        self.open: dict[InFlight, int] = {}
        # Those without any header yet.
        self.unheard: set[InFlight] = set()
        # Those whose prompts the page says are computed, though no token of theirs was seen; and their tokens.
        self.computed: dict[InFlight, int] = {}
        # Of the last page: how many answers had begun, and when it was asked for.
        self.first_tokens: float | None = None
        self.page_at: float | None = None
        # The page that is asked for, and for how many turns it has not come.
        self.asked_at: float | None = None
        self.late_turns = 0


@dataclass(eq=False)
class HealthWatch(PoolObserver):
    """Knows which servers of a pool are to be trusted. `clock` is the store's. `tells`: picks go by it.
    `on_failure` is told of each failure that was seen here."""

    store: EndpointStore
    _: KW_ONLY
    clock: Callable[[], float]
    tells: bool = True
    on_failure: Callable[[Failure], None] = lambda failure: None
    changes: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.ward = Ward(self._changed)
        self._evidence = Evidence()
        self._sent: dict[str, _Sent] = {}
        self._turned_at = self.clock()
        # Whether the pool has had servers: those that come later are new.
        self._settled = False
        self._retried: dict[str, bool] = {}
        self._judge_again: dict[str, float] = {}
        self._purge_at = 0.0

    # ---- a data producer

    def prepare(self, facts: Facts, states: Sequence[EndpointState]) -> None:
        """Picks go by the verdict, if there is anything to it."""
        verdict = self.ward.verdict
        if verdict and self.tells:
            facts.attributes[VERDICT] = verdict

    def add(self, key: str) -> None:
        """An endpoint joins the pool."""
        self._sent[key] = _Sent()
        self.ward.join(key, self.clock(), new=self._settled)

    def remove(self, key: str) -> None:
        """An endpoint leaves it."""
        self._sent.pop(key, None)
        self._retried.pop(key, None)
        self._judge_again.pop(key, None)
        self._evidence.forget(key)
        self.ward.leave(key)

    # ---- requests

    def sent(self, entry: InFlight, origin: Origin, picks: Sequence[str]) -> None:
        """A request was picked for; `picks` are the endpoints that may serve it, best first."""
        entry.origin, entry.picks = origin, tuple(picks[:MOST_TRIED])
        sent = self._sent.get(entry.endpoint)
        if sent is not None and entry.record is not None:
            sent.open[entry] = entry.tokens
            sent.unheard.add(entry)

    def answered(self, entry: InFlight, status: int, *, elsewhere: bool = False) -> None:
        now, server, good = self.clock(), entry.endpoint, 200 <= status < 300
        if good:
            self._evidence.answered(server, entry.origin, now)
        if elsewhere:
            self._moved(entry)
            # Where the gateway went outside the list, it says of the first alone that it was not served there.
            tried = entry.picks.index(server) if server in entry.picks else 1
            for key in entry.picks[:tried]:
                self._saw(Failure(key, entry.origin, server if good else ""))
        sent = self._sent.get(server)
        if sent is not None:
            sent.unheard.discard(entry)
        if status in _FAILED:
            self._saw(Failure(server, entry.origin))
        elif good:
            self.ward.answered(server, now)
            # A stream's headers come before its server has looked at it.
            if not entry.streams or not _page_tells(entry):
                self.ward.progressed(server, now)

    def first_token(self, entry: InFlight, seconds: float) -> None:
        sent = self._sent.get(entry.endpoint)
        if sent is not None:
            alone, tokens = len(sent.open) == 1, sent.open.pop(entry, 0)
            if alone:
                # Its prompt is all that was computed.
                self.ward.computed(entry.endpoint, tokens, seconds)
            sent.computed.pop(entry, None)
        self.ward.progressed(entry.endpoint, self.clock())

    def responded(self, entry: InFlight, response: ResponseTotals, seconds: float, decode: float | None) -> None:
        if response.size:
            self.ward.progressed(entry.endpoint, self.clock())

    def finished(self, entry: InFlight, seconds: float) -> None:
        sent = self._sent.get(entry.endpoint)
        if sent is None:
            return
        heard = entry not in sent.unheard
        self._drop(sent, entry)
        # Of a server whose pages do not tell, an end is all that is seen of a stream.
        if heard and entry.streams and not _page_tells(entry):
            self.ward.progressed(entry.endpoint, self.clock())

    def unobserved(self, entry: InFlight) -> None:
        sent = self._sent.get(entry.endpoint)
        if sent is not None:
            self._drop(sent, entry)

    def _moved(self, entry: InFlight) -> None:
        sent = self._sent.get(entry.picked_for)
        if sent is not None:
            self._drop(sent, entry)

    def _drop(self, sent: _Sent, entry: InFlight) -> None:
        sent.open.pop(entry, None)
        sent.computed.pop(entry, None)
        sent.unheard.discard(entry)

    def told(self, failure: Failure) -> None:
        """Another replica has seen an endpoint fail to answer."""
        if self.ward.get(failure.served) is not None:
            self._evidence.answered(failure.served, failure.origin, self.clock())
        self._failed(failure)

    def _saw(self, failure: Failure) -> None:
        self._failed(failure)
        self.on_failure(failure)

    def _failed(self, failure: Failure) -> None:
        key, now, retried = failure.endpoint, self.clock(), bool(failure.served)
        server = self.ward.get(key)
        if server is None:
            return
        self._evidence.failed(key, failure.origin, now)
        self._retried[key] = retried
        # On trial one failure is enough. What does not convince is looked at again in a while.
        guilty = server.health is Health.TRIAL
        if not guilty and now >= self._judge_again.get(key, 0.0):
            guilty = self._evidence.speaks_against(key, now)
            if not guilty and len(self._sent) > _FEW:
                self._judge_again[key] = now + TURN_SECONDS
        if guilty:
            self.ward.failing(key, now, retried=retried)

    # ---- pages

    def scraped(self, record: EndpointRecord) -> None:
        """A page has come."""
        metrics, key, now = record.metrics, record.endpoint.key, self.clock()
        sent = self._sent.get(key)
        if metrics is None or record.scraped_at is None or sent is None:
            return
        # Of a page that was cut off, what it counts may be missing in part.
        progress, first_tokens = (None, None) if record.scrape_error else (metrics.progress, metrics.first_tokens)
        self._first_tokens(key, sent, first_tokens, record.scraped_at)
        gauges = (metrics.running, metrics.waiting, metrics.kv_usage)
        self.ward.page(key, Page(record.scraped_at, progress, gauges, metrics.asleep), now)

    def _first_tokens(self, key: str, sent: _Sent, counted: float | None, asked_at: float) -> None:
        """The page says how many answers have begun."""
        before, page_at = sent.first_tokens, sent.page_at
        sent.first_tokens, sent.page_at = counted, asked_at
        if before is None or counted is None or not sent.open:
            return
        begun = int(max(0.0, counted - before))
        oldest = next(iter(sent.open)).started_at
        # Which ones they are it does not say: the short ones, for all that is known.
        batch = nsmallest(begun, sent.open.items(), key=itemgetter(1)) if begun else []
        for entry, tokens in batch:
            sent.computed[entry] = tokens
            del sent.open[entry]
        # Told only as exactly as pages come, and by a server that has computed all it was sent.
        if batch and not sent.open and page_at is not None and asked_at - page_at <= (asked_at - oldest) / 2:
            self.ward.computed(key, sum(tokens for _, tokens in batch), asked_at - oldest)

    def scrape_failed(self, record: EndpointRecord, refused: bool) -> None:
        """No page has come. `refused`: nobody listens there."""
        if refused:
            self.ward.refuse(record.endpoint.key, self.clock())
        else:
            self.ward.silent(record.endpoint.key)

    # ---- time

    def turn(self) -> list[str]:
        """Look at every server; the endpoints whose pages are wanted ahead of others. Call it every TURN_SECONDS."""
        now = self.clock()
        seconds, self._turned_at = now - self._turned_at, now
        wanted = []
        for record in self.store.records():
            key = record.endpoint.key
            sent = self._sent.get(key)
            if sent is None:
                continue
            if record.asked_at is None or record.asked_at != sent.asked_at:
                sent.asked_at, sent.late_turns = record.asked_at, 0
            else:
                # In turns, not in seconds: time in which the picker itself stood still does not count.
                sent.late_turns += 1
                if sent.late_turns >= LATE_TURNS:
                    self.ward.silent(key)
            work = record.in_flight > 0 if record.fresh else bool(sent.unheard)
            tokens = record.in_flight_tokens - sum(sent.computed.values()) if work else 0
            if self.ward.turn(key, work, tokens, seconds, now):
                wanted.append(key)
        guilty_of = self._evidence.verdicts(now)
        for key, guilty in guilty_of.items():
            if guilty:
                self.ward.failing(key, now, retried=self._retried.get(key, False))
        for server in self.ward.suspects():
            if not guilty_of.get(server.key):
                self.ward.acquitted(server.key, now)
        if now >= self._purge_at:
            self._purge_at = now + _PURGE_SECONDS
            self._purge()
        self._settled = self._settled or bool(self._sent)
        return wanted[:_MOST_HASTENED]

    def _purge(self) -> None:
        """Forget requests whose end nobody has told: another replica accounts for them now."""
        for sent in self._sent.values():
            for entry in [entry for entry in (*sent.open, *sent.computed, *sent.unheard) if entry.over]:
                self._drop(sent, entry)

    def _changed(self, server: Server, before: Health) -> None:
        if before is Health.OUT:
            # On trial it is judged by what it does now.
            self._evidence.forget(server.key)
        self.changes[server.health.value, server.cause.value] += 1
        if server.cause is Cause.NEW and server.health is Health.TRIAL:
            return
        log = logger.warning if server.health in (Health.SUSPECT, Health.OUT) else logger.info
        log("endpoint %s is %s: %s", server.key, server.health.value, server.cause.value or "it makes progress")

    def alarm(self) -> str:
        """What to tell people where no server is good, nor on trial: how many there are, and what most have in common;
        "" where one is."""
        if not self.ward.verdict or len(self.ward.verdict) < len(self.ward) or self.ward.counts()[Health.TRIAL]:
            return ""
        causes = Counter(server.cause.value for server in self.ward.servers())
        (cause, count), *_ = causes.most_common(1)
        total = sum(causes.values())
        return f"none of {total} endpoints is healthy, so picks do not go by health; {count} of them: {cause}"


def _page_tells(entry: InFlight) -> bool:
    """Whether progress shows on the page of the server that has this request."""
    record = entry.record
    return record is not None and record.fresh and record.metrics is not None and record.metrics.progress is not None
