"""What a long body took is free as soon as it is over: it does not wait for Python's collector, which comes seldom."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from headrace.core import Decision, Refusal, RefusalReason
from headrace.extproc import BodyMode, request_body
from headrace.extproc.body_scan import BodyScan
from headrace.extproc.events import PickNeeded

from . import messages as m
from .messages import PICK, Gateway

LONG = b'{"model":"m","messages":[{"role":"user","content":"%b"}],"x":[' + b"[[[[[]]]]]," * 5000 + b"0]}"
BODIES = {
    "read": LONG % (b"p" * 300_000),
    "malformed": LONG % (b"p" * 300_000) + b"]",
    "too complex": b'{"x":[' + b"[]," * 300_000 + b"0]}",
}


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[weakref.ref[BodyScan]]]:
    """Every scan that is made."""
    made: list[weakref.ref[BodyScan]] = []

    def noted() -> BodyScan:
        scan = BodyScan()
        made.append(weakref.ref(scan))
        return scan

    monkeypatch.setattr(request_body, "BodyScan", noted)
    gc.collect()
    gc.disable()
    yield made
    gc.enable()


@pytest.mark.parametrize("outcome", [Decision((PICK,)), Refusal(429, RefusalReason.SATURATED, "no")])
@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_was_read(name: str, outcome: Decision | Refusal, scans: list[weakref.ref[BodyScan]]) -> None:
    gateway = Gateway(outcome=outcome)
    gateway.send(m.request_headers(protocol_config=m.config(BodyMode.FULL_DUPLEX_STREAMED)))
    content = BODIES[name]
    for at in range(0, len(content), 60_000):
        gateway.send(m.body("request_body", content[at : at + 60_000], at + 60_000 >= len(content)))
    assert len(scans) == 1
    gateway.stream.close()
    assert scans[0]() is None


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_stream_that_ends_in_the_middle(steps: int, scans: list[weakref.ref[BodyScan]]) -> None:
    gateway = Gateway()
    stream = gateway.stream
    stream.feed(m.request_headers(protocol_config=m.config(BodyMode.BUFFERED)).SerializeToString())
    stream.feed(m.body("request_body", BODIES["read"], True).SerializeToString())
    for _ in range(steps):
        stream.go_on()
    assert not any(isinstance(event, PickNeeded) for event in stream.take_events())
    ended = weakref.ref(stream.machine)
    stream.close()
    assert scans[0]() is None
    del stream, gateway
    assert ended() is None
