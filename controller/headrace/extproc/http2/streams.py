"""The streams of a connection: which there are, which there were, and when their time is over."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from headrace.extproc.http2 import frames, grpc, limits
from headrace.extproc.http2.blocks import Block
from headrace.extproc.http2.budget import BufferBudget
from headrace.extproc.http2.control import Control
from headrace.extproc.http2.frames import PROTOCOL_ERROR, REFUSED_STREAM, STREAM_CLOSED, ConnectionFault, StreamFault
from headrace.extproc.http2.headers import HeaderReader
from headrace.extproc.http2.limits import Limits
from headrace.extproc.http2.sending import Sender
from headrace.extproc.http2.stream import Application, Stream

# Streams that we ended before the peer did: what is still on its way for them is no fault.
_ENDED_EARLY_KEPT = 16_384
_FEW_DEADLINES = 256


class Streams:
    """Opens streams by their header blocks, and ends them. An Owner of streams."""

    def __init__(
        self,
        application: Application,
        bounds: Limits,
        budget: BufferBudget,
        sender: Sender[Stream],
        control: Control,
        headers: HeaderReader,
        flush: Callable[[], None],
    ) -> None:
        self.limits = bounds
        self.budget = budget
        self.sender = sender
        self.flush = flush
        self.open: dict[int, Stream] = {}
        # The highest that the peer has begun.
        self.last_id = 0
        self.refusing_more = False
        self._application = application
        self._control = control
        self._headers = headers
        self._ended_early: dict[int, None] = {}
        # HTTP errors that are answered when the request has ended.
        self._refusals: dict[int, int] = {}
        self._deadlines: list[tuple[float, int]] = []

    def block(self, block: Block, now: float) -> None:
        """The headers, or the trailers, of a request. Raises ConnectionFault and StreamFault."""
        stream_id = block.stream_id
        stream = self.open.get(stream_id)
        if stream is not None:
            self._trailers(stream, block)
        elif stream_id > self.last_id:
            if not stream_id & 1:
                raise ConnectionFault(PROTOCOL_ERROR, "a client's streams have odd numbers")
            self.last_id = stream_id
            if self.refusing_more or len(self.open) >= self.limits.max_streams:
                self._headers.skip(block.content)
                raise StreamFault(REFUSED_STREAM, "no more streams")
            self._begin(block, now)
        else:
            self._headers.skip(block.content)
            if stream_id not in self._ended_early:
                raise ConnectionFault(STREAM_CLOSED, "HEADERS on a stream that is over")

    def ended_early(self, stream_id: int) -> bool:
        """Whether we ended this stream before the peer did. Raises ConnectionFault where there was no such stream."""
        if stream_id > self.last_id or not stream_id & 1:
            raise ConnectionFault(PROTOCOL_ERROR, "a frame on a stream that was not opened")
        return stream_id in self._ended_early

    def over(self, stream: Stream) -> None:
        """The stream's last frame is among the output."""
        if self.open.pop(stream.id, None) is not None:
            if stream.remote_open:
                self._end_early(stream.id, frames.NO_ERROR)
            self._close(stream)

    def reset(self, stream_id: int, code: int) -> None:
        """End a stream at once, if it is open, and have the peer end it."""
        stream = self.open.pop(stream_id, None)
        self._end_early(stream_id, code)
        if stream is not None:
            self._close(stream)

    def reset_by_peer(self, stream_id: int) -> None:
        """The peer ends a stream. Raises ConnectionFault."""
        stream = self.open.pop(stream_id, None)
        if stream is None:
            if self.ended_early(stream_id):
                del self._ended_early[stream_id]
            else:
                self._control.spend(limits.SMALL_FRAME)
            return
        self._close(stream)
        if stream.idle_sweeps >= 0:  # it never said a thing
            self._control.spend(limits.FREE_RESET)

    def fail(self, stream: Stream, fault: grpc.RpcFault) -> None:
        """End a call for what its peer did, or did not do in time. What was not sent yet is not sent."""
        if stream.id in self.open:
            self.sender.forget(stream)
            stream.finished = False
            stream.finish(fault.status, str(fault))

    def half_closed(self, stream: Stream) -> None:
        """The peer says no more on a stream. Raises StreamFault."""
        try:
            stream.end_of_data()
        except grpc.RpcFault as fault:
            self.fail(stream, fault)
            return
        refusal = self._refusals.get(stream.id)
        if refusal is not None:
            stream.finished = True
            if self.sender.refuse(stream, refusal):
                self.over(stream)

    def sent(self, moved: list[Stream]) -> None:
        """These streams could send some of what they had to: the end of some, and others can be heard again."""
        for stream in moved:
            if stream.unsent is not None:
                continue
            if stream.finished:
                self.over(stream)
            elif stream.call is not None:
                stream.call.sent()
                stream.go_on()

    def windows_grown(self) -> None:
        """The peer's settings allow each stream more."""
        for stream in list(self.open.values()):
            if stream.unsent is not None:
                self.sent(self.sender.allowed(stream))

    @property
    def next_deadline(self) -> float | None:
        """When the first call's time may be over."""
        return self._deadlines[0][0] if self._deadlines else None

    def expire(self, now: float) -> None:
        """End the calls whose time is over."""
        while self._deadlines and self._deadlines[0][0] <= now:
            stream = self.open.get(heapq.heappop(self._deadlines)[1])
            if stream is not None:
                self.fail(stream, grpc.RpcFault(grpc.DEADLINE_EXCEEDED, "the call's time is over"))

    def sweep(self) -> None:
        """End the streams that have not said a thing since the last sweep."""
        for stream in list(self.open.values()):
            if stream.idle_sweeps > 0:
                self.reset(stream.id, frames.CANCEL)
            elif stream.idle_sweeps == 0:
                stream.idle_sweeps = 1

    def close(self) -> None:
        """End all of them."""
        streams, self.open = self.open, {}
        for stream in streams.values():
            self._close(stream)

    def _begin(self, block: Block, now: float) -> None:
        headers = self._headers.request(block.content)
        if block.depends_on == block.stream_id:
            raise StreamFault(PROTOCOL_ERROR, "a stream that depends on itself")
        stream = self.open[block.stream_id] = Stream(block.stream_id, self)
        stream.content_length = headers.content_length
        stream.remote_open = not block.end_stream
        if headers.refusal:
            self._refusals[stream.id] = headers.refusal
        else:
            call = self._application.open(headers, stream)
            if call is None:
                stream.finish(grpc.UNIMPLEMENTED, f"there is no method {headers.path[:200]}")
            elif stream.id not in self.open:
                call.ended()
            else:
                stream.call = call
                if headers.timeout is not None:
                    self._set_deadline(now + headers.timeout, stream.id)
        if block.end_stream and stream.id in self.open:
            self.half_closed(stream)

    def _trailers(self, stream: Stream, block: Block) -> None:
        if not stream.remote_open:
            self._headers.skip(block.content)
            raise StreamFault(STREAM_CLOSED, "HEADERS after the end of the stream")
        self._headers.trailers(block.content)
        if not block.end_stream:
            raise StreamFault(PROTOCOL_ERROR, "trailers that do not end the stream")
        stream.remote_open = False
        self.half_closed(stream)

    def _end_early(self, stream_id: int, code: int) -> None:
        self.sender.output.append(frames.rst_stream(stream_id, code))
        if len(self._ended_early) >= _ENDED_EARLY_KEPT:
            del self._ended_early[next(iter(self._ended_early))]
        self._ended_early[stream_id] = None

    def _close(self, stream: Stream) -> None:
        self._refusals.pop(stream.id, None)
        stream.close()

    def _set_deadline(self, at: float, stream_id: int) -> None:
        deadlines = self._deadlines
        if len(deadlines) > _FEW_DEADLINES + 2 * len(self.open):
            # Most of them are of calls that are over.
            deadlines[:] = [entry for entry in deadlines if entry[1] in self.open]
            heapq.heapify(deadlines)
        heapq.heappush(deadlines, (at, stream_id))
