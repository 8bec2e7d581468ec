"""The server's side of an HTTP/2 connection that speaks gRPC: bytes in, calls of the application, bytes out.

No I/O and no clock. `receive` takes what came from the peer, and the time. Frames are handled as they come: what the
application answers at once is among the output when `receive` returns.

    connection = Connection(application, limits, budget, now=now, on_output=wake)
    write(connection.take_output())
    while not connection.closed:
        connection.receive(read(), now)
        write(connection.take_output())

Source: RFC 9113."""

from __future__ import annotations

from collections.abc import Callable

from headrace.extproc.http2 import frames, grpc, limits
from headrace.extproc.http2.blocks import BlockReader
from headrace.extproc.http2.budget import BufferBudget
from headrace.extproc.http2.control import Control
from headrace.extproc.http2.frames import (
    END_STREAM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    HEADER,
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    MAX_STREAM_ID,
    MAX_WINDOW,
    NUMBER,
    PADDED,
    PREFACE,
    PROTOCOL_ERROR,
    STREAM_CLOSED,
    ConnectionFault,
    StreamFault,
)
from headrace.extproc.http2.headers import HeaderReader
from headrace.extproc.http2.limits import Allowance, Limits
from headrace.extproc.http2.sending import Sender
from headrace.extproc.http2.stream import Application, Stream
from headrace.extproc.http2.streams import Streams

_SMALL_BYTES = 64
_PRIORITY_BYTES = 5


