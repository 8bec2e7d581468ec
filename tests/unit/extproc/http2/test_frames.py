"""Frames, header blocks, settings and gRPC framing by themselves."""

from __future__ import annotations

from typing import Any

import pytest
from hpack import Decoder, Encoder
from hyperframe.frame import Frame
from hypothesis import given
from hypothesis import strategies as st

from headrace.extproc.http2 import frames, grpc
from headrace.extproc.http2.blocks import BlockReader
from headrace.extproc.http2.frames import ConnectionFault, StreamFault
from headrace.extproc.http2.headers import HeaderReader
from headrace.extproc.http2.sending import Sender
from headrace.extproc.http2.settings import apply_settings

from .peer import REQUEST, block, grpc_message, request


@given(st.integers(0, 9), st.integers(0, 255), st.integers(0, 2**31 - 1), st.integers(0, 70_000))
def test_a_frame_is_read_by_another_library(kind: int, flags: int, stream_id: int, size: int) -> None:
    head = frames.frame(kind, flags, stream_id, b"x" * size)[: frames.HEADER_BYTES]
    high, low, read_kind, read_flags, read_id = frames.HEADER.unpack(head)
    assert (high << 16 | low, read_kind, read_flags, read_id) == (size, kind, flags, stream_id)
    if (kind in (0, 1, 2, 3, 5, 9)) == (stream_id > 0) or kind == frames.WINDOW_UPDATE:
        parsed, length = Frame.parse_frame_header(memoryview(head))
        assert (length, parsed.type, parsed.stream_id) == (size, kind, stream_id)


@given(st.lists(st.tuples(st.sampled_from([b"x", b"grpc-message", b"a" * 200]), st.binary(max_size=300)), max_size=4))
def test_literals_are_what_hpack_reads(fields: list[tuple[bytes, bytes]]) -> None:
    raw = b"".join(grpc.literal(name, value) for name, value in fields)
    assert [tuple(field) for field in Decoder().decode(raw, raw=True)] == fields


@pytest.mark.parametrize(
    ("size", "encoded"),
    [(126, "7e"), (127, "7f00"), (253, "7f7e"), (254, "7f7f"), (255, "7f8001"), (16_511, "7f808001")],
)
def test_lengths_take_as_few_bytes_as_they_can(size: int, encoded: str) -> None:
    """RFC 7541, 5.1, with seven bits of the first byte."""
    text = b"a" * size
    assert grpc.literal(b"", text) == b"\0\0" + bytes.fromhex(encoded) + text


@pytest.mark.parametrize("message", ["", "plain", "100 % ä\n", "x" * 5000])
def test_trailers(message: str) -> None:
    decoded = dict(Decoder().decode(grpc.trailers(grpc.INTERNAL, message)))
    assert decoded["grpc-status"] == "13"
    assert len(decoded.get("grpc-message", "")) <= 3 * 1024
    if message == "100 % ä\n":
        assert decoded["grpc-message"] == "100 %25 %C3%A4%0A"


@pytest.mark.parametrize(
    ("text", "seconds"), [("1H", 3600.0), ("2M", 120.0), ("5S", 5.0), ("250m", 0.25), ("7u", 7e-6), ("99999999n", 0.1)]
)
def test_timeouts(text: str, seconds: float) -> None:
    assert grpc.timeout_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "S", "1", "1s", "-1S", "1.5S", "123456789S", "١S", "1SS"])
def test_what_is_no_timeout(text: str) -> None:
    with pytest.raises(ValueError, match="timeout"):
        grpc.timeout_seconds(text)


