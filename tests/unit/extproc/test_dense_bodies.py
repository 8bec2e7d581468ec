"""Bodies that are short enough to be read at once, and cost too much for that."""

from __future__ import annotations

import pytest

from headrace.extproc import BodyMode
from headrace.extproc.body import WHOLE_BYTES

from . import messages as m
from .messages import Gateway


def steps_of(content: bytes, **settings: int) -> tuple[int, str]:
    """In how many steps a body is read, and the model that it names."""
    gateway = Gateway(settings=m.settings(**settings))
    gateway.stream.feed(m.request_headers(protocol_config=m.config(BodyMode.BUFFERED)).SerializeToString())
    gateway.stream.feed(m.body("request_body", content, True).SerializeToString())
    steps = 0
    while gateway.stream.busy:
        gateway.stream.go_on()
        steps += 1
    (event,) = gateway.stream.take_events()
    return steps, event.request.model  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("piece", "count", "at_once"),
    [(b"[],", 4000, True), (b"[],", 40_000, False), (b'{"":0},', 20_000, False), (b'"x",', 40_000, True)],
)
def test_one_of_many_lists_or_objects_is_read_in_steps(piece: bytes, count: int, at_once: bool) -> None:
    content = b'{"x":[' + piece * count + b'0],"model":"m","prompt":"%b"}' % (b"p" * 40_000)
    assert len(content) <= WHOLE_BYTES
    steps, model = steps_of(content)
    assert model == "m"
    assert (steps == 0) == at_once


def test_one_that_is_longer_than_is_read_passes_unread() -> None:
    content = b'{"x":[' + b"[]," * 20_000 + b'0],"model":"m"}'
    assert steps_of(content, max_parsed_body_bytes=len(content) - 1) == (0, "")
    steps, model = steps_of(content, max_parsed_body_bytes=len(content))
    assert steps > 0
    assert model == "m"


def test_a_long_body_may_begin_with_a_short_piece() -> None:
    content = b"   " + b'{"x":"' + b"x" * 300_000 + b'","model":"m"}'
    gateway = Gateway()
    gateway.send(m.request_headers({**m.REQUEST, ":path": "/other"}))
    for piece, last in ((content[:2], False), (content[2:100_000], False), (content[100_000:], True)):
        gateway.send(m.body("request_body", piece, last))
    assert gateway.pick.request.model == "m"