class Connection:
    """One connection. `on_output` is called when there is output outside of this class's own methods.

    `closed`: nothing more is to be received, and the transport to be closed when the output is written. `fault` says
    why, where the peer broke the protocol. `more`: frames were left for later, call `receive` again with nothing."""

    def __init__(
        self,
        application: Application,
        bounds: Limits,
        budget: BufferBudget,
        *,
        now: float,
        on_output: Callable[[], None] = lambda: None,
    ) -> None:
        self.closed = False
        self.fault: ConnectionFault | None = None
        self.more = False
        self._limits = bounds
        self._now = now
        self._sender = Sender[Stream]()
        self._allowance = Allowance(now)
        self._blocks = BlockReader(bounds.max_header_bytes)
        headers = HeaderReader(bounds.max_header_bytes)
        control = self._control = Control(
            self._sender,
            self._allowance,
            bounds,
            on_settings_taken=headers.acknowledge,
            on_announced=self.refuse_more,
            on_windows_grown=lambda: self._streams.windows_grown(),
        )
        self._streams = Streams(application, bounds, budget, self._sender, control, headers, on_output)
        self._buffer = b""
        self._preface_seen = False
        self._uncredited = 0
        # Frames so far, now and at the last sweep.
        self._count, self._swept_count = 0, -1
        self._handlers = (
            self._on_data,
            self._on_headers,
            self._on_priority,
            self._on_rst_stream,
            control.on_settings,
            control.on_push_promise,
            control.on_ping,
            control.on_goaway,
            self._on_window_update,
            self._on_continuation,
        )

    def receive(self, data: bytes, now: float) -> None:
        """Bytes from the peer, cut anywhere. After so many frames the rest is left for later: see `more`."""
        if self.closed:
            return
        self._now = now
        self._allowance.refill(now)
        if self._buffer:
            data = self._buffer + data
        try:
            if not self._preface_seen and _starts_with_preface(data):
                self._preface_seen = True
                data = data[len(PREFACE) :]
            self._buffer = self._handle(data) if self._preface_seen else data
        except ConnectionFault as fault:
            self.fail(fault)
            return
        if self._uncredited * 2 >= self._limits.connection_window:
            self._sender.output.append(frames.window_update(0, self._uncredited))
            self._uncredited = 0

    def take_output(self) -> bytes:
        """What is to be written now; look at `closed` afterwards."""
        if self._streams.refusing_more and not self._streams.open:
            self.closed = True
        output = self._sender.output
        joined = b"".join(output)
        output.clear()
        return joined

    @property
    def stream_count(self) -> int:
        """The streams that are open."""
        return len(self._streams.open)

    def drain(self) -> None:
        """Tell the peer to begin no more streams; `closed` when the last one is over."""
        if not self._streams.refusing_more:
            self._control.drain()

    def refuse_more(self) -> None:
        """Take no more streams. Follows from `drain` when the peer has answered; call it where it does not."""
        if not self._streams.refusing_more:
            self._streams.refusing_more = True
            self._sender.output.append(frames.goaway(self._streams.last_id, frames.NO_ERROR))

    def fail(self, fault: ConnectionFault) -> None:
        """End the connection for what the peer did."""
        self.fault = fault
        self.close(fault.code, str(fault))

    def close(self, code: int = frames.NO_ERROR, reason: str = "") -> None:
        """End the connection and its calls at once."""
        if not self.closed:
            self._sender.output.append(frames.goaway(self._streams.last_id, code, reason))
        self.lost()

    def lost(self) -> None:
        """There is no peer any more: every call ends."""
        self.closed = True
        self.more = False
        self._buffer = b""
        self._streams.close()

    @property
    def next_deadline(self) -> float | None:
        """When to call `expire`."""
        return self._streams.next_deadline

    def expire(self, now: float) -> None:
        """End the calls whose time is over."""
        self._streams.expire(now)

    def sweep(self) -> None:
        """Close what has not moved since the last sweep: half a preface, frame or header block, and streams that never
        said a thing. Call it every ten seconds or so."""
        begun = not self._control.greeted or self._blocks.open or bool(self._buffer)
        if begun and not self.more and self._count == self._swept_count:
            self.fail(ConnectionFault(frames.ENHANCE_YOUR_CALM, "a frame is overdue"))
            return
        self._swept_count = self._count
        self._streams.sweep()

    # ---- frames ----

    def _handle(self, data: bytes) -> bytes:
        """Handle whole frames, up to the limit; gives what is left. Raises ConnectionFault."""
        at, size = 0, len(data)
        left = self._limits.frames_at_once
        handlers, control, blocks = self._handlers, self._control, self._blocks
        self.more = False
        while size - at >= HEADER_BYTES:
            high, low, kind, flags, stream_id = HEADER.unpack_from(data, at)
            length = high << 16 | low
            if length > MAX_FRAME_BYTES:
                raise ConnectionFault(FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            end = at + HEADER_BYTES + length
            if end > size:
                break
            if not left:
                self.more = True
                break
            left -= 1
            if blocks.open:
                blocks.expect(kind)
            elif not control.greeted:
                control.expect_settings(kind, flags)
            stream_id &= MAX_STREAM_ID
            try:
                if kind < len(handlers):
                    handlers[kind](flags, stream_id, data, at + HEADER_BYTES, end)
                else:
                    control.spend(limits.SMALL_FRAME)
            except StreamFault as fault:
                self._streams.reset(stream_id, fault.code)
                control.spend(limits.BAD_STREAM)
            at = end
        self._count += self._limits.frames_at_once - left
        return data[at:]

    def _on_data(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        length = end - start
        self._uncredited += length
        if self._uncredited > self._limits.connection_window:
            raise ConnectionFault(FLOW_CONTROL_ERROR, "more than the connection's window")
        if flags & PADDED:
            start, end = frames.padded(flags, data, start, end)
        stream = self._streams.open.get(stream_id)
        if stream is None:
            if not self._streams.ended_early(stream_id):
                raise StreamFault(STREAM_CLOSED, "DATA on a stream that is over")
            if length < _SMALL_BYTES:
                self._control.spend(limits.SMALL_FRAME)
            return
        if not stream.remote_open:
            raise StreamFault(STREAM_CLOSED, "DATA after the end of the stream")
        if flags & END_STREAM:
            stream.remote_open = False
        try:
            if stream.data(data, start, end, length):
                self._allowance.points += limits.MESSAGE_EARNS
            elif end - start < _SMALL_BYTES and stream.remote_open:
                self._control.spend(limits.SMALL_FRAME if start < end else limits.EMPTY_FRAME)
        except grpc.RpcFault as fault:
            self._streams.fail(stream, fault)
        if flags & END_STREAM and not stream.finished:
            self._streams.half_closed(stream)

    def _on_headers(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        if not stream_id:
            raise ConnectionFault(PROTOCOL_ERROR, "HEADERS on stream 0")
        block = self._blocks.headers(flags, stream_id, data, start, end)
        if block is not None:
            self._streams.block(block, self._now)

    def _on_continuation(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        block = self._blocks.continuation(flags, stream_id, data, start, end)
        if block is not None:
            self._streams.block(block, self._now)

    def _on_priority(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        if not stream_id:
            raise ConnectionFault(PROTOCOL_ERROR, "PRIORITY on stream 0")
        if end - start != _PRIORITY_BYTES:
            raise ConnectionFault(FRAME_SIZE_ERROR, "PRIORITY of a length that is not 5")
        if NUMBER.unpack_from(data, start)[0] & MAX_STREAM_ID == stream_id:
            raise ConnectionFault(PROTOCOL_ERROR, "a stream that depends on itself")
        self._control.spend(limits.SMALL_FRAME)

    def _on_rst_stream(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        if end - start != NUMBER.size:
            raise ConnectionFault(FRAME_SIZE_ERROR, "RST_STREAM of a length that is not 4")
        self._streams.reset_by_peer(stream_id)

    def _on_window_update(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        if end - start != NUMBER.size:
            raise ConnectionFault(FRAME_SIZE_ERROR, "WINDOW_UPDATE of a length that is not 4")
        increment = NUMBER.unpack_from(data, start)[0] & MAX_WINDOW
        sender = self._sender
        if not stream_id:
            sender.window += increment
            if not increment or sender.window > MAX_WINDOW:
                raise ConnectionFault(FLOW_CONTROL_ERROR if increment else PROTOCOL_ERROR, "a window of that size")
            self._control.spend_on_window(increment)
            self._streams.sent(sender.allowed_all())
            return
        stream = self._streams.open.get(stream_id)
        if stream is None:
            self._streams.ended_early(stream_id)
            self._control.spend_on_window(increment)
            return
        stream.used -= increment
        if not increment or sender.initial_window - stream.used > MAX_WINDOW:
            raise StreamFault(FLOW_CONTROL_ERROR if increment else PROTOCOL_ERROR, "a window of that size")
        self._control.spend_on_window(increment)
        if stream.unsent is not None:
            self._streams.sent(sender.allowed(stream))


def _starts_with_preface(data: bytes) -> bool:
    """Whether the preface is whole. Raises ConnectionFault for what is none."""
    if not PREFACE.startswith(data[: len(PREFACE)]):
        raise ConnectionFault(PROTOCOL_ERROR, "not an HTTP/2 preface")
    return len(data) >= len(PREFACE)
