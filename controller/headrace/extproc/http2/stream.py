"""One stream of a connection, which is one call of gRPC: its messages in, its messages and status out."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from headrace.extproc.http2 import grpc
from headrace.extproc.http2.budget import BufferBudget
from headrace.extproc.http2.frames import FLOW_CONTROL_ERROR, PROTOCOL_ERROR, StreamFault, window_update
from headrace.extproc.http2.headers import RequestHeaders
from headrace.extproc.http2.limits import Limits
from headrace.extproc.http2.sending import Outlet, Sender
from headrace.protocol import http

# Streams that were sent less are not in the budget: this much every stream has by the protocol's own default.
_UNCOUNTED_BYTES = 64 << 10


class Call(Protocol):
    """The application's side of a stream. No method may raise, or wait."""

    def message(self, message: bytes) -> None:
        """The next message. Answer it with `send` and `finish`, now or later; `pause` where none may follow now."""

    def half_closed(self) -> None:
        """No message follows."""

    def sent(self) -> None:
        """What could not be sent at once is sent. Not called where all went at once."""

    def ended(self) -> None:
        """The stream is over, in whatever way. The last call, and there is just one."""


class Application(Protocol):
    """What a connection serves."""

    def open(self, headers: RequestHeaders, stream: Stream) -> Call | None:
        """A call has begun. None where there is no such method."""


class Owner(Protocol):
    """What a stream needs of its connection."""

    @property
    def sender(self) -> Sender[Stream]: ...

    @property
    def limits(self) -> Limits: ...

    @property
    def budget(self) -> BufferBudget: ...

    def over(self, stream: Stream) -> None:
        """The stream's last frame is among the output."""

    def flush(self) -> None:
        """There is output, outside of what the connection was told."""


