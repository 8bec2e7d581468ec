"""Which servers are to be trusted with requests: a state machine for each, from what was observed of it.

good -> suspect -> out -> trial -> good. Nobody is asked how they are: a server shows by its answers, and by what its
metrics page counts, that it makes progress. Pure: no I/O; times are seconds of one clock, given with each call."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

# No progress for so long, or three times as long as the prompts there should take, is suspect; then it is out.
LEAST_SECONDS = 2.0
PATIENCE = 3.0
PAGES = 3
SUSPECT_SECONDS = 3.0
# A server with work and without a sign for so long is scraped ahead of others.
QUIET_SECONDS = 1.0
# What a server computes a second at least, until one has shown it: prompt tokens.
SLOWEST_RATE = 1000.0
# Prompts shorter than this say nothing of the rate.
_TELLING_TOKENS = 512
# A server that had nothing to do for so long begins anew: what it did not answer before is no sign.
_FORGOTTEN_SECONDS = 10.0
# A turn that comes later than this was not the servers' doing.
_LONGEST_TURN = 0.5
# How many requests a server on trial has at once before it is good again.
TRIAL_REQUESTS = 16
# Between two rises of that number.
_RISE_SECONDS = 0.5
_LONGEST_OUT = 300.0


class Health(StrEnum):
    """What a server is taken for."""

    GOOD = "good"
    SUSPECT = "suspect"
    OUT = "out"
    TRIAL = "trial"


class Cause(StrEnum):
    """Why."""

    NONE = ""
    NO_PROGRESS = "no-progress"
    FAILURES = "failures"
    UNAVAILABLE = "unavailable"
    REFUSED = "connection-refused"
    ASLEEP = "asleep"
    NEW = "new"
    RESTARTED = "restarted"
    RECOVERING = "recovering"


# Evidence that more than half of a pool never goes out by.
_BY_FAILURES = (Cause.FAILURES, Cause.UNAVAILABLE, Cause.REFUSED)
_BY_ANSWERS = (Cause.FAILURES, Cause.UNAVAILABLE)
# Seconds until an out server is tried again without a sign that it is better.
_OUT_SECONDS: Mapping[Cause, float] = {
    Cause.NO_PROGRESS: 30.0,
    # The gateway sends what fails so to another server: a trial costs hardly anybody an answer.
    Cause.FAILURES: 5.0,
    Cause.UNAVAILABLE: 5.0,
    Cause.REFUSED: 30.0,
    Cause.ASLEEP: float("inf"),
    Cause.NEW: 1.0,
}

# What a verdict says of a server: how many requests it may have at once. Good ones are not in it.
SUSPECT, OUT = -1, 0
Verdict = Mapping[str, int]


@dataclass(slots=True, eq=False)
class Server:
    """One server's standing, and what it is judged by."""

    key: str
    health: Health = Health.GOOD
    cause: Cause = Cause.NONE
    since: float = 0.0
    # On trial: how many requests it may have at once, and when that last rose.
    allowed: int = 0
    rose_at: float = 0.0
    # How often it went out since it was last good.
    outs: int = 0
    # Whether it went out for its answers: then only good answers bring it back.
    answers_badly: bool = False
    # Since its last progress: seconds with work, the longest it may take, and pages that showed none.
    waited: float = 0.0
    patience: float = 0.0
    pages: int = 0
    idle: float = 0.0
    # Whether a page that was asked for since then has not come.
    unread: bool = False
    # Of its pages: counters and gauges.
    counted: float | None = None
    shown: tuple[float | None, ...] = ()
    hastened_at: float = float("-inf")
    refused: int = 0
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=16))


@dataclass(frozen=True)
class Page:
    """What a server's page says. `counted`: a number that grows with what it does; None: it has none."""

    asked_at: float
    counted: float | None = None
    gauges: tuple[float | None, ...] = ()
    asleep: bool = False


# Is told each change: the server as it is now, and what it was.
OnChange = Callable[[Server, Health], None]


