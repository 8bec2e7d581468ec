"""Bodies that are short enough to be read at once, and cost too much for that."""

from __future__ import annotations

import pytest

from headrace.extproc import BodyMode
from headrace.extproc.body import WHOLE_BYTES

from . import messages as m
from .messages import Gateway


def steps_of(content: bytes) -> tuple[int, str]:
    """In how many steps a body is read, and the model that it names."""
    gateway = Gateway()
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