class Stream(Outlet):
    """`send`, `finish`, `pause`, `resume` and `flush` are for the application; the rest is the connection's."""

    __slots__ = (
        "_half_close_due",
        "_inbox",
        "_inbox_bytes",
        "_owner",
        "_paused",
        "_reader",
        "_received",
        "_sender",
        "_uncredited",
        "call",
        "content_length",
        "finished",
        "held",
        "idle_sweeps",
        "remote_open",
    )

    def __init__(self, stream_id: int, owner: Owner) -> None:
        super().__init__(stream_id)
        self._owner = owner
        self._sender = owner.sender
        self.call: Call | None = None
        self.remote_open = True
        # Whether the application has finished: what comes is not looked at.
        self.finished = False
        self.content_length = -1
        # How often the connection was swept without a message on this stream; -1 once there was one.
        self.idle_sweeps = 0
        self.held = 0
        self._paused = False
        self._half_close_due = False
        self._reader: grpc.MessageReader | None = None
        self._inbox: deque[bytes] | None = None
        self._inbox_bytes = 0
        self._received = 0
        # What was received, and the peer was not allowed to send again.
        self._uncredited = 0

    # For the application.

    def send(self, message: bytes) -> None:
        """Send a message. After the end of the stream nothing happens."""
        if not self.finished:
            self._sender.message(self, message)

    def finish(self, status: int = grpc.OK, text: str = "") -> None:
        """End the stream, once its messages are sent."""
        if not self.finished:
            self.finished = True
            if self._sender.finish(self, status, text):
                self._owner.over(self)

    def pause(self) -> None:
        """No further message until `resume`."""
        self._paused = True
        self._owner.budget.step_back(self)

    def resume(self) -> None:
        """The next message, please."""
        self._paused = False
        self.go_on()

    def flush(self) -> None:
        """Send what was not sent in answer to a call of this stream's `Call`."""
        self._owner.flush()

    @property
    def congested(self) -> bool:
        """Whether so much waits for the peer that nothing should be added, before `Call.sent`."""
        return self.unsent_bytes > self._owner.limits.max_unsent_bytes

    # For the connection.

    @property
    def _ready(self) -> bool:
        """Whether a message can be handled now: nothing waits for the application, nor too much for the peer."""
        return not self._paused and not self.congested

    def data(self, data: bytes, start: int, end: int, length: int) -> bool:
        """Content of a DATA frame, which was `length` with padding. Gives whether it completed a message.

        Raises StreamFault and RpcFault."""
        self._uncredited += length
        if self._uncredited > self._owner.limits.stream_window:
            raise StreamFault(FLOW_CONTROL_ERROR, "more than the stream's window")
        self._received += end - start
        call = self.call
        complete = False
        if call is None or self.finished or start == end:
            pass
        elif (
            # One whole message, as it nearly always is, and nothing in its way.
            data[start : start + grpc.PREFIX_BYTES] == grpc.PREFIX.pack(0, max(0, end - start - grpc.PREFIX_BYTES))
            and self._reader is None
            and not self._paused
            and self.unsent is None
        ):
            self.idle_sweeps = -1
            complete = True
            call.message(data[start + grpc.PREFIX_BYTES : end])
        else:
            complete = self._read(data, start, end)
        if self._received > _UNCOUNTED_BYTES:
            before = self.held
            self._account()
            if self.held > before and self._owner.budget.refuses(self):
                raise grpc.RpcFault(grpc.RESOURCE_EXHAUSTED, "too much is held for other streams")
            self._credit()
        return complete

    def end_of_data(self) -> None:
        """The peer has half-closed. Raises StreamFault and RpcFault."""
        if self.content_length not in (-1, self._received):
            raise StreamFault(PROTOCOL_ERROR, f"{http.CONTENT_LENGTH} is not the length of the content")
        if self._reader is not None and self._reader.held:
            raise grpc.RpcFault(grpc.INTERNAL, "the stream ends inside a message")
        if self._inbox or self._paused:
            self._half_close_due = True
        elif self.call is not None and not self.finished:
            self.call.half_closed()

    def go_on(self) -> None:
        """Handle what was held back, as far as that can be done now."""
        inbox = self._inbox
        while inbox and self._ready and not self.finished and self.call is not None:
            message = inbox.popleft()
            self._inbox_bytes -= len(message)
            self.call.message(message)
        if not inbox and self._half_close_due and not self._paused:
            self._half_close_due = False
            if self.call is not None and not self.finished:
                self.call.half_closed()
        if self._received > _UNCOUNTED_BYTES and self.call is not None:
            self._account()
            self._credit()

    def granted(self) -> None:
        """The budget allows more: a Claimant."""
        self._credit()
        self._owner.flush()

    def close(self) -> None:
        """The stream is over."""
        call, self.call = self.call, None
        self.finished = True
        self._sender.forget(self)
        self._inbox = self._reader = None
        if self.held:
            self._owner.budget.hold(self, 0)
        if call is not None:
            call.ended()

    def _read(self, data: bytes, start: int, end: int) -> bool:
        reader = self._reader
        if reader is None:
            reader = self._reader = grpc.MessageReader(self._owner.limits.max_message_bytes)
        messages = reader.feed(data, start, end)
        if messages:
            self.idle_sweeps = -1
        for message in messages:
            if self.call is None or self.finished:
                break
            if self._inbox or not self._ready:
                if self._inbox is None:
                    self._inbox = deque()
                self._inbox.append(message)
                self._inbox_bytes += len(message)
            else:
                self.call.message(message)
        return bool(messages)

    def _account(self) -> None:
        """Tell the budget what is held."""
        if self.call is None:
            return
        held = self._inbox_bytes + self.unsent_bytes
        if self._reader is not None:
            held += self._reader.held
        if held and self.remote_open:
            # It will hold what the peer was allowed to send besides.
            held += self._owner.limits.stream_window - self._uncredited
        if held != self.held:
            self._owner.budget.hold(self, held)

    def _credit(self) -> None:
        """Allow the peer to send again what was taken, when that is worth a frame."""
        uncredited = self._uncredited
        if (
            uncredited * 2 >= self._owner.limits.stream_window
            and self.remote_open
            and not self.finished
            and self._ready
            and self._owner.budget.grants(self)
        ):
            self._uncredited = 0
            self._sender.output.append(window_update(self.id, uncredited))