class Ward:
    """The servers of one pool, and the only code that changes what they are taken for."""

    def __init__(self, on_change: OnChange = lambda server, before: None) -> None:
        self._servers: dict[str, Server] = {}
        self._on_change = on_change
        self._rates: deque[float] = deque(maxlen=64)
        # Of the servers that are not good.
        self.verdict: Verdict = {}

    def get(self, key: str) -> Server | None:
        """A server of the pool."""
        return self._servers.get(key)

    def servers(self) -> Iterable[Server]:
        """Every server."""
        return self._servers.values()

    def suspects(self) -> list[Server]:
        """Those that are suspect."""
        return [self._servers[key] for key, allowed in self.verdict.items() if allowed == SUSPECT]

    def __len__(self) -> int:
        return len(self._servers)

    def counts(self) -> Counter[Health]:
        """How many servers there are of each kind."""
        return Counter(server.health for server in self._servers.values())

    def join(self, key: str, now: float, *, new: bool) -> None:
        """A server joins; one that is `new` is tried with little first."""
        server = self._servers[key] = Server(key, since=now)
        if new:
            self._try(server, Cause.NEW, now)

    def leave(self, key: str) -> None:
        """A server leaves."""
        if self._servers.pop(key, None) is not None and key in self.verdict:
            self.verdict = {other: allowed for other, allowed in self.verdict.items() if other != key}

    # ---- what is seen of a server

    def progressed(self, key: str, now: float) -> None:
        """It answered, or counts more than before."""
        server = self._servers.get(key)
        if server is None:
            return
        self._begin_anew(server)
        if server.health is Health.GOOD:
            return
        if server.health is Health.TRIAL:
            if not server.answers_badly:
                self._rise(server, now)
        elif server.cause is Cause.NO_PROGRESS:
            if server.health is Health.SUSPECT:
                self._set(server, Health.GOOD, Cause.NONE, now)
            else:
                self._try(server, Cause.RECOVERING, now)

    def answered(self, key: str, now: float) -> None:
        """It gave a good answer, or the beginning of one."""
        server = self._servers.get(key)
        if server is not None and server.health is Health.TRIAL and server.answers_badly:
            self._rise(server, now)

    def page(self, key: str, page: Page, now: float) -> None:
        """Its page has come."""
        server = self._servers.get(key)
        if server is None:
            return
        before, shown = server.counted, server.shown
        # A page that was asked for before the wait began says nothing of it.
        server.pages += page.asked_at >= now - server.waited if server.waited else 0
        server.counted, server.refused, server.unread = page.counted, 0, False
        server.shown = (page.counted, *page.gauges)
        if page.asleep:
            if (server.health, server.cause) != (Health.OUT, Cause.ASLEEP):
                self._out(server, Cause.ASLEEP, now)
            return
        if before is not None and page.counted is not None and page.counted < before:
            self._try(server, Cause.RESTARTED, now)
        elif before is not None and page.counted is not None and page.counted > before:
            self.progressed(key, now)
        if (server.health, server.cause) == (Health.SUSPECT, Cause.REFUSED):
            self._set(server, Health.GOOD, Cause.NONE, now)
        if server.health is not Health.OUT:
            return
        changed = bool(shown) and server.shown != shown
        if server.cause in (Cause.ASLEEP, Cause.REFUSED) or (server.cause is Cause.NO_PROGRESS and changed):
            self._try(server, Cause.RECOVERING, now)

    def silent(self, key: str) -> None:
        """Its page was asked for, and does not come."""
        server = self._servers.get(key)
        if server is not None:
            server.unread = server.waited > 0

    def refuse(self, key: str, now: float) -> None:
        """Nobody listens where its page and its answers come from."""
        server = self._servers.get(key)
        if server is None:
            return
        server.refused += 1
        if server.refused >= 2 or server.health in (Health.SUSPECT, Health.TRIAL):
            self._fail(server, Cause.REFUSED, now)
        elif server.health is Health.GOOD:
            self._set(server, Health.SUSPECT, Cause.REFUSED, now)

    def failing(self, key: str, now: float, *, retried: bool) -> None:
        """Its failed answers speak against it; on trial, one does. `retried`: no client saw them."""
        server = self._servers.get(key)
        if server is not None:
            self._fail(server, Cause.UNAVAILABLE if retried else Cause.FAILURES, now)

    def acquitted(self, key: str, now: float) -> None:
        """The failures that made it suspect speak against it no longer."""
        server = self._servers.get(key)
        if server is not None and server.health is Health.SUSPECT and server.cause in _BY_ANSWERS:
            self._set(server, Health.GOOD, Cause.NONE, now)

    def computed(self, key: str, tokens: int, seconds: float) -> None:
        """It has computed so many prompt tokens in so long."""
        server = self._servers.get(key)
        if server is not None and tokens >= _TELLING_TOKENS and seconds > 0:
            server.rates.append(tokens / seconds)
            self._rates.append(tokens / seconds)

    # ---- time

    def turn(self, key: str, work: bool, tokens: int, seconds: float, now: float) -> bool:
        """Some time has passed. `work`: it has requests; `tokens`: of their prompts, those to be computed. True: its
        page is wanted soon."""
        server = self._servers[key]
        seconds = min(seconds, _LONGEST_TURN)
        if work:
            server.idle = 0.0
            server.waited += seconds
            server.patience = max(server.patience, PATIENCE * tokens / self._rate(server))
        elif server.waited:
            server.idle += seconds
            if server.idle >= _FORGOTTEN_SECONDS:
                self._begin_anew(server)
        if server.health is Health.GOOD and not server.waited:
            return False
        self._judge(server, work, now)
        if not work or server.waited < QUIET_SECONDS or now - server.hastened_at < QUIET_SECONDS:
            return False
        server.hastened_at = now
        return True

    def _judge(self, server: Server, work: bool, now: float) -> None:
        stalled = work and self._stalled(server)
        if server.health is Health.GOOD and stalled:
            self._set(server, Health.SUSPECT, Cause.NO_PROGRESS, now)
        elif server.health is Health.TRIAL and stalled:
            self._out(server, Cause.NO_PROGRESS, now)
        elif server.health is Health.SUSPECT and now - server.since >= SUSPECT_SECONDS:
            if server.cause is Cause.NO_PROGRESS:
                self._out(server, Cause.NO_PROGRESS, now)
        elif server.health is Health.OUT and now - server.since >= self._out_seconds(server):
            self._try(server, Cause.RECOVERING, now)

    def _stalled(self, server: Server) -> bool:
        # Only a page that counts can tell an engine that stands still from long answers.
        if server.counted is None or server.waited < max(LEAST_SECONDS, server.patience):
            return False
        return server.unread or server.pages >= PAGES

    def _begin_anew(self, server: Server) -> None:
        """Nothing that went before is held against it."""
        server.waited = server.patience = server.idle = 0.0
        server.pages = server.refused = 0
        server.unread = False

    def _rate(self, server: Server) -> float:
        """Prompt tokens a second: the slowest that this server, else one of its pool, has shown lately."""
        return min(server.rates or self._rates, default=SLOWEST_RATE)

    def _out_seconds(self, server: Server) -> float:
        return min(_LONGEST_OUT, _OUT_SECONDS.get(server.cause, 0.0) * 2.0 ** min(16, max(0, server.outs - 1)))

    # ---- transitions

    def _fail(self, server: Server, cause: Cause, now: float) -> None:
        """Out by evidence of failures, if that leaves half of the pool."""
        if server.health is Health.OUT:
            return
        out = sum(s.health is Health.OUT and s.cause in _BY_FAILURES for s in self._servers.values())
        if out + 1 <= len(self._servers) // 2:
            self._out(server, cause, now)
        elif server.health is not Health.SUSPECT:
            self._set(server, Health.SUSPECT, cause, now)

    def _out(self, server: Server, cause: Cause, now: float) -> None:
        server.outs += 1
        server.answers_badly = cause in _BY_ANSWERS
        self._set(server, Health.OUT, cause, now)

    def _try(self, server: Server, cause: Cause, now: float) -> None:
        server.allowed, server.rose_at = 1, now
        self._begin_anew(server)
        self._set(server, Health.TRIAL, cause, now)

    def _rise(self, server: Server, now: float) -> None:
        if now - server.rose_at < _RISE_SECONDS:
            return
        server.allowed, server.rose_at = server.allowed * 2, now
        if server.allowed > TRIAL_REQUESTS:
            server.outs = 0
            self._set(server, Health.GOOD, Cause.NONE, now)
        else:
            self._publish(server)

    def _set(self, server: Server, health: Health, cause: Cause, now: float) -> None:
        before = server.health
        server.health, server.cause, server.since = health, cause, now
        self._publish(server)
        self._on_change(server, before)

    def _publish(self, server: Server) -> None:
        """A new verdict, for picks to go by: those before keep theirs."""
        verdict = dict(self.verdict)
        if server.health is Health.GOOD:
            verdict.pop(server.key, None)
        else:
            standing = {Health.SUSPECT: SUSPECT, Health.OUT: OUT}
            verdict[server.key] = standing.get(server.health, server.allowed)
        self.verdict = verdict
