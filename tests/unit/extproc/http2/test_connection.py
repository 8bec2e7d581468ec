"""A connection: calls over it, whatever the cuts and windows; the states of a stream; the peer's faults."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hpack import Decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.extproc.http2 import BufferBudget, Limits, frames, grpc
from headrace.extproc.http2.frames import END_HEADERS, END_STREAM, frame

from .peer import (
    ECHO,
    GREETING,
    HOLD,
    MISSING,
    SETTINGS_ACK,
    SINK,
    Answer,
    Client,
    Server,
    answers,
    block,
    data,
    goaway,
    grpc_message,
    headers,
    request,
    written,
)

OK = {"grpc-status": "0"}
HELLO = grpc_message(b"hello")


def rst(stream_id: int, code: int = frames.CANCEL) -> bytes:
    return frames.rst_stream(stream_id, code)


# A conversation with everything in it: padding, priority, CONTINUATION, messages split and joined, calls that end in
# several ways, probes.
FIELDS = block(request(("x-long", "v" * 300)))
SCRIPT = b"".join(
    (
        GREETING,
        SETTINGS_ACK,
        headers(1),
        data(1, grpc_message(b"one") + grpc_message(b"two")),
        frame(frames.PING, 0, 0, b"12345678"),
        frame(frames.HEADERS, 0, 3, FIELDS[:100]),
        frame(frames.CONTINUATION, 0, 3, FIELDS[100:200]),
        frame(frames.CONTINUATION, END_HEADERS, 3, FIELDS[200:]),
        data(1, HELLO[:3]),
        data(3, grpc_message(b"x" * 9000)),
        data(1, HELLO[3:7]),
        frame(frames.DATA, frames.PADDED, 1, b"\x04" + HELLO[7:] + b"\0\0\0\0"),
        frame(frames.HEADERS, END_HEADERS | 0x20, 5, b"\0\0\0\0\x0f" + block(request(path=SINK))),
        frame(frames.PRIORITY, 0, 9, b"\0\0\0\0\x0f"),
        data(5, HELLO),
        frame(frames.HEADERS, END_HEADERS | END_STREAM, 1, block([("x-checksum", "1")])),
        rst(5),
        headers(7, path=MISSING),
        frame(0x55, 0xFF, 0, b"unknown"),
        headers(9, ("content-type", "text/plain")),
        data(9, b"what", end=True),
        data(3, b"", end=True),
        headers(11, flags=END_STREAM),
        frames.window_update(0, 5000),
    )
)


def test_a_conversation() -> None:
    server = Server(greet=False)
    server.feed(SCRIPT)
    assert not server.connection.closed
    assert server.application.events == {
        1: [b"one", b"two", b"hello", "half-closed", "ended"],
        3: [b"x" * 9000, "half-closed", "ended"],
        5: [b"hello", "ended"],
        11: ["half-closed", "ended"],
    }
    found = answers(server.output)
    plain = {":status": "200", "content-type": "application/grpc"}
    assert found[1] == Answer(plain, [b"one", b"two", b"hello"], OK)
    assert found[3] == Answer(plain, [b"x" * 9000], OK)
    assert 5 not in found
    assert found[7].trailers["grpc-status"] == str(grpc.UNIMPLEMENTED)
    assert found[7].reset == frames.NO_ERROR
    refused = [payload for kind, _, stream_id, payload in written(server.output) if stream_id == 9]
    assert (dict(Decoder().decode(refused[0]))[":status"], refused[1:]) == ("415", [b"only gRPC is served here\n", b""])
    assert found[11] == Answer({**plain, **OK}, [], {**plain, **OK})
    assert server.connection.stream_count == 0
    assert server.budget.held == 0


@given(st.lists(st.integers(1, 400), min_size=1, max_size=20), st.integers(1, 7))
@settings(max_examples=150)
def test_any_cut_gives_the_same(cuts: list[int], frames_at_once: int) -> None:
    whole = Server(greet=False)
    whole.feed(SCRIPT)
    server = Server(Limits(frames_at_once=frames_at_once), greet=False)
    at = turn = 0
    while at < len(SCRIPT):
        size = cuts[turn % len(cuts)]
        server.feed(SCRIPT[at : at + size])
        at, turn = at + size, turn + 1
    assert server.application.events == whole.application.events
    assert written(server.output) == written(whole.output)


def test_one_byte_at_a_time() -> None:
    test_any_cut_gives_the_same.hypothesis.inner_test([1], 1)  # type: ignore[attr-defined]


sizes = st.lists(st.sampled_from([0, 1, 100, 16_379, 16_380, 40_000, 300_000]), min_size=1, max_size=5)


@given(
    calls=st.lists(sizes, min_size=1, max_size=4),
    window=st.sampled_from([1, 100, 65_535, 1 << 20]),
    cuts=st.lists(st.integers(1, 100_000), max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_calls_of_another_library_are_answered(calls: list[list[int]], window: int, cuts: list[int]) -> None:
    if window < 1000:
        calls = [[min(size, 200) for size in call] for call in calls]
    server = Server(Limits(stream_window=70_000, connection_window=80_000), greet=False)
    client = Client(server, cuts, initial_window_size=window)
    opened = [(client.begin(), call) for call in calls]
    for turn in range(max(map(len, calls))):
        for stream_id, call in opened:
            if turn < len(call):
                client.send(stream_id, grpc_message(bytes([stream_id]) * call[turn]))
    for stream_id, _ in opened:
        client.send(stream_id, b"", end=True)
    client.exchange()
    for stream_id, call in opened:
        answer = client.answer(stream_id)
        assert answer.messages == [bytes([stream_id]) * size for size in call]
        assert answer.trailers == OK
    assert server.connection.stream_count == 0
    assert server.budget.held == 0
    assert not server.connection.closed


# ---- flow control ----


def test_the_peers_windows_are_kept() -> None:
    server = Server()
    server.feed(frames.settings((frames.INITIAL_WINDOW_SIZE, 10)) + headers(1) + headers(3))
    server.feed(data(1, grpc_message(b"a" * 20)))
    assert [len(p) for kind, _, _, p in written(server.output) if kind == frames.DATA] == [10]
    assert [p for kind, _, _, p in written(server.feed(frames.window_update(1, 4))) if kind == frames.DATA] == [b"aaaa"]
    # More for all that are open; less may make a window negative.
    sent = server.feed(frames.settings((frames.INITIAL_WINDOW_SIZE, 12)))
    assert [p for kind, _, _, p in written(sent) if kind == frames.DATA] == [b"aa"]
    sent = server.feed(frames.settings((frames.INITIAL_WINDOW_SIZE, 0)) + frames.window_update(1, 12))
    assert [p for kind, _, _, p in written(sent) if kind == frames.DATA] == []
    server.feed(frames.window_update(1, 9))
    assert answers(server.output)[1].messages == [b"a" * 20]


def test_the_connections_window_is_shared_first_come_first_served() -> None:
    server = Server()
    server.feed(frames.settings((frames.INITIAL_WINDOW_SIZE, 1 << 20)) + headers(1) + headers(3))
    server.feed(data(1, grpc_message(b"a" * 16_000)) * 5 + data(3, HELLO))
    assert sum(len(p) for kind, _, _, p in written(server.output) if kind == frames.DATA) == 65_535
    waiting = 5 * 16_005 - 65_535
    sent = written(server.feed(frames.window_update(0, waiting)))
    assert {stream for kind, _, stream, _ in sent if kind == frames.DATA} == {1}
    sent = written(server.feed(frames.window_update(0, 100)))
    assert [(stream, p) for kind, _, stream, p in sent if kind == frames.DATA] == [(3, HELLO)]


def test_a_long_answer_goes_in_frames_of_the_peers_size() -> None:
    server = Server()
    greeting = frames.settings((frames.INITIAL_WINDOW_SIZE, 1 << 24), (frames.MAX_FRAME_SIZE, 20_000))
    server.feed(greeting + frames.window_update(0, 1 << 24) + headers(1))
    whole = grpc_message(bytes(100_000))
    for at in range(0, len(whole), 16_384):
        server.feed(data(1, whole[at : at + 16_384]))
    lengths = [len(p) for kind, _, _, p in written(server.output) if kind == frames.DATA]
    assert lengths == [20_000] * 5 + [5]


def test_windows_are_given_back_in_few_frames() -> None:
    server = Server(Limits(stream_window=100_000, connection_window=200_000))
    server.feed(headers(1, path=SINK))
    for _ in range(40):
        server.feed(data(1, grpc_message(b"x" * 9995)))
    updates = [(s, int.from_bytes(p)) for k, _, s, p in written(server.output) if k == frames.WINDOW_UPDATE]
    # The first of all raises the connection's window from the protocol's default.
    assert updates[0] == (0, 200_000 - 65_535)
    assert [update for update in updates[1:] if update[0] == 0] == [(0, 100_000)] * 4
    assert [update for update in updates if update[0] == 1] == [(1, 70_000)] + [(1, 50_000)] * 6


def test_a_call_that_is_held_gets_no_window() -> None:
    server = Server(Limits(stream_window=200_000))
    server.feed(headers(1, path=HOLD) + data(1, HELLO))
    for _ in range(11):
        server.feed(data(1, grpc_message(b"x" * 15_995)))
    assert not [s for k, _, s, _ in written(server.output) if k == frames.WINDOW_UPDATE and s == 1]
    call = server.call()
    assert call.events == [b"hello"]
    call.path = SINK
    call.stream.resume()
    assert len(call.events) == 12
    assert [int.from_bytes(p) for k, _, s, p in written(server.sent()) if s == 1] == [11 * 16_000 + len(HELLO)]


def test_a_call_whose_answers_are_not_taken_is_not_heard() -> None:
    server = Server(Limits(max_unsent_bytes=20_000))
    server.feed(frames.settings((frames.INITIAL_WINDOW_SIZE, 0)) + headers(1))
    for _ in range(5):
        server.feed(data(1, grpc_message(b"x" * 9000)))
    assert len(server.call().events) == 3
    server.feed(data(1, b"", end=True))
    server.feed(frames.window_update(1, 1 << 20))
    assert server.call().events == [b"x" * 9000] * 5 + ["half-closed", "ended"]
    assert answers(server.output)[1].messages == [b"x" * 9000] * 5
    assert answers(server.output)[1].trailers == OK


@pytest.mark.parametrize("stream_id", [0, 1])
def test_a_window_cannot_grow_too_large(stream_id: int) -> None:
    server = Server()
    server.feed(headers(1) + frames.window_update(stream_id, frames.MAX_WINDOW))
    if stream_id:
        assert answers(server.output)[1].reset == frames.FLOW_CONTROL_ERROR
        assert not server.connection.closed
    else:
        assert goaway(server.output) == (1, frames.FLOW_CONTROL_ERROR)


def test_a_peer_that_sends_more_than_its_window() -> None:
    server = Server(Limits(stream_window=65_535, connection_window=65_535 * 2))
    server.feed(headers(1, path=HOLD) + data(1, HELLO) + headers(3, path=HOLD) + data(3, HELLO))
    for _ in range(4):
        server.feed(data(1, bytes(16_384)))
    assert answers(server.output)[1].reset == frames.FLOW_CONTROL_ERROR
    assert server.call(1).events == [b"hello", "ended"]
    assert not server.connection.closed


# ---- gRPC ----


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (grpc_message(b"x", compressed=1), grpc.UNIMPLEMENTED),
        (grpc_message(b"x", compressed=7), grpc.INTERNAL),
        (b"\0\x7f\xff\xff\xff", grpc.RESOURCE_EXHAUSTED),
    ],
)
def test_messages_that_end_their_call(content: bytes, status: int) -> None:
    server = Server()
    server.feed(headers(1) + data(1, HELLO) + data(1, content) + headers(3) + data(3, HELLO, end=True))
    found = answers(server.output)
    assert found[1].messages == [b"hello"]
    assert found[1].trailers["grpc-status"] == str(status)
    assert found[1].trailers.get("grpc-accept-encoding") == ("identity" if status == grpc.UNIMPLEMENTED else None)
    assert found[1].reset == frames.NO_ERROR
    assert server.call(1).events == [b"hello", "ended"]
    assert found[3].trailers == OK


def test_a_call_that_ends_inside_a_message() -> None:
    server = Server()
    server.feed(headers(1) + data(1, HELLO[:7], end=True))
    assert answers(server.output)[1].trailers["grpc-status"] == str(grpc.INTERNAL)
    assert answers(server.output)[1].reset is None
    assert server.call().events == ["ended"]


def test_deadlines() -> None:
    server = Server()
    server.feed(headers(1, ("grpc-timeout", "5S")) + headers(3, ("grpc-timeout", "2S")) + headers(5) + data(3, HELLO))
    assert server.connection.next_deadline == 2.0
    server.connection.expire(1.9)
    assert server.connection.stream_count == 3
    server.connection.expire(2.0)
    assert answers(server.output + server.sent())[3].trailers["grpc-status"] == str(grpc.DEADLINE_EXCEEDED)
    assert server.call(3).events == [b"hello", "ended"]
    server.feed(data(1, b"", end=True))
    assert server.call(1).events == ["half-closed", "ended"]
    server.connection.expire(1000.0)
    assert server.connection.next_deadline is None
    assert server.connection.stream_count == 1


def test_deadlines_of_calls_that_are_over_are_not_kept() -> None:
    server = Server()
    for number in range(1, 5001, 2):
        server.feed(headers(number, ("grpc-timeout", "5H"), flags=END_STREAM))
    assert len(server.connection._streams._deadlines) < 600


def test_an_application_may_end_a_call_at_any_time() -> None:
    server = Server()
    server.feed(headers(1, path=SINK) + data(1, HELLO))
    call = server.call()
    call.stream.send(b"late")
    call.stream.finish(grpc.NOT_FOUND, "no")
    call.stream.send(b"too late")
    call.stream.finish()
    call.stream.flush()
    assert server.flushes == 1
    answer = answers(server.sent())[1]
    assert (answer.messages, answer.reset) == ([b"late"], frames.NO_ERROR)
    assert answer.trailers == {"grpc-status": "5", "grpc-message": "no"}
    assert call.events == [b"hello", "ended"]
    # What was on its way is no fault, and costs no other call.
    server.feed(data(1, HELLO) + rst(1) + headers(3) + data(3, HELLO, end=True))
    assert answers(server.output)[3].messages == [b"hello"]


# ---- the states of a stream ----

IDLE, OPEN, HALF_CLOSED, CLOSED, RESET, ENDED_EARLY = "idle", "open", "half-closed", "closed", "reset", "ended early"
STATES = {
    IDLE: b"",
    OPEN: headers(1, path=SINK),
    # Held: it does not end by itself.
    HALF_CLOSED: headers(1, path=HOLD) + data(1, HELLO, end=True),
    CLOSED: headers(1, path=SINK, flags=END_STREAM),
    RESET: headers(1, path=SINK) + rst(1),
    ENDED_EARLY: headers(1, path=MISSING),
}
FRAMES = {
    "HEADERS": headers(1, path=SINK),
    "trailers": frame(frames.HEADERS, END_HEADERS | END_STREAM, 1, block([("x", "y")])),
    "DATA": data(1, HELLO),
    "RST_STREAM": rst(1),
    "WINDOW_UPDATE": frames.window_update(1, 10),
    "PRIORITY": frame(frames.PRIORITY, 0, 1, b"\0\0\0\x09\x0f"),
}
# What is taken; else the code, of the stream's end ("stream") or the connection's.
TAKEN = "taken"
OUTCOMES: dict[str, dict[str, Any]] = {
    "HEADERS": {
        IDLE: TAKEN,
        OPEN: ("stream", frames.PROTOCOL_ERROR),
        HALF_CLOSED: ("stream", frames.STREAM_CLOSED),
        CLOSED: ("connection", frames.STREAM_CLOSED),
        RESET: ("connection", frames.STREAM_CLOSED),
        ENDED_EARLY: TAKEN,
    },
    "trailers": {
        IDLE: ("stream", frames.PROTOCOL_ERROR),
        OPEN: TAKEN,
        HALF_CLOSED: ("stream", frames.STREAM_CLOSED),
        CLOSED: ("connection", frames.STREAM_CLOSED),
        RESET: ("connection", frames.STREAM_CLOSED),
        ENDED_EARLY: TAKEN,
    },
    "DATA": {
        IDLE: ("connection", frames.PROTOCOL_ERROR),
        OPEN: TAKEN,
        HALF_CLOSED: ("stream", frames.STREAM_CLOSED),
        CLOSED: ("stream", frames.STREAM_CLOSED),
        RESET: ("stream", frames.STREAM_CLOSED),
        ENDED_EARLY: TAKEN,
    },
    "RST_STREAM": {IDLE: ("connection", frames.PROTOCOL_ERROR)},
    "WINDOW_UPDATE": {IDLE: ("connection", frames.PROTOCOL_ERROR)},
    "PRIORITY": {},
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", FRAMES)
def test_every_frame_in_every_state(kind: str, state: str) -> None:
    server = Server()
    server.feed(STATES[state])
    sent = server.feed(FRAMES[kind])
    expected = OUTCOMES[kind].get(state, TAKEN)
    if expected == TAKEN:
        assert not server.connection.closed
        assert [p for k, _, s, p in written(sent) if k == frames.RST_STREAM] == []
    elif expected[0] == "stream":
        assert not server.connection.closed
        assert [(s, int.from_bytes(p)) for k, _, s, p in written(sent) if k == frames.RST_STREAM] == [(1, expected[1])]
        # The stream is gone, and its call was told.
        assert server.connection.stream_count == 0
        assert all(call.events[-1] == "ended" for call in server.application.calls.values())
    else:
        assert server.connection.closed
        assert server.connection.fault is not None
        assert goaway(sent) == (int(state != IDLE), expected[1])
    # Whatever happened, the others are served as long as the connection is.
    if not server.connection.closed:
        server.feed(headers(3) + data(3, HELLO, end=True))
        assert answers(server.output)[3].messages == [b"hello"]


# ---- faults of the connection ----

FAULTS = {
    "HTTP/1": (b"GET / HTTP/1.1\r\n\r\n", frames.PROTOCOL_ERROR),
    "no settings first": (frames.PREFACE + frame(frames.PING, 0, 0, bytes(8)), frames.PROTOCOL_ERROR),
    "an acknowledgement first": (frames.PREFACE + SETTINGS_ACK, frames.PROTOCOL_ERROR),
    "a frame too long": (GREETING + struct.pack(">BHBBI", 0, 16_385, 0, 0, 1), frames.FRAME_SIZE_ERROR),
    "DATA on 0": (GREETING + frame(0, 0, 0, b"x"), frames.PROTOCOL_ERROR),
    "HEADERS on 0": (GREETING + frame(1, 4, 0, b""), frames.PROTOCOL_ERROR),
    "HEADERS on 2": (GREETING + headers(2), frames.PROTOCOL_ERROR),
    "a lower stream": (GREETING + headers(5) + headers(3), frames.STREAM_CLOSED),
    "PRIORITY on 0": (GREETING + frame(2, 0, 0, bytes(5)), frames.PROTOCOL_ERROR),
    "PRIORITY of 4": (GREETING + frame(2, 0, 1, bytes(4)), frames.FRAME_SIZE_ERROR),
    "PRIORITY on itself": (GREETING + frame(2, 0, 1, b"\0\0\0\1\0"), frames.PROTOCOL_ERROR),
    "RST_STREAM on 0": (GREETING + frame(3, 0, 0, bytes(4)), frames.PROTOCOL_ERROR),
    "RST_STREAM of 3": (GREETING + headers(1) + frame(3, 0, 1, bytes(3)), frames.FRAME_SIZE_ERROR),
    "SETTINGS on 1": (GREETING + frame(4, 0, 1, b""), frames.PROTOCOL_ERROR),
    "SETTINGS of 5": (GREETING + frame(4, 0, 0, bytes(5)), frames.FRAME_SIZE_ERROR),
    "SETTINGS acknowledged with more": (GREETING + frame(4, 1, 0, bytes(6)), frames.FRAME_SIZE_ERROR),
    "PUSH_PROMISE": (GREETING + frame(5, 4, 1, bytes(4)), frames.PROTOCOL_ERROR),
    "PING on 1": (GREETING + frame(6, 0, 1, bytes(8)), frames.PROTOCOL_ERROR),
    "PING of 7": (GREETING + frame(6, 0, 0, bytes(7)), frames.FRAME_SIZE_ERROR),
    "GOAWAY on 1": (GREETING + frame(7, 0, 1, bytes(8)), frames.PROTOCOL_ERROR),
    "GOAWAY of 7": (GREETING + frame(7, 0, 0, bytes(7)), frames.FRAME_SIZE_ERROR),
    "WINDOW_UPDATE of 3": (GREETING + frame(8, 0, 0, bytes(3)), frames.FRAME_SIZE_ERROR),
    "WINDOW_UPDATE by 0": (GREETING + frame(8, 0, 0, bytes(4)), frames.PROTOCOL_ERROR),
    "CONTINUATION alone": (GREETING + frame(9, 4, 1, b""), frames.PROTOCOL_ERROR),
    "CONTINUATION of another": (GREETING + frame(1, 0, 1, b"") + frame(9, 4, 3, b""), frames.PROTOCOL_ERROR),
    "DATA within a block": (GREETING + frame(1, 0, 1, b"") + data(1, b""), frames.PROTOCOL_ERROR),
    "padding too long": (GREETING + headers(1) + frame(0, 8, 1, b"\x05abcd"), frames.PROTOCOL_ERROR),
    "no padding": (GREETING + headers(1) + frame(0, 8, 1, b""), frames.FRAME_SIZE_ERROR),
    "no priority": (GREETING + frame(1, 0x24, 1, b"ab"), frames.FRAME_SIZE_ERROR),
    "no HPACK": (GREETING + frame(1, 4, 1, b"\xff\xff\xff"), frames.COMPRESSION_ERROR),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("size", [1, 1 << 20])
def test_faults_that_end_the_connection(name: str, size: int) -> None:
    raw, code = FAULTS[name]
    server = Server(greet=False)
    for at in range(0, len(raw), size):
        server.feed(raw[at : at + size])
    assert server.connection.closed
    found = goaway(server.output)
    assert found is not None
    assert found[1] == code
    assert all(call.events[-1] == "ended" for call in server.application.calls.values())
    # Nothing is heard any more.
    assert server.feed(headers(101)) == b""


STREAM_FAULTS = {
    "malformed": (frame(1, 4, 1, block([(":method", "POST")])), frames.PROTOCOL_ERROR),
    "a longer body": (headers(1, ("content-length", "5")) + data(1, HELLO, end=True), frames.PROTOCOL_ERROR),
    "depends on itself": (frame(1, 0x24, 1, b"\0\0\0\1\0" + block(request())), frames.PROTOCOL_ERROR),
    "window by 0": (headers(1) + frame(8, 0, 1, bytes(4)), frames.PROTOCOL_ERROR),
    "a pseudo-header in trailers": (headers(1) + frame(1, 5, 1, block([(":path", "/")])), frames.PROTOCOL_ERROR),
}


@pytest.mark.parametrize("name", STREAM_FAULTS)
def test_faults_that_end_a_stream(name: str) -> None:
    raw, code = STREAM_FAULTS[name]
    server = Server()
    server.feed(raw + headers(3) + data(3, HELLO, end=True))
    assert answers(server.output)[1].reset == code
    assert answers(server.output)[3].messages == [b"hello"]
    assert server.connection.stream_count == 0


# ---- the end ----


def test_a_drain_serves_what_is_on_its_way() -> None:
    server = Server()
    server.feed(headers(1))
    server.connection.drain()
    sent = written(server.sent())
    assert [(k, p[:4]) for k, _, _, p in sent if k == frames.GOAWAY] == [(frames.GOAWAY, b"\x7f\xff\xff\xff")]
    [ping] = [p for k, _, _, p in sent if k == frames.PING]
    # Begun before the peer knew.
    server.feed(headers(3) + data(3, HELLO, end=True))
    assert answers(server.output)[3].messages == [b"hello"]
    assert not server.connection.closed
    assert goaway(server.feed(frame(frames.PING, frames.ACK, 0, ping))) == (3, frames.NO_ERROR)
    server.feed(headers(5))
    assert answers(server.output)[5].reset == frames.REFUSED_STREAM
    assert not server.connection.closed
    server.feed(data(1, HELLO, end=True))
    assert answers(server.output)[1].trailers == OK
    assert server.connection.closed
    assert server.connection.fault is None


def test_a_connection_without_streams_is_drained_at_once() -> None:
    server = Server()
    server.connection.drain()
    server.connection.refuse_more()
    server.sent()
    assert server.connection.closed


def test_the_peer_is_gone() -> None:
    server = Server()
    server.feed(headers(1, path=HOLD) + data(1, HELLO) + headers(3))
    server.connection.lost()
    assert server.application.events == {1: [b"hello", "ended"], 3: ["ended"]}
    call = server.call(1)
    call.stream.send(b"x")
    call.stream.finish()
    call.stream.resume()
    assert server.connection.stream_count == 0


def test_streams_have_a_limit() -> None:
    server = Server(Limits(max_streams=2))
    server.feed(b"".join(headers(n, path=SINK) for n in (1, 3, 5)))
    assert answers(server.output)[5].reset == frames.REFUSED_STREAM
    server.feed(data(1, b"", end=True) + headers(7) + data(7, HELLO, end=True))
    assert answers(server.output)[7].messages == [b"hello"]


def test_the_work_of_one_read_is_bounded() -> None:
    server = Server(Limits(frames_at_once=10))
    server.connection.receive(headers(1, path=SINK) + data(1, HELLO) * 25, 0.0)
    seen = [len(server.call().events)]
    while server.connection.more:
        server.connection.receive(b"", 0.0)
        seen.append(len(server.call().events))
    assert seen == [9, 19, 25]


def test_bodies_share_a_budget() -> None:
    budget = BufferBudget(1_500_000)
    server = Server(Limits(stream_window=100_000), budget)
    numbers = (1, 3, 5, 7, 9)
    whole = grpc_message(bytes(1_000_000))
    server.feed(b"".join(headers(n, path=SINK) for n in numbers))
    window = dict.fromkeys(numbers, 100_000)
    sent = dict.fromkeys(numbers, 0)

    def allow(output: bytes) -> None:
        for kind, _, stream_id, payload in written(output):
            if kind == frames.WINDOW_UPDATE and stream_id:
                window[stream_id] += int.from_bytes(payload)

    moved = True
    while moved:
        moved = False
        for n in numbers:
            size = min(16_000, window[n], len(whole) - sent[n])
            if size:
                moved = True
                window[n] -= size
                sent[n] += size
                allow(server.feed(data(n, whole[sent[n] - size : sent[n]], end=sent[n] == len(whole))))
                allow(server.sent())
    assert {n: sent[n] for n in numbers} == dict.fromkeys(numbers, len(whole))
    assert budget.held == 0
    told = {n: [len(e) if isinstance(e, bytes) else e for e in server.call(n).events] for n in numbers}
    assert told == {n: [1_000_000, "half-closed", "ended"] for n in numbers}


def test_twice_the_budget_is_never_held() -> None:
    budget = BufferBudget(200_000)
    server = Server(Limits(stream_window=150_000, connection_window=1 << 24), budget)
    whole = grpc_message(bytes(1_000_000))
    for n in range(1, 21, 2):
        server.feed(headers(n, path=SINK))
        for at in range(0, 144_000, 16_000):
            server.feed(data(n, whole[at : at + 16_000]))
            assert budget.held < 2 * 200_000 + 150_000
    ended = [
        n for n, a in answers(server.output).items() if a.trailers.get("grpc-status") == str(grpc.RESOURCE_EXHAUSTED)
    ]
    assert 0 < len(ended) < 10
    server.feed(headers(101) + data(101, HELLO, end=True))
    assert answers(server.output)[101].messages == [b"hello"]


def test_echo_is_the_default() -> None:
    server = Server()
    server.feed(headers(1) + data(1, HELLO, end=True))
    assert server.application.headers[1].path == ECHO
