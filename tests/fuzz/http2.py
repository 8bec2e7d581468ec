"""The HTTP/2 server connection: raw bytes, frames put together of fields, header blocks, and messages of gRPC.

The first byte says which. What may come out: frames that another library reads; calls that are told of their end once;
the end of the connection, with the reason. Nothing is left when the peer is gone. Cuts in the bytes change nothing."""

from __future__ import annotations

from hpack import Decoder, Encoder

from headrace.extproc.http2 import BufferBudget, Limits, frames
from headrace.extproc.http2.grpc import MessageReader, RpcFault

from ..unit.extproc.http2.peer import ECHO, GREETING, HOLD, SETTINGS_ACK, SINK, Server, request, written
from .reader import Reader

BOUNDS = Limits(
    max_streams=8, stream_window=70_000, connection_window=90_000, max_message_bytes=60_000, frames_at_once=9
)
NAMES = [
    ":method",
    ":path",
    ":scheme",
    ":status",
    "te",
    "content-type",
    "content-length",
    "grpc-timeout",
    "X-A",
    "x-a",
    "",
]
VALUES = ["POST", "GET", "/", ECHO, HOLD, SINK, "trailers", "application/grpc", "5", "1S", "x" * 300, ""]


def target(data: bytes) -> None:
    """One input."""
    reader = Reader(data)
    choice = reader.byte() % 4
    if choice == 0:
        connection(reader.rest(), greet=False)
    elif choice == 1:
        connection(reader.rest(), greet=True)
    elif choice == 2:
        connection(some_frames(reader), greet=True)
    else:
        messages(reader)


def connection(raw: bytes, *, greet: bool) -> None:
    """A connection gets these bytes, whole and in parts, and is lost then."""
    whole = served([raw], greet=greet)
    at = len(raw) // 3
    parts = served([raw[:at], raw[at : at + 1], raw[at + 1 :]], greet=greet)
    faults = [server.connection.fault for server in (whole, parts)]
    if any(fault is not None and fault.code == frames.FLOW_CONTROL_ERROR for fault in faults):
        # The connection's window is given back after each read: who ignores it is found out sooner or later.
        return
    assert whole.application.events == parts.application.events
    assert (faults[0] is None) == (faults[1] is None)


def served(parts: list[bytes], *, greet: bool) -> Server:
    server = Server(BOUNDS, BufferBudget(200_000), greet=False)
    server.feed(GREETING + SETTINGS_ACK if greet else b"")
    for part in parts:
        server.feed(part)
    decoder = Decoder()
    for kind, _, _, payload in written(server.output):
        if kind == frames.HEADERS:
            decoder.decode(payload)
    assert server.connection.stream_count <= BOUNDS.max_streams
    server.connection.expire(1e9)
    server.connection.sweep()
    server.connection.lost()
    assert server.connection.stream_count == 0
    assert server.budget.held == 0
    for events in server.application.events.values():
        assert events.count("ended") == 1
        assert events[-1] == "ended"
    return server


def some_frames(reader: Reader) -> bytes:
    """Frames that mostly mean something."""
    encoder = Encoder()
    encoder.header_table_size = 0
    out = bytearray()
    while not reader.done and len(out) < 200_000:
        kind, flags, stream_id = reader.below(11), reader.byte(), reader.below(12)
        if kind in (frames.HEADERS, frames.CONTINUATION) and reader.flag():
            payload = bytes(encoder.encode(fields(reader)))
            flags |= frames.END_HEADERS
            flags &= ~(frames.PADDED | frames.PRIORITY_FIELDS)
            stream_id |= 1
        elif kind == frames.DATA and reader.flag():
            size = reader.below(256) * (1 + 60 * reader.below(2))
            payload = bytes([0]) + size.to_bytes(4) + bytes(size - reader.below(2) if size else 0)
            flags &= ~frames.PADDED
        elif kind in (frames.RST_STREAM, frames.WINDOW_UPDATE):
            payload = reader.below(65_536).to_bytes(4)
        elif kind == frames.SETTINGS:
            payload = b"".join(
                reader.below(8).to_bytes(2) + reader.below(65_536).to_bytes(4) for _ in range(reader.below(3))
            )
            flags &= ~frames.ACK
        else:
            payload = reader.take(reader.below(24))
        out += frames.frame(kind, flags, stream_id, payload)
    return bytes(out)


def fields(reader: Reader) -> list[tuple[str, str]]:
    """Headers of a request, some of them wrong."""
    found = request(path=reader.choice([ECHO, HOLD, SINK, "/nowhere"]))
    for _ in range(reader.below(3)):
        field = (reader.choice(NAMES), reader.choice(VALUES))
        found.insert(reader.below(len(found) + 1), field)
    return found


def messages(reader: Reader) -> None:
    """gRPC's framing: what goes in comes out, however it is cut."""
    limit = 1 + reader.below(200)
    raw = reader.rest()
    found = []
    for size in (len(raw) or 1, 1, 7):
        framing = MessageReader(limit)
        out: list[bytes] = []
        fault = None
        try:
            for at in range(0, len(raw), size):
                out += framing.feed(raw, at, min(len(raw), at + size))
        except RpcFault as error:
            fault = error.status
        assert all(len(message) <= limit for message in out)
        if fault is None:
            assert sum(5 + len(message) for message in out) + framing.held == len(raw)
            found.append((fault, out))
        else:
            found.append((fault, []))
    assert found[0] == found[1] == found[2]
