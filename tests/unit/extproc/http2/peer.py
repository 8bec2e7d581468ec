"""What the tests of the connection need: an application that notes what it sees, frames as a peer writes them, and a
client of another make (`h2`)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
from hpack import Decoder, Encoder

from headrace.extproc.http2 import BufferBudget, Connection, Limits, RequestHeaders, Stream, frames
from headrace.extproc.http2.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    frame,
)

ECHO, HOLD, SINK, MISSING = "/test.S/Echo", "/test.S/Hold", "/test.S/Sink", "/test.S/Missing"
REQUEST = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", ECHO),
    (":authority", "epp.test"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
)
GREETING = PREFACE + frames.settings()
SETTINGS_ACK = frame(frames.SETTINGS, frames.ACK, 0)


def request(*changes: tuple[str, str], path: str = ECHO) -> list[tuple[str, str]]:
    """The headers of a call, some of them changed or added."""
    return list({**dict(REQUEST), ":path": path, **dict(changes)}.items())


def block(fields: Iterable[tuple[str, str]]) -> bytes:
    """A header block that refers to no table."""
    encoder = Encoder()
    encoder.header_table_size = 0
    return bytes(encoder.encode(list(fields)))


def headers(stream_id: int, *changes: tuple[str, str], path: str = ECHO, flags: int = 0) -> bytes:
    """A HEADERS frame that begins a call."""
    return frame(HEADERS, END_HEADERS | flags, stream_id, block(request(*changes, path=path)))


def grpc_message(content: bytes, compressed: int = 0) -> bytes:
    """A message with its prefix."""
    return struct.pack(">BI", compressed, len(content)) + content


def data(stream_id: int, content: bytes, *, end: bool = False) -> bytes:
    """A DATA frame."""
    return frame(DATA, END_STREAM if end else 0, stream_id, content)


@dataclass
class NotedCall:
    """One call, and what its application was told."""

    path: str
    stream: Stream
    events: list[Any] = field(default_factory=list)
    sent_late: int = 0

    def message(self, message: bytes) -> None:
        self.events.append(message)
        if self.path == ECHO:
            self.stream.send(message)
        elif self.path == HOLD:
            self.stream.pause()

    def half_closed(self) -> None:
        self.events.append("half-closed")
        self.stream.finish()

    def sent(self) -> None:
        self.sent_late += 1

    def ended(self) -> None:
        self.events.append("ended")


class Application:
    """Echoes messages on ECHO, holds them on HOLD until the test goes on, drops them on SINK."""

    def __init__(self) -> None:
        self.calls: dict[int, NotedCall] = {}
        self.headers: dict[int, RequestHeaders] = {}

    def open(self, headers: RequestHeaders, stream: Stream) -> NotedCall | None:
        self.headers[stream.id] = headers
        if headers.path not in (ECHO, HOLD, SINK):
            return None
        call = self.calls[stream.id] = NotedCall(headers.path, stream)
        return call

    @property
    def events(self) -> dict[int, list[Any]]:
        """What was told, by stream."""
        return {number: call.events for number, call in self.calls.items()}


def written(output: bytes) -> list[tuple[int, int, int, bytes]]:
    """The frames in what was sent: type, flags, stream, payload."""
    found = []
    while output:
        high, low, kind, flags, stream_id = frames.HEADER.unpack_from(output)
        end = frames.HEADER_BYTES + (high << 16 | low)
        assert end <= len(output)
        found.append((kind, flags, stream_id, output[frames.HEADER_BYTES : end]))
        output = output[end:]
    return found


@dataclass(frozen=True)
class Answer:
    """What was sent on one stream: status of HTTP and gRPC, messages, the code of a reset."""

    headers: dict[str, str]
    messages: list[bytes]
    trailers: dict[str, str]
    reset: int | None = None


def split(content: bytes) -> list[bytes]:
    """The messages of a stream's data, which must be whole."""
    found = []
    while content:
        size = int.from_bytes(content[1:5])
        assert content[0] == 0
        assert len(content) >= 5 + size
        found.append(content[5 : 5 + size])
        content = content[5 + size :]
    return found


