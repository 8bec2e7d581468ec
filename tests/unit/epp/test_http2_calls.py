"""ext_proc over our own HTTP/2, without sockets: what is answered at once, what waits, and what is left of it."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import Any

import pytest

from headrace.config.limits import STEP_BYTES
from headrace.core import FailureMode, Refusal, RefusalReason, Request
from headrace.epp.composition import Components
from headrace.epp.http2_calls import Calls
from headrace.epp.service import ExtProcService
from headrace.extproc import BodyMode
from headrace.extproc.http2 import BufferBudget, Connection, Limits, frames, grpc
from headrace.protocol import rpc
from headrace.serving.health import Health
from headrace.xds.envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from ..extproc import messages as m
from ..extproc.http2.peer import GREETING, SETTINGS_ACK, Answer, answers, data, grpc_message
from ..extproc.http2.peer import headers as opened
from .test_director import Clock, director, endpoints

PROCESS = f"/{rpc.EXT_PROC_SERVICE}/Process"
BODY = json.dumps({"model": "m", "prompt": "p"}).encode()
CONFIG = m.config(BodyMode.FULL_DUPLEX_STREAMED, BodyMode.FULL_DUPLEX_STREAMED)
HEADERS = m.request_headers(protocol_config=CONFIG)
ASKED = (HEADERS, m.body("request_body", BODY, True))
ANSWERED = (m.response_headers({":status": "200"}), m.body("response_body", b"{}", True))


class Gateway:
    """One connection to a picker. What it says is handled at once."""

    def __init__(self, *, synced: bool = True, **changes: Any) -> None:
        self.clock = Clock()
        self.picker: Components = director(clock=self.clock, **changes)
        if synced:
            self.know_the_pool()
        service = ExtProcService(
            self.picker.director, self.picker.pool, self.picker.metrics, m.settings(body_seconds=5.0)
        )
        self.healthy = True
        self.health = Health({"": lambda: self.healthy})
        self.calls = Calls(service, self.health)
        self.wakes = 0
        self.connection = Connection(
            self.calls,
            Limits(),
            BufferBudget(1 << 24),
            now=0.0,
            on_output=lambda: setattr(self, "wakes", self.wakes + 1),
        )
        self.output = b""
        self.say(GREETING + SETTINGS_ACK)

    def know_the_pool(self) -> None:
        self.picker.pool.endpoints_changed(endpoints(2), FailureMode.CLOSE)

    def say(self, raw: bytes) -> None:
        self.connection.receive(raw, 0.0)
        while self.connection.more:
            self.connection.receive(b"", 0.0)
        self.output += self.connection.take_output()

    def begin(self, stream_id: int, *messages: pb.ProcessingRequest, end: bool = False, observed: bool = False) -> None:
        extra = [("x-headrace-observed", "true")] if observed else []
        self.say(opened(stream_id, *extra, path=PROCESS))
        self.go_on(stream_id, *messages, end=end)

    def go_on(self, stream_id: int, *messages: pb.ProcessingRequest, end: bool = False) -> None:
        for number, message in enumerate(messages, 1):
            raw = grpc_message(message.SerializeToString())
            for at in range(0, len(raw), 16_000):
                last = at + 16_000 >= len(raw) and number == len(messages)
                self.say(data(stream_id, raw[at : at + 16_000], end=end and last))

    def answer(self, stream_id: int) -> Answer:
        self.output += self.connection.take_output()
        return answers(self.output)[stream_id]

    def responses(self, stream_id: int) -> list[pb.ProcessingResponse]:
        return [pb.ProcessingResponse.FromString(raw) for raw in self.answer(stream_id).messages]

    def nothing_is_left(self) -> None:
        assert self.connection.stream_count == 0
        assert len(self.picker.pool.ledger) == 0
        assert self.calls.collecting == {}
        assert not self.calls._tasks
        assert all(series._value.get() == 0 for series in self.picker.metrics.streams.values())


def destination(response: pb.ProcessingResponse) -> str:
    return m.set_headers(response.request_headers.response.header_mutation).get(m.DESTINATION, "")


def test_a_pick_that_does_not_wait_needs_no_event_loop() -> None:
    gateway = Gateway()
    gateway.begin(1, *ASKED)
    first, body = gateway.responses(1)
    assert destination(first) in {"10.0.0.1:8000", "10.0.0.2:8000"}
    assert body.request_body.response.body_mutation.streamed_response.body == BODY
    assert len(gateway.picker.pool.ledger) == 1
    gateway.go_on(1, *ANSWERED, end=True)
    assert gateway.answer(1).trailers == {"grpc-status": "0"}
    gateway.nothing_is_left()


def test_a_pick_whose_response_others_observe_ends_its_stream() -> None:
    gateway = Gateway()
    config = m.config(BodyMode.FULL_DUPLEX_STREAMED)
    gateway.begin(1, m.request_headers(protocol_config=config), ASKED[1], observed=True)
    assert destination(gateway.responses(1)[0])
    assert gateway.answer(1).trailers == {"grpc-status": "0"}
    assert gateway.answer(1).reset == frames.NO_ERROR
    assert gateway.connection.stream_count == 0


@pytest.mark.parametrize("leave", [False, True], ids=["stays", "leaves"])
async def test_a_pick_waits_until_the_pool_is_known(leave: bool) -> None:
    gateway = Gateway(synced=False, pick_deadline=60.0)
    gateway.begin(1, *ASKED)
    # More of the stream is not heard yet.
    gateway.go_on(1, ANSWERED[0])
    await asyncio.sleep(0)
    assert 1 not in answers(gateway.output)
    if leave:
        gateway.say(frames.rst_stream(1, frames.CANCEL))
    gateway.know_the_pool()
    for _ in range(10):
        await asyncio.sleep(0)
    if leave:
        assert 1 not in answers(gateway.output + gateway.connection.take_output())
    else:
        assert gateway.wakes > 0
        assert [r.WhichOneof("response") for r in gateway.responses(1)] == [
            *("request_headers", "request_body", "response_headers")
        ]
        gateway.go_on(1, ANSWERED[1], end=True)
    gateway.nothing_is_left()


class Gate:
    """Admission that lets nobody go before it is told."""

    may_wait = True

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.waiting = 0

    def admit_at_once(self, request: Request) -> Refusal | None:
        raise AssertionError("it may have to wait")

    async def admit(self, request: Request) -> Refusal | None:
        self.waiting += 1
        try:
            await self.open.wait()
        finally:
            self.waiting -= 1
        return Refusal(429, RefusalReason.SATURATED, "full") if request.request_id == "refused" else None

    def picked(self) -> None:
        pass


async def test_admission_may_hold_and_refuse() -> None:
    gateway = Gateway()
    gate = gateway.picker.director.admission = Gate()
    refused = m.request_headers({**m.REQUEST, "x-request-id": "refused"}, protocol_config=CONFIG)
    gateway.begin(1, *ASKED)
    gateway.begin(3, refused, ASKED[1])
    gateway.begin(5, *ASKED)
    gateway.begin(7, *ASKED)
    # One leaves before its task has begun, another while it waits.
    gateway.say(frames.rst_stream(7, frames.CANCEL))
    await asyncio.sleep(0)
    assert gate.waiting == 3
    gateway.say(frames.rst_stream(5, frames.CANCEL))
    gate.open.set()
    for _ in range(10):
        await asyncio.sleep(0)
    assert gate.waiting == 0
    assert destination(gateway.responses(1)[0])
    [refusal] = gateway.responses(3)
    assert refusal.immediate_response.status.code == 429
    gateway.go_on(1, *ANSWERED, end=True)
    gateway.say(data(3, b"", end=True))
    gateway.nothing_is_left()


async def test_a_long_body_is_read_in_turns_with_others() -> None:
    gateway = Gateway()
    prompt = json.dumps({"model": "m", "prompt": "x" * (20 * STEP_BYTES)}).encode()
    gateway.begin(1, HEADERS, m.body("request_body", prompt, True))
    assert 1 not in answers(gateway.output)
    gateway.begin(3, *ASKED)
    assert destination(gateway.responses(3)[0])
    # The gateway takes everything; it is asked for in pieces.
    gateway.say(frames.settings((frames.INITIAL_WINDOW_SIZE, 1 << 24)) + frames.window_update(0, 1 << 24))
    for _ in range(200):
        await asyncio.sleep(0)
    first, *rest = gateway.responses(1)
    assert destination(first)
    assert b"".join(r.request_body.response.body_mutation.streamed_response.body for r in rest) == prompt
    assert gateway.picker.pool.ledger is not None
    gateway.go_on(1, *ANSWERED, end=True)
    gateway.go_on(3, *ANSWERED, end=True)
    gateway.nothing_is_left()


async def test_a_body_that_is_not_taken_on_is_not_piled_up() -> None:
    gateway = Gateway()
    prompt = json.dumps({"model": "m", "prompt": "x" * (4 << 20)}).encode()
    pieces = [prompt[at : at + 60_000] for at in range(0, len(prompt), 60_000)]
    gateway.begin(1, HEADERS)
    for number, piece in enumerate(pieces, 1):
        gateway.go_on(1, m.body("request_body", piece, number == len(pieces)))
        while number < len(pieces) and gateway.connection._streams.open[1]._paused:  # noqa: ASYNC110
            await asyncio.sleep(0)
    for _ in range(300):
        await asyncio.sleep(0)
    # Only the protocol's first window was given.
    assert len(gateway.output) < 100_000
    stream = gateway.connection._streams.open[1]
    assert stream.unsent_bytes < 2 << 20
    gateway.say(frames.settings((frames.INITIAL_WINDOW_SIZE, 1 << 24)) + frames.window_update(0, 1 << 24))
    for _ in range(300):
        await asyncio.sleep(0)
    rest = gateway.responses(1)[1:]
    assert b"".join(r.request_body.response.body_mutation.streamed_response.body for r in rest) == prompt
    gateway.say(frames.rst_stream(1, frames.CANCEL))
    gateway.nothing_is_left()


async def test_bodies_that_do_not_come_are_given_up() -> None:
    gateway = Gateway()
    for number in (1, 3):
        gateway.begin(number, HEADERS, m.body("request_body", BODY[:5], False))
        gateway.clock.now += 3.0
    watching = asyncio.create_task(gateway.calls.run())
    while gateway.connection.stream_count == 2:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    [late] = gateway.responses(1)
    assert late.immediate_response.status.code == 408
    assert gateway.connection.stream_count == 1
    gateway.go_on(3, m.body("request_body", BODY[5:], True))
    assert destination(gateway.responses(3)[0])
    gateway.go_on(3, *ANSWERED, end=True)
    watching.cancel()
    gateway.nothing_is_left()


def test_a_gateway_that_breaks_the_protocol_and_a_fault_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway()
    gateway.say(opened(1, path=PROCESS) + data(1, grpc_message(b"\xff\xff")))
    assert gateway.answer(1).trailers["grpc-status"] == str(grpc.INVALID_ARGUMENT)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(gateway.picker.director, "decide_at_once", fail)
    gateway.begin(3, *ASKED)
    assert gateway.answer(3).trailers["grpc-status"] == str(grpc.INTERNAL)
    gateway.nothing_is_left()


def test_a_fault_at_the_end_of_one_stream_leaves_the_others_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway()
    for number in (1, 3, 5):
        gateway.begin(number, *ASKED)
    finished = gateway.picker.pool.finished
    failed: list[object] = []

    def fail_once(entry: Any) -> None:
        finished(entry)
        if not failed:
            failed.append(entry)
            raise ZeroDivisionError

    monkeypatch.setattr(gateway.picker.pool, "finished", fail_once)
    gateway.connection.lost()
    assert len(failed) == 1
    gateway.nothing_is_left()


def test_health() -> None:
    gateway = Gateway()
    check, watch = f"/{rpc.HEALTH_SERVICE}/Check", f"/{rpc.HEALTH_SERVICE}/Watch"
    gateway.say(opened(1, path=check) + data(1, grpc_message(b""), end=True))
    assert (gateway.answer(1).messages, gateway.answer(1).trailers) == ([b"\x08\x01"], {"grpc-status": "0"})
    gateway.say(opened(3, path=check) + data(3, grpc_message(b"\x0a\x01x"), end=True))
    assert gateway.answer(3).trailers["grpc-status"] == str(grpc.NOT_FOUND)
    gateway.say(opened(5, path=check, flags=frames.END_STREAM))
    assert gateway.answer(5).trailers["grpc-status"] == str(grpc.INTERNAL)
    gateway.say(opened(7, path=watch) + data(7, grpc_message(b""), end=True))
    gateway.healthy = False
    gateway.health.changed()
    gateway.health.changed()
    assert gateway.answer(7).messages == [b"\x08\x01", b"\x08\x02"]
    gateway.say(frames.rst_stream(7, frames.CANCEL))
    gateway.healthy = True
    gateway.health.changed()
    gateway.nothing_is_left()


def test_clients_that_leave_in_every_phase_leave_nothing_behind() -> None:
    gateway = Gateway()
    raw = [data(1, grpc_message(message.SerializeToString())) for message in (*ASKED, *ANSWERED)]
    begun = opened(1, path=PROCESS)
    phases = [b"".join((begun, *raw[:count])) for count in range(len(raw) + 1)]
    counts = []
    number = 1
    gc.disable()
    try:
        for _ in range(3):
            gc.collect()
            for _ in range(400):
                for phase in phases:
                    gateway.say(renumbered(phase, number) + frames.rst_stream(number, frames.CANCEL))
                    gateway.connection._allowance.points = 1e4
                    number += 2
            gateway.nothing_is_left()
            gateway.output = b""
            # Streams leave no cycles: what they were is gone without the collector.
            assert gc.collect() < 100
            counts.append(len(gc.get_objects()))
    finally:
        gc.enable()
    # The first turn fills what is kept: decisions, prefixes, series.
    assert counts[2] - counts[1] < 500


def renumbered(raw: bytes, stream_id: int) -> bytes:
    """The same frames on another stream."""
    out = b""
    while raw:
        high, low, kind, flags, _ = frames.HEADER.unpack_from(raw)
        end = frames.HEADER_BYTES + (high << 16 | low)
        out += frames.HEADER.pack(high, low, kind, flags, stream_id) + raw[frames.HEADER_BYTES : end]
        raw = raw[end:]
    return out