@given(st.lists(st.binary(max_size=40), max_size=6), st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_messages_come_out_however_they_are_cut(messages: list[bytes], cuts: list[int]) -> None:
    raw = b"".join(map(grpc_message, messages))
    reader = grpc.MessageReader(100)
    found: list[bytes] = []
    at = turn = 0
    while at < len(raw):
        end = min(len(raw), at + cuts[turn % len(cuts)])
        found += reader.feed(b"##" + raw[at:end] + b"##", 2, 2 + end - at)
        at, turn = end, turn + 1
    assert found == messages
    assert reader.held == 0


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (grpc_message(b"x", compressed=1), grpc.UNIMPLEMENTED),
        (grpc_message(b"x", compressed=2), grpc.INTERNAL),
        (b"\0\0\0\0\x65", grpc.RESOURCE_EXHAUSTED),
        (b"\0\xff\xff\xff\xff", grpc.RESOURCE_EXHAUSTED),
    ],
)
def test_messages_that_are_refused(raw: bytes, status: int) -> None:
    for size in (1, 3, len(raw)):
        reader = grpc.MessageReader(100)
        with pytest.raises(grpc.RpcFault) as caught:
            for at in range(0, len(raw), size):
                reader.feed(raw, at, min(len(raw), at + size))
        assert caught.value.status == status


