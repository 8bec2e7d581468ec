"""What a peer may do for nothing has an end; what a gateway does for its users has none."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from headrace.extproc.http2 import BufferBudget, Limits, frames
from headrace.extproc.http2.frames import END_HEADERS, frame

from .peer import GREETING, SINK, Server, answers, block, data, goaway, grpc_message, headers, request, written

HELLO = grpc_message(b"hello")
FIELDS = block(request(path=SINK))


def opened(stream_id: int) -> bytes:
    return frame(frames.HEADERS, END_HEADERS, stream_id, FIELDS)


def rapid_reset(number: int) -> bytes:
    stream_id = 2 * number + 1
    return opened(stream_id) + frames.rst_stream(stream_id, frames.CANCEL)


def bad_request(number: int) -> bytes:
    return frame(frames.HEADERS, END_HEADERS, 2 * number + 1, b"\x20\x83")


def made_us_reset(number: int) -> bytes:
    stream_id = 2 * number + 1
    return opened(stream_id) + frame(frames.WINDOW_UPDATE, 0, stream_id, bytes(4))


# Each gives the bytes of one bad deed by its number.
FLOODS: dict[str, Callable[[int], bytes]] = {
    "rapid reset": rapid_reset,
    "bad requests": bad_request,
    "requests that we reset": made_us_reset,
    "settings": lambda _: frames.settings((frames.INITIAL_WINDOW_SIZE, 1000)),
    "acknowledged settings": lambda _: frame(frames.SETTINGS, frames.ACK, 0),
    "pings": lambda _: frame(frames.PING, 0, 0, bytes(8)),
    "answered pings": lambda _: frame(frames.PING, frames.ACK, 0, bytes(8)),
    "empty frames": lambda n: (opened(1) if not n else b"") + data(1, b""),
    "empty frames with padding": lambda n: (opened(1) if not n else b"") + frame(frames.DATA, 8, 1, b"\x03\0\0\0"),
    "priorities": lambda _: frame(frames.PRIORITY, 0, 1, b"\0\0\0\x09\x0f"),
    "small windows": lambda _: frames.window_update(0, 1),
    "unknown frames": lambda _: frame(0xAA, 0, 0, b""),
    "resets of nothing": lambda n: (rapid_reset(0) if not n else b"") + frames.rst_stream(1, frames.CANCEL),
    "data for streams that are over": lambda n: headers(2 * n + 1, path="/nowhere") + data(2 * n + 1, b"x") * 5,
    "goaways": lambda _: frames.goaway(0, 0),
}


# Frames that need no stream, and cost next to nothing.
CHEAP = ("acknowledged settings", "priorities", "small windows", "unknown frames", "resets of nothing", "goaways")


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_ends_the_connection(name: str) -> None:
    server = Server()
    number = 0
    while not server.connection.closed and number < 15_000:
        server.feed(FLOODS[name](number))
        number += 1
    assert server.connection.closed
    assert server.connection.fault is not None
    assert server.connection.fault.code == frames.ENHANCE_YOUR_CALM
    assert goaway(server.output) is not None
    assert number < (15_000 if name in CHEAP else 10_000)
    assert all(call.events[-1] == "ended" for call in server.application.calls.values())
    assert server.connection.stream_count == 0


def test_crumbs_of_messages_are_counted() -> None:
    server = Server()
    server.feed(opened(1) + data(1, b"\0\0\xff\xff\xff"))
    for _ in range(15_000):
        server.feed(data(1, b"x"))
    assert server.connection.fault is not None
    assert server.connection.fault.code == frames.ENHANCE_YOUR_CALM


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([b""] * 100, id="empty"),
        pytest.param([b"x"] * 100, id="small"),
        pytest.param([b"\x00\x01x\x7f" + b"y" * 16_000] * 3, id="large"),
    ],
)
def test_continuations_end_soon(parts: list[bytes]) -> None:
    server = Server()
    server.feed(frame(frames.HEADERS, 0, 1, FIELDS))
    for part in parts:
        server.feed(frame(frames.CONTINUATION, 0, 1, part))
    assert server.connection.fault is not None
    assert server.connection.fault.code == frames.ENHANCE_YOUR_CALM
    assert server.application.calls == {}


def test_five_thousand_clients_leave_at_once_ten_times() -> None:
    server = Server()
    number = 1
    for _ in range(10):
        first = number
        for stream_id in range(first, first + 10_000, 2):
            server.feed(opened(stream_id) + data(stream_id, HELLO))
        assert server.connection.stream_count == 5000
        for stream_id in range(first, first + 10_000, 2):
            server.feed(frames.rst_stream(stream_id, frames.CANCEL))
        number = first + 10_000
        assert server.connection.stream_count == 0
    assert not server.connection.closed
    server.feed(headers(number) + data(number, HELLO, end=True))
    assert answers(server.output)[number].messages == [b"hello"]


def test_streams_that_we_end_first_are_reset_at_no_cost() -> None:
    server = Server()
    for stream_id in range(1, 40_001, 2):
        server.feed(opened(stream_id) + data(stream_id, HELLO))
        server.call(stream_id).stream.finish()
        server.sent()
        server.feed(frames.rst_stream(stream_id, frames.CANCEL))
    assert not server.connection.closed


def test_who_probes_slowly_may_do_so_forever() -> None:
    server = Server()
    for second in range(20_000):
        server.now = float(second)
        sent = server.feed(frame(frames.PING, 0, 0, b"envoy-ka"))
        assert [(k, f, p) for k, f, _, p in written(sent)] == [(frames.PING, frames.ACK, b"envoy-ka")]


def sweep_twice(server: Server) -> None:
    server.connection.sweep()
    server.connection.sweep()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        frames.PREFACE[:10],
        frames.PREFACE,
        GREETING + b"\0\0\5",
        GREETING + frame(frames.HEADERS, 0, 1, FIELDS[:5]),
        GREETING + headers(1) + data(1, HELLO)[:-1],
    ],
)
def test_half_of_anything_is_not_waited_for(raw: bytes) -> None:
    server = Server(greet=False)
    server.feed(raw)
    server.connection.sweep()
    assert not server.connection.closed
    server.connection.sweep()
    assert server.connection.closed
    assert server.connection.fault is not None


def test_what_moves_is_not_swept() -> None:
    server = Server()
    server.feed(opened(1) + data(1, HELLO) + opened(3) + data(3, HELLO[:6]))
    for _ in range(5):
        server.feed(data(1, HELLO)[:-1])
        server.connection.sweep()
        server.feed(data(1, HELLO)[-1:])
    # The second one never said a thing.
    assert answers(server.output + server.sent())[3].reset == frames.CANCEL
    assert server.call(3).events == ["ended"]
    sweep_twice(server)
    assert not server.connection.closed
    assert server.connection.stream_count == 1


class Claimant:
    def __init__(self) -> None:
        self.held = 0
        self.grants = 0

    def granted(self) -> None:
        self.grants += 1


def test_one_at_a_time_goes_on_when_the_budget_is_used() -> None:
    budget = BufferBudget(100)
    a, b, c = claimants = [Claimant() for _ in range(3)]
    for claimant in claimants:
        budget.hold(claimant, 50)
    assert [budget.grants(claimant) for claimant in claimants] == [True, False, False]
    budget.hold(a, 90)
    assert budget.grants(a)
    budget.step_back(a)
    assert [one.grants for one in claimants] == [0, 1, 0]
    budget.rotate()
    assert [one.grants for one in claimants] == [0, 1, 1]
    budget.hold(a, 0)
    # Exactly as much as there may be is held by the others: who waits goes on as the first does.
    budget.hold(c, 0)
    assert [one.grants for one in claimants] == [0, 2, 1]
    budget.hold(b, 0)
    assert budget.held == 0
    assert budget.grants(a)


def test_twice_the_budget_is_for_the_first_alone() -> None:
    budget = BufferBudget(100)
    first, other = Claimant(), Claimant()
    budget.hold(first, 150)
    assert budget.grants(first)
    budget.hold(other, 49)
    assert not budget.refuses(other)
    budget.hold(other, 50)
    assert budget.refuses(other)
    assert not budget.refuses(first)


def test_a_flood_leaves_nothing_behind() -> None:
    server = Server(Limits(max_streams=100))
    for number in range(2000):
        server.feed(rapid_reset(number))
    streams = server.connection._streams
    assert (len(streams.open), len(streams._ended_early), len(streams._refusals)) == (0, 0, 0)


def test_what_is_kept_of_streams_that_we_ended_has_a_limit() -> None:
    server = Server()
    for number in range(17_000):
        server.now += 1.0
        server.feed(headers(2 * number + 1, path="/nowhere"))
    assert len(server.connection._streams._ended_early) == 16_384
