"""Whether failed answers speak against a server, or against the requests: a pure account of the last seconds.

A failure counts only where another server answered the same flow well. Three flows have to say so; where fewer are seen
at all, ten failures of prompts with different first blocks. None counts while most of the other servers fail alike."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import NamedTuple

WINDOW_SECONDS = 10.0
FLOWS = 3
PROMPTS = 10
# Names that clients choose, and failures kept of one server.
_MOST_FLOWS = 1024
_MOST_FAILURES = 64
# Of a flow, the servers that answered it last.
_MOST_SERVERS = 4


class Origin(NamedTuple):
    """Where a request is from, and what its prompt begins with."""

    flow: str = ""
    first_block: int = 0


class Failure(NamedTuple):
    """An endpoint failed to answer a request. `served`: the one that answered it well in its place, or ""."""

    endpoint: str
    origin: Origin
    served: str = ""


class _Failure(NamedTuple):
    at: float
    origin: Origin


class _Tally:
    """Answers of this window and the last one."""

    __slots__ = ("_bad", "_good", "_last_bad", "_last_good", "_window")

    def __init__(self) -> None:
        self._window = -1
        self._good = self._bad = self._last_good = self._last_bad = 0

    def add(self, good: bool, now: float) -> None:
        self._turn(now)
        self._good += good
        self._bad += not good

    def failed_share(self, now: float) -> float | None:
        """The share of bad answers in the last one to two windows; None without any answer."""
        self._turn(now)
        good, bad = self._good + self._last_good, self._bad + self._last_bad
        return bad / (good + bad) if good or bad else None

    def _turn(self, now: float) -> None:
        window = int(now // WINDOW_SECONDS)
        if window != self._window:
            follows = window == self._window + 1
            self._last_good, self._last_bad = (self._good, self._bad) if follows else (0, 0)
            self._good = self._bad = 0
            self._window = window


class Evidence:
    """The answers of one pool's servers. Times are seconds of one clock."""

    def __init__(self) -> None:
        self._failures: dict[str, deque[_Failure]] = {}
        self._tallies: dict[str, _Tally] = {}
        # By flow, newest last: when each of the servers that answered it last did so, and when it was last seen.
        self._answered: OrderedDict[str, dict[str, float]] = OrderedDict()
        self._seen: dict[str, float] = {}

    def failed(self, server: str, origin: Origin, now: float) -> None:
        """A server failed to answer."""
        self._see(origin.flow, now)
        self._failures.setdefault(server, deque(maxlen=_MOST_FAILURES)).append(_Failure(now, origin))
        self._count(server, False, now)

    def answered(self, server: str, origin: Origin, now: float) -> None:
        """A server answered well."""
        servers = self._see(origin.flow, now)
        servers.pop(server, None)
        servers[server] = now
        if len(servers) > _MOST_SERVERS:
            del servers[next(iter(servers))]
        self._count(server, True, now)

    def verdicts(self, now: float) -> dict[str, bool]:
        """Of each server that failed lately, whether its failures are its own."""
        accused = [server for server in list(self._failures) if self._recent(server, now)]
        shares = self._shares(now) if accused else []
        return {server: self._convincing(server, now) and not self._alike(server, shares, now) for server in accused}

    def speaks_against(self, server: str, now: float) -> bool:
        """The same of one server that has just failed."""
        return (
            self._recent(server, now)
            and self._convincing(server, now)
            and not self._alike(server, self._shares(now), now)
        )

    def _shares(self, now: float) -> list[float]:
        """The shares of failures of all servers that gave answers, sorted."""
        shares = (tally.failed_share(now) for tally in self._tallies.values())
        return sorted(share for share in shares if share is not None)

    def _alike(self, server: str, shares: Sequence[float], now: float) -> bool:
        """Whether most of the others failed at least half as often."""
        share = self._tallies[server].failed_share(now) or 0.0
        return (len(shares) - bisect_left(shares, share / 2) - 1) * 2 > len(shares) - 1

    def _recent(self, server: str, now: float) -> bool:
        """Whether it failed within the window."""
        failures = self._failures[server]
        while failures and failures[0].at < now - WINDOW_SECONDS:
            failures.popleft()
        if not failures:
            del self._failures[server]
        return bool(failures)

    def _convincing(self, server: str, now: float) -> bool:
        failures = self._failures[server]
        counted = [failure.origin for failure in failures if self._answered_elsewhere(failure.origin.flow, server, now)]
        if len({origin.flow for origin in counted}) >= FLOWS:
            return True
        return len({origin.first_block for origin in counted}) >= PROMPTS and self._flows(now) < FLOWS

    def forget(self, server: str) -> None:
        """A server left the pool, or starts afresh."""
        self._failures.pop(server, None)
        self._tallies.pop(server, None)

    def _see(self, flow: str, now: float) -> dict[str, float]:
        servers = self._answered.setdefault(flow, {})
        self._answered.move_to_end(flow)
        self._seen[flow] = now
        if len(self._answered) > _MOST_FLOWS:
            oldest, _ = self._answered.popitem(last=False)
            del self._seen[oldest]
        return servers

    def _count(self, server: str, good: bool, now: float) -> None:
        self._tallies.setdefault(server, _Tally()).add(good, now)

    def _answered_elsewhere(self, flow: str, server: str, now: float) -> bool:
        servers = self._answered.get(flow, {})
        return any(at >= now - WINDOW_SECONDS for other, at in servers.items() if other != server)

    def _flows(self, now: float) -> int:
        """How many flows were seen lately, as far as it matters."""
        count = 0
        for flow in reversed(self._answered):
            if self._seen[flow] < now - WINDOW_SECONDS or count >= FLOWS:
                break
            count += 1
        return count