@pytest.mark.parametrize("size", [0, 1, 100, 16_000])
@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_a_block_is_put_together(size: int, pieces: int) -> None:
    content = bytes(n % 251 for n in range(size))
    reader = BlockReader(16_384)
    cut = max(1, -(-size // pieces))
    parts = [content[at : at + cut] for at in range(0, size, cut)] or [b""]
    found = reader.headers(frames.END_HEADERS if len(parts) == 1 else 0, 3, b"##" + parts[0], 2, 2 + len(parts[0]))
    for number, part in enumerate(parts[1:], 2):
        assert found is None
        assert reader.open
        flags = frames.END_HEADERS if number == len(parts) else 0
        found = reader.continuation(flags, 3, part, 0, len(part))
    assert found is not None
    assert not reader.open
    assert (found.stream_id, found.content, found.end_stream, found.depends_on) == (3, content, False, -1)


def test_a_block_has_at_most_eight_continuations() -> None:
    reader = BlockReader(100)
    reader.headers(0, 1, b"x", 0, 1)
    for _ in range(8):
        assert reader.continuation(0, 1, b"x", 0, 1) is None
    with pytest.raises(frames.ConnectionFault) as caught:
        reader.continuation(frames.END_HEADERS, 1, b"x", 0, 1)
    assert caught.value.code == frames.ENHANCE_YOUR_CALM


def test_a_block_with_padding_and_priority() -> None:
    payload = b"\x03" + b"\x80\0\0\x05\x10" + b"block" + b"\0\0\0"
    flags = frames.PADDED | frames.PRIORITY_FIELDS | frames.END_HEADERS | frames.END_STREAM
    found = BlockReader(100).headers(flags, 1, payload, 0, len(payload))
    assert found == (1, b"block", True, 5)


def test_headers_are_kept_only_when_the_peer_has_acknowledged_that_it_has_no_table() -> None:
    reader = HeaderReader(16_384)
    encoder = Encoder()
    first = bytes(encoder.encode(request(("x-a", "1"))))
    again = bytes(encoder.encode(request(("x-a", "1"))))
    other = bytes(encoder.encode(request(("x-a", "2"))))
    third = bytes(encoder.encode(request(("x-a", "2"))))
    assert reader.request(first).metadata["x-a"] == "1"
    assert reader.request(again).metadata["x-a"] == "1"
    # The same bytes mean something else now.
    assert reader.request(other).metadata["x-a"] == "2"
    assert reader.request(third).metadata["x-a"] == "2"
    reader.acknowledge()
    encoder.header_table_size = 0
    plain = bytes(encoder.encode(request(("x-a", "3"))))
    kept = reader.request(plain)
    assert kept.metadata["x-a"] == "3"
    plain = bytes(encoder.encode(request(("x-a", "3"))))
    assert reader.request(plain) is reader.request(bytes(bytearray(plain)))


def test_a_peer_that_keeps_its_table_is_served_and_nothing_of_it_is_kept() -> None:
    reader = HeaderReader(16_384)
    encoder = Encoder()
    reader.acknowledge()
    for value in ("1", "1", "2", "2", "1"):
        assert reader.request(bytes(encoder.encode(request(("x-a", value))))).metadata["x-a"] == value
    # The same bytes mean what the table says.
    assert bytes(encoder.encode(request(("x-a", "2")))) != bytes(encoder.encode(request(("x-a", "1"))))
    assert reader._kept == {}


def test_a_table_that_was_given_up_is_not_taken_back() -> None:
    reader = HeaderReader(16_384)
    reader.acknowledge()
    reader.request(block(REQUEST))
    with pytest.raises(ConnectionFault) as caught:
        reader.request(b"\x3f\x01" + block(REQUEST))
    assert caught.value.code == frames.COMPRESSION_ERROR


@pytest.mark.parametrize("raw", [b"\xff", b"\x80", b"\xbe", b"\x40", b"\0\x05ab", b"\0\x01a\x85\xff", b"\x3f\xe2\x1f"])
def test_blocks_that_cannot_be_read(raw: bytes) -> None:
    with pytest.raises(ConnectionFault) as caught:
        HeaderReader(16_384).request(raw)
    assert caught.value.code == frames.COMPRESSION_ERROR


def test_a_header_list_has_a_limit() -> None:
    with pytest.raises(ConnectionFault) as caught:
        HeaderReader(1000).request(block([*REQUEST, ("x", "y" * 900)]))
    assert caught.value.code == frames.ENHANCE_YOUR_CALM


BAD_REQUESTS = {
    "no method": [field for field in REQUEST if field[0] != ":method"],
    "no path": [field for field in REQUEST if field[0] != ":path"],
    "no scheme": [field for field in REQUEST if field[0] != ":scheme"],
    "an empty path": request((":path", "")),
    "a pseudo-header late": [*REQUEST[1:], REQUEST[0]],
    "a pseudo-header twice": [REQUEST[0], *REQUEST],
    "a pseudo-header of answers": [(":status", "200"), *REQUEST],
    "capitals": request(("X-A", "1")),
    "a header of connections": request(("connection", "close")),
    "another te": request(("te", "gzip")),
    "a bad timeout": request(("grpc-timeout", "soon")),
    "a bad length": request(("content-length", "-5")),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_malformed_requests(name: str) -> None:
    with pytest.raises(StreamFault) as caught:
        HeaderReader(16_384).request(block(BAD_REQUESTS[name]))
    assert caught.value.code == frames.PROTOCOL_ERROR


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ((), 0),
        ((("content-type", "application/grpc+proto"),), 0),
        ((("content-type", "application/grpc;charset=utf-8"),), 0),
        ((("content-type", "application/grpc-web"),), 415),
        ((("content-type", "text/html"),), 415),
        ((("content-type", ""),), 415),
        (((":method", "GET"),), 405),
    ],
)
def test_requests_that_are_not_grpc(changes: tuple[tuple[str, str], ...], refusal: int) -> None:
    assert HeaderReader(16_384).request(block(request(*changes))).refusal == refusal


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ([(frames.INITIAL_WINDOW_SIZE, 1 << 31)], frames.FLOW_CONTROL_ERROR),
        ([(frames.MAX_FRAME_SIZE, 16_383)], frames.PROTOCOL_ERROR),
        ([(frames.MAX_FRAME_SIZE, 1 << 24)], frames.PROTOCOL_ERROR),
        ([(frames.ENABLE_PUSH, 2)], frames.PROTOCOL_ERROR),
    ],
)
def test_settings_that_cannot_be(values: list[tuple[int, int]], code: int) -> None:
    with pytest.raises(ConnectionFault) as caught:
        apply_settings(frames.settings(*values)[frames.HEADER_BYTES :], Sender[Any]())
    assert caught.value.code == code


def test_settings_are_applied_in_order() -> None:
    sender = Sender[Any]()
    values = [
        (frames.INITIAL_WINDOW_SIZE, 5),
        (frames.MAX_FRAME_SIZE, 20_000),
        (frames.INITIAL_WINDOW_SIZE, 7),
        (99, 1),
    ]
    apply_settings(frames.settings(*values)[frames.HEADER_BYTES :], sender)
    assert (sender.initial_window, sender.max_frame) == (7, 20_000)