def answers(output: bytes) -> dict[int, Answer]:
    """What was answered, by stream."""
    decoder = Decoder()
    blocks: dict[int, list[dict[str, str]]] = {}
    contents: dict[int, bytes] = {}
    resets: dict[int, int] = {}
    for kind, _, stream_id, payload in written(output):
        if kind == HEADERS:
            blocks.setdefault(stream_id, []).append({str(n): str(v) for n, v in decoder.decode(payload)})
        elif kind == DATA:
            contents[stream_id] = contents.get(stream_id, b"") + payload
        elif kind == frames.RST_STREAM:
            resets[stream_id] = int.from_bytes(payload)
    found = {}
    for stream_id in {*blocks, *contents, *resets}:
        of = blocks.get(stream_id, [])
        if of and of[0].get(":status") != "200":
            continue  # no gRPC
        trailers = of[-1] if of and "grpc-status" in of[-1] else {}
        content = split(contents.get(stream_id, b""))
        found[stream_id] = Answer(of[0] if of else {}, content, trailers, resets.get(stream_id))
    return found


def goaway(output: bytes) -> tuple[int, int] | None:
    """The last stream and the code of the last GOAWAY."""
    found = [payload for kind, _, _, payload in written(output) if kind == frames.GOAWAY]
    return (int.from_bytes(found[-1][:4]), int.from_bytes(found[-1][4:8])) if found else None


class Server:
    """A connection, its application, and all that it has sent."""

    def __init__(self, bounds: Limits | None = None, budget: BufferBudget | None = None, *, greet: bool = True) -> None:
        self.application = Application()
        self.budget = budget or BufferBudget(1 << 30)
        self.flushes = 0
        self.connection = Connection(
            self.application, bounds or Limits(), self.budget, now=0.0, on_output=self._on_output
        )
        self.output = b""
        self.now = 0.0
        if greet:
            self.feed(GREETING + SETTINGS_ACK)

    def _on_output(self) -> None:
        self.flushes += 1

    def feed(self, received: bytes) -> bytes:
        """Receive, and handle all of it. What is sent for it."""
        self.connection.receive(received, self.now)
        while self.connection.more:
            self.connection.receive(b"", self.now)
        return self.sent()

    def sent(self) -> bytes:
        """What is to be sent now."""
        output = self.connection.take_output()
        self.output += output
        return output

    def call(self, stream_id: int = 1) -> NotedCall:
        """A call, by its stream."""
        return self.application.calls[stream_id]


class Client:
    """`h2` on the other end. `exchange` carries bytes both ways until nothing moves."""

    def __init__(self, server: Server, cuts: Sequence[int] = (), **settings: int) -> None:
        self.server = server
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        if settings:
            codes = {getattr(h2.settings.SettingCodes, name.upper()): value for name, value in settings.items()}
            self.h2.local_settings = h2.settings.Settings(client=True, initial_values=codes)
        self.h2.initiate_connection()
        self.events: list[Any] = []
        self.acknowledging = True
        self._cuts = list(cuts) or [1 << 20]
        self._cut = 0
        self.exchange()

    def exchange(self) -> None:
        while True:
            there = self.h2.data_to_send()
            while there:
                size = self._cuts[self._cut % len(self._cuts)]
                self._cut += 1
                self._take(self.server.feed(there[:size]))
                there = there[size:]
            back = self.server.sent()
            if back:
                self._take(back)
            elif not self.h2._data_to_send:
                return

    def _take(self, output: bytes) -> None:
        for event in self.h2.receive_data(output) if output else ():
            self.events.append(event)
            if isinstance(event, h2.events.DataReceived) and self.acknowledging:
                size = event.flow_controlled_length or 0
                if size:
                    self.h2.acknowledge_received_data(size, event.stream_id or 0)

    def begin(self, path: str = ECHO, *changes: tuple[str, str]) -> int:
        stream_id = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream_id, request(*changes, path=path))
        return int(stream_id)

    def send(self, stream_id: int, content: bytes, *, end: bool = False) -> None:
        """Send content as flow control allows. Raises AssertionError where the server lets no more in."""
        while content:
            size = min(self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size, len(content))
            if size <= 0:
                self.exchange()
                assert self.h2.local_flow_control_window(stream_id) > 0, "the server gives no window"
                continue
            self.h2.send_data(stream_id, content[:size])
            content = content[size:]
        if end:
            self.h2.end_stream(stream_id)

    def answer(self, stream_id: int) -> Answer:
        """What the stream was answered so far."""
        content, first, last, reset = b"", {}, {}, None
        for event in self.events:
            if getattr(event, "stream_id", None) != stream_id:
                continue
            if isinstance(event, h2.events.ResponseReceived):
                first = dict(event.headers or ())
            elif isinstance(event, h2.events.TrailersReceived):
                last = dict(event.headers or ())
            elif isinstance(event, h2.events.DataReceived):
                content += event.data or b""
            elif isinstance(event, h2.events.StreamReset):
                reset = int(event.error_code or 0)
        return Answer(first, split(content), last or (first if "grpc-status" in first else {}), reset)
