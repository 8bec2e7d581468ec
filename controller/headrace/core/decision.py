"""What became of a request: where it goes, or why it goes nowhere."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class Decision(Struct, frozen=True):
    """Where a request goes.

    `endpoints` are keys (`ip:port`), best first: the rest is the fallback list. Empty means "no opinion": the gateway
    chooses (a pick that failed open). `model` is the name to put into the body, None to leave it as it came.
    `response_headers` are for the client, where the response passes through the picking stream."""

    endpoints: tuple[str, ...]
    model: str | None = None
    response_headers: tuple[tuple[str, str], ...] = ()

    @property
    def destination(self) -> str:
        """The list as header and metadata carry it, `ip:port[,ip:port...]`."""
        return ",".join(self.endpoints)


class RefusalReason(StrEnum):
    """Why a request was not served; the value of the reason header."""

    BAD_REQUEST = "bad-request"
    BODY_TOO_LARGE = "body-too-large"
    BODY_BUDGET = "rejected-body-memory"
    BODY_TIMEOUT = "body-timeout"
    NO_ENDPOINTS = "rejected-no-endpoints"
    SATURATED = "rejected-saturated"
    TTL_EXPIRED = "rejected-ttl-expired"
    SHUTTING_DOWN = "rejected-shutting-down"
    EVICTED = "evicted"
    EVICTED_PRIORITY = "evicted-priority"
    PICK_DEADLINE = "pick-deadline"
    KILLS_SERVERS = "kills-servers"
    INTERNAL = "internal"


class Refusal(Struct, frozen=True):
    """A request that is answered with an error instead of being sent on.

    `message` is shown to the client: no address, no name of a Pod."""

    status: int
    reason: RefusalReason
    message: str
    retry_after_seconds: int | None = None
