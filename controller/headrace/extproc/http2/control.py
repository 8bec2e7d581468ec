"""The frames that concern a connection as a whole: SETTINGS, PING, GOAWAY, and its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headrace.extproc.http2 import frames, limits
from headrace.extproc.http2.frames import (
    ACK,
    ENHANCE_YOUR_CALM,
    FRAME_SIZE_ERROR,
    MAX_STREAM_ID,
    NO_ERROR,
    PING,
    PROTOCOL_ERROR,
    SETTINGS,
    ConnectionFault,
)
from headrace.extproc.http2.limits import Allowance, Limits
from headrace.extproc.http2.sending import Sender
from headrace.extproc.http2.settings import apply_settings

_DRAIN_PING = b"draining"
_PING_BYTES = 8
_GOAWAY_BYTES = 8
_SMALL_INCREMENT = 1024


class Control:
    """Talks with the peer about the connection. `on_settings_taken`: the peer has acknowledged ours. `on_announced`: it
    knows that we drain, and what it begins from now on need not be served."""

    def __init__(
        self,
        sender: Sender[Any],
        allowance: Allowance,
        bounds: Limits,
        *,
        on_settings_taken: Callable[[], None],
        on_announced: Callable[[], None],
        on_windows_grown: Callable[[], None],
    ) -> None:
        self._sender = sender
        self._allowance = allowance
        self._on_settings_taken = on_settings_taken
        self._on_announced = on_announced
        self._on_windows_grown = on_windows_grown
        self.greeted = False
        sender.output += (
            frames.settings(
                (frames.HEADER_TABLE_SIZE, 0),
                (frames.MAX_CONCURRENT_STREAMS, bounds.max_streams),
                (frames.INITIAL_WINDOW_SIZE, bounds.stream_window),
                (frames.MAX_HEADER_LIST_SIZE, bounds.max_header_bytes),
            ),
            frames.window_update(0, bounds.connection_window - frames.DEFAULT_WINDOW),
        )

    def spend(self, points: float) -> None:
        """The peer did something for nothing. Raises ConnectionFault where that was too often."""
        if not self._allowance.spend(points):
            raise ConnectionFault(ENHANCE_YOUR_CALM, "too many frames that ask for nothing")

    def spend_on_window(self, increment: int) -> None:
        """The peer allowed us more: so little that it asks for many small frames, or what it was sent."""
        if increment < _SMALL_INCREMENT:
            self.spend(limits.SMALL_FRAME)

    def expect_settings(self, kind: int, flags: int) -> None:
        """The first frame of a connection. Raises ConnectionFault."""
        if kind != SETTINGS or flags & ACK:
            raise ConnectionFault(PROTOCOL_ERROR, "the first frame is not SETTINGS")

    def drain(self) -> None:
        """Announce the end: streams that are on their way are served, until the peer has answered."""
        self._sender.output += (
            frames.goaway(MAX_STREAM_ID, NO_ERROR),
            frames.frame(PING, 0, 0, _DRAIN_PING),
        )

    def on_settings(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        """The peer's settings, or its answer to ours."""
        if stream_id:
            raise ConnectionFault(PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & ACK:
            if start != end:
                raise ConnectionFault(FRAME_SIZE_ERROR, "an acknowledgement with settings")
            self.spend(limits.SMALL_FRAME)
            self._on_settings_taken()
            return
        self.spend(limits.SETTINGS_FRAME)
        before = self._sender.initial_window
        apply_settings(data[start:end], self._sender)
        self.greeted = True
        self._sender.output.append(frames.frame(SETTINGS, ACK, 0))
        if self._sender.initial_window > before:
            self._on_windows_grown()

    def on_push_promise(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        """What only servers send."""
        raise ConnectionFault(PROTOCOL_ERROR, "PUSH_PROMISE of a client")

    def on_ping(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        """A probe, or the answer to ours."""
        if stream_id:
            raise ConnectionFault(PROTOCOL_ERROR, "PING on a stream")
        if end - start != _PING_BYTES:
            raise ConnectionFault(FRAME_SIZE_ERROR, "PING of a length that is not 8")
        self.spend(limits.PING_FRAME)
        if not flags & ACK:
            self._sender.output.append(frames.frame(PING, ACK, 0, data[start:end]))
        elif data[start:end] == _DRAIN_PING:
            self._on_announced()

    def on_goaway(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        """The peer begins no more streams, and closes the connection when it needs it no more."""
        if stream_id:
            raise ConnectionFault(PROTOCOL_ERROR, "GOAWAY on a stream")
        if end - start < _GOAWAY_BYTES:
            raise ConnectionFault(FRAME_SIZE_ERROR, "GOAWAY too short")
        self.spend(limits.SMALL_FRAME)
