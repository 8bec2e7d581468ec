"""What a connection sends: frames in the order they are to go, and what waits for the peer's flow control."""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import Generic, TypeVar

from headrace.extproc.http2 import grpc
from headrace.extproc.http2.frames import (
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    HEADER,
    HEADERS,
    MAX_FRAME_BYTES,
    frame,
)

# The head of a DATA frame, and the prefix of the one message in it.
_DATA_MESSAGE = Struct(">BHBBIBI")
_HEADERS_HEAD = HEADER.pack(0, len(grpc.RESPONSE_HEADERS), HEADERS, END_HEADERS, 0)[:5]
_OK = grpc.trailers(grpc.OK)
_OK_HEAD = HEADER.pack(0, len(_OK), HEADERS, END_STREAM | END_HEADERS, 0)[:5]
_ID = Struct(">I")
_ONLY_GRPC = b"only gRPC is served here\n"


class Outlet:
    """One stream's side of what is sent."""

    __slots__ = ("headers_sent", "id", "last_frame", "unsent", "unsent_bytes", "used")

    def __init__(self, stream_id: int) -> None:
        self.id = stream_id
        self.headers_sent = False
        # Flow-controlled bytes that were sent, less those that the peer allowed besides its initial window.
        self.used = 0
        self.unsent: deque[memoryview] | None = None
        self.unsent_bytes = 0
        # The frame that ends the stream once all is sent.
        self.last_frame: bytes | None = None


S = TypeVar("S", bound=Outlet)


class Sender(Generic[S]):
    """Turns messages and trailers into frames, as far as the peer's windows allow. Take its `output` and clear it.

    `initial_window` and `max_frame` are what the peer has set."""

    __slots__ = ("_queue", "initial_window", "max_frame", "output", "window")

    def __init__(self) -> None:
        self.output: list[bytes | memoryview] = []
        self.window = self.initial_window = DEFAULT_WINDOW
        self.max_frame = MAX_FRAME_BYTES
        # Streams that wait for the connection's window; who waits for its own is not among them.
        self._queue: dict[int, S] = {}

    def message(self, outlet: S, message: bytes) -> None:
        """Send a message."""
        output = self.output
        if not outlet.headers_sent:
            outlet.headers_sent = True
            output += (_HEADERS_HEAD, _ID.pack(outlet.id), grpc.RESPONSE_HEADERS)
        size = len(message) + grpc.PREFIX_BYTES
        if (
            outlet.unsent is None
            and size <= MAX_FRAME_BYTES
            and size <= self.window
            and size <= self.initial_window - outlet.used
        ):
            self.window -= size
            outlet.used += size
            output += (_DATA_MESSAGE.pack(0, size, DATA, 0, outlet.id, 0, size - grpc.PREFIX_BYTES), message)
            return
        if outlet.unsent is None:
            outlet.unsent = deque()
        # Views: a long message is cut into many frames, and must not be copied for each.
        outlet.unsent.append(memoryview(grpc.PREFIX.pack(0, size - grpc.PREFIX_BYTES)))
        if message:
            outlet.unsent.append(memoryview(message))
        outlet.unsent_bytes += size
        self._push(outlet)

    def finish(self, outlet: S, status: int, text: str) -> bool:
        """End the stream with a status, once its messages are sent. Gives whether it has ended."""
        if not outlet.headers_sent:
            last = frame(HEADERS, END_STREAM | END_HEADERS, outlet.id, grpc.trailers_only(status, text))
        elif status or text:
            last = frame(HEADERS, END_STREAM | END_HEADERS, outlet.id, grpc.trailers(status, text))
        else:
            last = _OK_HEAD + _ID.pack(outlet.id) + _OK
        if outlet.unsent is not None:
            outlet.last_frame = last
            return False
        self.output.append(last)
        return True

    def refuse(self, outlet: S, status: int) -> bool:
        """Answer a request that is not gRPC. Gives whether the stream has ended."""
        self.output.append(frame(HEADERS, END_HEADERS, outlet.id, grpc.http_error(status)))
        outlet.unsent = deque((memoryview(_ONLY_GRPC),))
        outlet.unsent_bytes = len(_ONLY_GRPC)
        outlet.last_frame = frame(DATA, END_STREAM, outlet.id)
        self._push(outlet)
        return outlet.unsent is None

    def forget(self, outlet: S) -> None:
        """The stream is over: what waits is not sent."""
        self._queue.pop(outlet.id, None)
        outlet.unsent = outlet.last_frame = None
        outlet.unsent_bytes = 0

    def allowed(self, stream: S) -> list[S]:
        """The peer's window for a stream has grown. Gives the stream if it has sent something."""
        before = stream.unsent_bytes
        self._push(stream)
        return [stream] if stream.unsent_bytes < before else []

    def allowed_all(self) -> list[S]:
        """The peer's window for all has grown. Gives the streams that have sent something, the first that waited
        first."""
        moved = []
        while self._queue and self.window > 0:
            stream = self._queue.pop(next(iter(self._queue)))
            self._push(stream)
            moved.append(stream)
        return moved

    def _push(self, outlet: S) -> None:
        """Send of a stream's messages what may be sent, and its trailers after the last of them."""
        pieces = outlet.unsent
        assert pieces is not None
        while pieces:
            most = min(self.window, self.initial_window - outlet.used, self.max_frame)
            if most <= 0:
                if outlet.used < self.initial_window:
                    self._queue[outlet.id] = outlet
                return
            size = 0
            content = []
            while pieces and size < most:
                piece = pieces.popleft()
                if len(piece) > most - size:
                    pieces.appendleft(piece[most - size :])
                    piece = piece[: most - size]
                content.append(piece)
                size += len(piece)
            self.output.append(HEADER.pack(size >> 16, size & 0xFFFF, DATA, 0, outlet.id))
            self.output += content
            self.window -= size
            outlet.used += size
            outlet.unsent_bytes -= size
        outlet.unsent = None
        self._queue.pop(outlet.id, None)
        if outlet.last_frame is not None:
            self.output.append(outlet.last_frame)
            outlet.last_frame = None
