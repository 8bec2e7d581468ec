"""What one peer may ask for. The peer is a gateway: one connection carries the requests of many users, so what counts
against it is only what costs its sender nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one connection. A gateway opens another connection at `max_streams`."""

    max_streams: int = 16_384
    # What a peer may send on a stream, more than 64 KiB, and on all together, before it is told that more was taken.
    stream_window: int = 256 << 10
    connection_window: int = 16 << 20
    # A header block, encoded and decoded: gRPC's own limit for metadata.
    max_header_bytes: int = 16_384
    max_message_bytes: int = 65 << 20
    # Answers that wait for the peer to take them, on one stream, before its next message is looked at.
    max_unsent_bytes: int = 256 << 10
    # Frames handled in one go: then other connections have their turn.
    frames_at_once: int = 128


# The cost of what a peer may do for nothing, in points.
FREE_RESET = 4
BAD_STREAM = 4
SETTINGS_FRAME = 10
PING_FRAME = 2
EMPTY_FRAME = 4
SMALL_FRAME = 1

_CAPACITY = 10_000.0
_POINTS_A_SECOND = 500.0
# What a message of a stream gives back: acknowledgements and probes come with it.
MESSAGE_EARNS = 4


class Allowance:
    """Points for frames that cost their sender nothing: refilled by time, and by messages that were sent."""

    __slots__ = ("_at", "points")

    def __init__(self, now: float) -> None:
        self.points = _CAPACITY
        self._at = now

    def spend(self, points: float) -> bool:
        """Take so many. False where they are not there."""
        self.points -= points
        return self.points >= 0

    def refill(self, now: float) -> None:
        """Time has passed."""
        self.points = min(_CAPACITY, self.points + (now - self._at) * _POINTS_A_SECOND)
        self._at = now
