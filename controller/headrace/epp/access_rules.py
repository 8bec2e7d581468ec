"""Who may read metrics and debug pages: the seam, and the two answers that need nobody's word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Denied:
    """Why a page is not shown; `message` is for the one who asked."""

    status: int
    message: str


class Access(Protocol):
    """Decides on one request for a page."""

    async def check(self, authorization: str, path: str) -> Denied | None:
        """None lets in. `authorization` is the request's header, "" without one."""


class Open:
    """Everybody is let in."""

    async def check(self, authorization: str, path: str) -> Denied | None:
        """None."""
        return None


class Closed:
    """Nobody is let in, yet."""

    async def check(self, authorization: str, path: str) -> Denied | None:
        """503."""
        return Denied(503, "who may read this cannot be asked yet: the API server is not connected")
