"""Requests that kill servers: one must not walk through a pool, from server to server. Pure; times are seconds of one
clock.

A server died where its answers were reset and nobody listened there afterwards. The request that it had taken up last,
of those that it had not answered, is the suspect: one that was so at two servers is refused for a minute. Whatever is
answered well is no suspect. A server that leaves the pool has not died: it was taken away."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import xxhash

from headrace.core import Refusal, RefusalReason, Request
from headrace.datalayer.ledger import InFlight
from headrace.datalayer.pool_state import PoolObserver
from headrace.datalayer.store import EndpointRecord

logger = logging.getLogger(__name__)

REMEMBERED_SECONDS = 60.0
SERVERS = 2
# All that a server had was reset at once, but is told of one by one.
BURST_SECONDS = 0.3
# Its port is asked within this time.
CONFIRM_SECONDS = 2.0
_MOST_SUSPECTS = 256
_FAILED = (500, 502, 503, 504)

_REFUSAL = Refusal(
    503,
    RefusalReason.KILLS_SERVERS,
    "this request is not sent on for a minute: two model servers ended while they worked on it",
)


@dataclass(slots=True)
class _Death:
    """What may have been a server's end: when answers were reset, and the newest request of those."""

    at: float
    digest: int
    started_at: float
    # Whether an answer was seen to fail. A stream without its end looks like one whose client has left.
    failed: bool
    confirmed: bool = False


@dataclass(eq=False)
class Killers(PoolObserver):
    """The suspects of one pool, as this replica sees them. `clock` gives seconds that only go forward."""

    clock: Callable[[], float]
    # By server: what it may have died of.
    _deaths: dict[str, _Death] = field(default_factory=dict)
    # By the request's digest: the servers that died of it, and when. Oldest suspect first.
    _suspects: dict[int, dict[str, float]] = field(default_factory=dict)
    _digests: dict[InFlight, int] = field(default_factory=dict)

    def refusal(self, request: Request) -> Refusal | None:
        """The answer to a request that has ended two servers; None for any other."""
        if not self._suspects and not self._deaths:
            return None
        digest = _digest(request)
        if not digest:
            return None
        now = self.clock()
        servers = {key for key, at in self._suspects.get(digest, {}).items() if now - at < REMEMBERED_SECONDS}
        # What is not confirmed yet counts too: asked again at once, it would end the next server before it is.
        servers |= {
            key
            for key, death in self._deaths.items()
            if death.digest == digest and death.failed and not death.confirmed and not _is_old(death, now)
        }
        return _REFUSAL if len(servers) >= SERVERS else None

    # ---- a pool's observer

    def started(self, entry: InFlight, request: Request) -> None:
        digest = _digest(request)
        if digest:
            self._digests[entry] = digest

    def answered(self, entry: InFlight, status: int, *, elsewhere: bool = False) -> None:
        # A server takes up a stream after it has sent its headers.
        if 200 <= status < 300 and entry.streams:
            return
        digest = self._digests.pop(entry, 0)
        if not digest:
            return
        if status in _FAILED:
            self._ended(entry, digest, failed=True)
        elif 200 <= status < 300:
            self._acquit(digest)

    def first_token(self, entry: InFlight, seconds: float) -> None:
        digest = self._digests.pop(entry, 0)
        if digest:
            self._acquit(digest)

    def finished(self, entry: InFlight, seconds: float) -> None:
        digest = self._digests.pop(entry, 0)
        if digest:
            self._ended(entry, digest, failed=False)

    def unobserved(self, entry: InFlight) -> None:
        self._digests.pop(entry, None)

    def scraped(self, record: EndpointRecord) -> None:
        # It lives, or lives again.
        death = self._deaths.get(record.endpoint.key)
        if death is not None and record.scraped_at is not None and record.scraped_at > death.at:
            del self._deaths[record.endpoint.key]

    def scrape_failed(self, record: EndpointRecord, refused: bool) -> None:
        death = self._deaths.get(record.endpoint.key)
        if refused and death is not None and not death.confirmed and not _is_old(death, self.clock()):
            death.confirmed = True
            self._suspect(record.endpoint.key, death)

    # ---- keeps something for each endpoint

    def add(self, key: str) -> None:
        """An endpoint joins the pool."""

    def remove(self, key: str) -> None:
        """An endpoint leaves it: what ends there now was taken away."""
        self._deaths.pop(key, None)

    def expire(self) -> None:
        """Drop what is too old. Call it about once a second."""
        now = self.clock()
        # Another replica accounts for some by now, and nobody tells their end here.
        for entry in [entry for entry in self._digests if entry.over]:
            del self._digests[entry]
        for key in [key for key, death in self._deaths.items() if not death.confirmed and _is_old(death, now)]:
            del self._deaths[key]
        for digest in [d for d, at in self._suspects.items() if now - max(at.values()) >= REMEMBERED_SECONDS]:
            del self._suspects[digest]

    # ----

    def _ended(self, entry: InFlight, digest: int, *, failed: bool) -> None:
        """A request is over without a good answer, for all that is known."""
        key, now = entry.endpoint, self.clock()
        if entry.record is None:
            return
        death = self._deaths.get(key)
        if death is not None and now - death.at < BURST_SECONDS:
            if entry.started_at > death.started_at:
                if death.confirmed:
                    self._withdraw(key, death.digest)
                death.digest, death.started_at = digest, entry.started_at
                if death.confirmed:
                    self._suspect(key, death)
            death.failed = death.failed or failed
        elif death is None or not death.confirmed:
            self._deaths[key] = _Death(now, digest, entry.started_at, failed)

    def _suspect(self, key: str, death: _Death) -> None:
        servers = self._suspects.pop(death.digest, {})
        for other in [other for other, at in servers.items() if death.at - at >= REMEMBERED_SECONDS]:
            del servers[other]
        servers[key] = death.at
        self._suspects[death.digest] = servers
        if len(self._suspects) > _MOST_SUSPECTS:
            del self._suspects[next(iter(self._suspects))]
        if len(servers) >= SERVERS:
            logger.error(
                "a request ended %d servers, and is refused for a minute: %s",
                len(servers),
                ", ".join(servers),
                extra={"request_digest": f"{death.digest:016x}"},
            )
        else:
            logger.warning("endpoint %s died; the request it took last is watched", key)

    def _withdraw(self, key: str, digest: int) -> None:
        servers = self._suspects.get(digest, {})
        servers.pop(key, None)
        if not servers:
            self._suspects.pop(digest, None)

    def _acquit(self, digest: int) -> None:
        if self._suspects and len(self._suspects.get(digest, ())) < SERVERS:
            self._suspects.pop(digest, None)


def _is_old(death: _Death, now: float) -> bool:
    """Whether it is too late to be told that nobody listens there."""
    return now - death.at >= CONFIRM_SECONDS


def _digest(request: Request) -> int:
    """Of what a server works on; 0 where that is not known."""
    return xxhash.xxh3_64_intdigest(request.prompt) if request.prompt else 0
