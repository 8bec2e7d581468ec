"""What streams hold of bodies: one account for all, never over its budget, and empty when they are over."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config.limits import ByteBudget
from headrace.core import Decision, Refusal, RefusalReason
from headrace.extproc import (
    BodyMode,
    ConversationSettings,
    ExtProcStream,
    MalformedMessage,
    ProtocolViolation,
    request_body,
)
from headrace.extproc.events import PickNeeded, RequestRefused
from headrace.extproc.request_body import PIECE_OVERHEAD, WHOLE_BYTES
from headrace.xds.envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from . import messages as m
from .messages import PICK, Gateway

BODY = json.dumps({"model": "m", "prompt": "p" * 30}).encode()
MODES = [mode for mode in BodyMode if mode is not BodyMode.GRPC]
PIECES = st.sampled_from([b"", b"x", BODY, BODY[:20], b"x" * 40, b"x" * 90])
MESSAGES = st.one_of(
    st.builds(
        lambda mode, end: m.request_headers(end_of_stream=end, protocol_config=m.config(mode, mode)),
        st.sampled_from(MODES),
        st.booleans(),
    ),
    st.builds(m.body, st.just("request_body"), PIECES, st.booleans()),
    st.builds(m.body, st.just("response_body"), PIECES, st.booleans()),
    st.sampled_from(["application/json", "text/event-stream", "x"]).map(
        lambda kind: m.response_headers({":status": "200", "content-type": kind})
    ),
    st.sampled_from(["request_trailers", "response_trailers"]).map(m.trailers),
)
OUTCOMES = [Decision((PICK,)), Decision((PICK,), model="new"), Refusal(429, RefusalReason.SATURATED, "no")]
STEPS = st.one_of(MESSAGES, st.sampled_from([*OUTCOMES, "late", "sent", "close"]))


class Driven:
    """A stream, and whether it waits for a pick."""

    def __init__(self, settings: ConversationSettings) -> None:
        self.stream: ExtProcStream | None = ExtProcStream(settings)
        self.picking = False

    def step(self, step: Any) -> None:
        stream = self.stream
        if stream is None:
            return
        try:
            if step == "close":
                self.end()
            elif step == "sent":
                stream.sent()
            elif step == "late":
                stream.give_up_body()
            elif isinstance(step, Decision | Refusal):
                if self.picking:
                    self.picking = False
                    stream.resume(step)
            else:
                stream.feed(step.SerializeToString())
            while stream.busy:
                stream.go_on()
                self.picking |= any(isinstance(event, PickNeeded) for event in stream.take_events())
            self.picking |= any(isinstance(event, PickNeeded) for event in stream.take_events())
        except (MalformedMessage, ProtocolViolation):
            self.end()

    def end(self) -> None:
        if self.stream is not None:
            self.stream.close()
            self.stream = None


@pytest.mark.parametrize("whole_bytes", [WHOLE_BYTES, 30], ids=["read at once", "scanned"])
@given(st.lists(st.tuples(st.integers(0, 2), STEPS), max_size=40), st.integers(100, 900))
def test_the_account_is_empty_in_the_end_whatever_happened(
    whole_bytes: int, steps: list[tuple[int, Any]], most: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(request_body, "WHOLE_BYTES", whole_bytes)
        check_account(steps, most)


def check_account(steps: list[tuple[int, Any]], most: int) -> None:
    budget = ByteBudget(most, small=90)
    settings = m.settings(bodies=budget, max_body_bytes=120)
    streams = [Driven(settings) for _ in range(3)]
    for number, step in steps:
        streams[number].step(step)
        assert 0 <= budget.held <= most
    for driven in streams:
        driven.end()
    assert budget.held == settings.responses.held == 0


def uploading(settings: ConversationSettings, size: int) -> Gateway:
    """A request whose body has not come to its end."""
    gateway = Gateway(settings=settings)
    gateway.send(m.request_headers(protocol_config=m.config(BodyMode.FULL_DUPLEX_STREAMED)))
    gateway.send(m.body("request_body", b"x" * size, False))
    return gateway


def refused(answers: list[pb.ProcessingResponse]) -> tuple[int, dict[str, str]]:
    (answer,) = answers
    immediate = answer.immediate_response
    return int(immediate.status.code), m.set_headers(immediate.headers)


def test_beyond_the_budget_a_request_is_refused_and_told_when_to_come_again() -> None:
    budget = ByteBudget(1300, small=200)
    settings = m.settings(bodies=budget)
    holding = uploading(settings, 700)
    assert budget.held == 700 + PIECE_OVERHEAD
    gateway = Gateway(settings=settings)
    gateway.send(m.request_headers(protocol_config=m.config(BodyMode.FULL_DUPLEX_STREAMED)))
    status, headers = refused(gateway.send(m.body("request_body", b"x" * 201, False)))
    assert (status, headers["retry-after"]) == (503, "1")
    assert headers["x-llm-d-request-dropped-reason"] == "rejected-body-memory"
    (event,) = gateway.events
    assert isinstance(event, RequestRefused)
    assert (event.status, event.reason) == (503, "rejected-body-memory")
    # What is already on its way is ignored, and held by nobody.
    assert gateway.send(m.body("request_body", b"x" * 50, True)) == []
    assert budget.held == 700 + PIECE_OVERHEAD
    small = Gateway(settings=settings)
    small.send(m.request_headers(protocol_config=m.config(BodyMode.FULL_DUPLEX_STREAMED)))
    assert small.send(m.body("request_body", BODY, True))
    holding.stream.close()
    assert budget.held == len(BODY) + PIECE_OVERHEAD
    small.stream.sent()
    assert budget.held == 0


@pytest.mark.parametrize("mode", [BodyMode.FULL_DUPLEX_STREAMED, BodyMode.BUFFERED])
def test_a_body_counts_until_its_answers_are_sent(mode: BodyMode) -> None:
    settings = m.settings(bodies=ByteBudget(1000))
    gateway = Gateway(settings=settings)
    gateway.send(m.request_headers(protocol_config=m.config(mode)))
    gateway.stream.sent()
    gateway.send(m.body("request_body", BODY, True))
    assert settings.bodies.held == len(BODY) + PIECE_OVERHEAD
    gateway.stream.sent()
    assert settings.bodies.held == 0


def test_a_body_that_is_late_is_answered_408() -> None:
    settings = m.settings(bodies=ByteBudget(1000))
    gateway = uploading(settings, 10)
    assert gateway.stream.collecting
    (answer,) = gateway.stream.give_up_body()
    read = pb.ProcessingResponse.FromString(answer)
    assert refused([read])[0] == 408
    assert settings.bodies.held == 0
    assert not gateway.stream.collecting
    assert gateway.stream.give_up_body() == []


def test_only_bodies_in_pieces_can_be_late() -> None:
    gateway = Gateway()
    assert not gateway.stream.collecting
    gateway.send(m.request_headers(protocol_config=m.config(BodyMode.BUFFERED)))
    assert not gateway.stream.collecting
    gateway.send(m.body("request_body", BODY, True))
    assert not gateway.stream.collecting
