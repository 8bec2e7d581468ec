"""The conversation, in every mode and any chunking: bytes come through unchanged, in order, ended exactly once."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Decision, Refusal, RefusalReason
from headrace.extproc import BodyMode, ExtProcStream, MalformedMessage, ProtocolViolation, request_body
from headrace.extproc.events import (
    PickNeeded,
    RequestObserved,
    RequestRefused,
    ResponseChunk,
    ResponseEnded,
    ResponseStarted,
)
from headrace.extproc.request_body import WHOLE_BYTES
from headrace.xds.envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from . import messages as m
from .messages import DESTINATION, PICK, REQUEST, Gateway

UNTRUSTED = {DESTINATION, f"{DESTINATION}-served", f"{DESTINATION}-subset"}
OTHER_PATH = {**REQUEST, ":path": "/other"}


@pytest.fixture(autouse=True, scope="module", params=[WHOLE_BYTES, 40], ids=["read at once", "scanned"])
def whole_bytes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test of bodies up to this size that are read at once, and of those that are scanned."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(request_body, "WHOLE_BYTES", request.param)
        yield


def check_pick(answer: pb.ProcessingResponse, mutation: pb.HeaderMutation) -> None:
    assert m.set_headers(mutation)[DESTINATION] == PICK
    assert m.picked_metadata(answer) == PICK
    assert set(mutation.remove_headers) == UNTRUSTED


def cut(content: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(c % (len(content) + 1) for c in cuts), len(content)]
    return [content[a:b] for a, b in itertools.pairwise(edges)]


BODIES = st.one_of(
    st.binary(max_size=300),
    st.sampled_from([62_000, 62_001, 124_000, 200_000]).map(lambda n: b"x" * n),
    st.dictionaries(st.sampled_from(["model", "prompt", "x"]), st.text(max_size=20)).map(
        lambda d: json.dumps(d).encode()
    ),
)
CUTS = st.lists(st.integers(0, 1 << 20), max_size=6)


@given(content=BODIES, cuts=CUTS, with_trailers=st.booleans(), empty_end=st.booleans(), reorder=st.booleans())
def test_full_duplex_requests(
    content: bytes, cuts: list[int], with_trailers: bool, empty_end: bool, reorder: bool
) -> None:
    gateway = Gateway(reorder=reorder)
    first = m.request_headers(OTHER_PATH, protocol_config=m.config(BodyMode.FULL_DUPLEX_STREAMED))
    assert gateway.send(first) == []
    pieces = cut(content, cuts)
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1 and not with_trailers and not empty_end
        answers = gateway.send(m.body("request_body", piece, last))
        assert bool(answers) == last
    if with_trailers:
        gateway.send(m.trailers("request_trailers"))
    elif empty_end:
        gateway.send(m.body("request_body", b"", True))
    kinds = [answer.WhichOneof("response") for answer in gateway.answers]
    bodies = [
        a.request_body.response.body_mutation.streamed_response for a in gateway.answers if a.HasField("request_body")
    ]
    assert kinds == ["request_headers"] + ["request_body"] * len(bodies) + ["request_trailers"] * with_trailers
    headers = gateway.answers[0]
    check_pick(headers, headers.request_headers.response.header_mutation)
    assert b"".join(piece.body for piece in bodies) == content
    assert all(len(piece.body) <= 62_000 for piece in bodies)
    assert (
        [piece.end_of_stream for piece in bodies] == [False] * (len(bodies) - 1) + [True] if not with_trailers else True
    )
    assert not (with_trailers and any(piece.end_of_stream for piece in bodies))
    length = m.set_headers(headers.request_headers.response.header_mutation).get("content-length")
    assert length == (None if with_trailers else str(len(content)))
    assert gateway.pick.request.body_size == len(content)
    assert gateway.stream.request_done


@given(content=BODIES, partial=st.booleans(), with_trailers=st.booleans(), reorder=st.booleans())
def test_buffered_requests(content: bytes, partial: bool, with_trailers: bool, reorder: bool) -> None:
    mode = BodyMode.BUFFERED_PARTIAL if partial else BodyMode.BUFFERED
    gateway = Gateway(reorder=reorder)
    (headers,) = gateway.send(m.request_headers(OTHER_PATH, protocol_config=m.config(mode)))
    mutation = headers.request_headers.response.header_mutation
    assert m.set_headers(mutation) == {}
    assert set(mutation.remove_headers) == UNTRUSTED
    (answer,) = gateway.send(m.body("request_body", content, not with_trailers))
    check_pick(answer, answer.request_body.response.header_mutation)
    assert not answer.request_body.response.HasField("body_mutation")
    if with_trailers:
        (end,) = gateway.send(m.trailers("request_trailers"))
        assert end.WhichOneof("response") == "request_trailers"
    assert gateway.stream.request_done


@given(pieces=st.lists(st.binary(max_size=50), min_size=1), reorder=st.booleans())
def test_streamed_requests_are_picked_from_their_headers(pieces: list[bytes], reorder: bool) -> None:
    gateway = Gateway(reorder=reorder)
    (headers,) = gateway.send(m.request_headers(protocol_config=m.config(BodyMode.STREAMED)))
    check_pick(headers, headers.request_headers.response.header_mutation)
    for number, piece in enumerate(pieces):
        assert not gateway.stream.request_done
        (answer,) = gateway.send(m.body("request_body", piece, number == len(pieces) - 1))
        assert answer == pb.ProcessingResponse(request_body=pb.BodyResponse())
    assert gateway.stream.request_done


@pytest.mark.parametrize("mode", list(BodyMode))
@pytest.mark.parametrize("reorder", [False, True])
def test_a_request_without_a_body_is_picked_at_once(mode: BodyMode, reorder: bool) -> None:
    gateway = Gateway(reorder=reorder)
    headers = {":method": "GET", ":path": "/v1/models"}
    (answer,) = gateway.send(m.request_headers(headers, True, protocol_config=m.config(mode)))
    check_pick(answer, answer.request_headers.response.header_mutation)
    assert m.set_headers(answer.request_headers.response.header_mutation)["x-request-id"] == "new-id"
    assert gateway.pick.request.request_id == "new-id"
    assert gateway.stream.request_done


def test_without_a_protocol_config_the_protocols_own_mode_is_meant() -> None:
    gateway = Gateway()
    assert gateway.send(m.request_headers()) == []
    answers = gateway.send(m.body("request_body", b'{"model":"m"}', True))
    assert [a.WhichOneof("response") for a in answers] == ["request_headers", "request_body"]


def test_no_body_mode_picks_from_headers() -> None:
    gateway = Gateway()
    (answer,) = gateway.send(m.request_headers(protocol_config=m.config(BodyMode.NONE)))
    check_pick(answer, answer.request_headers.response.header_mutation)


@given(pieces=st.lists(st.binary(max_size=50), min_size=1))
def test_grpc_pieces_pass_as_they_came(pieces: list[bytes]) -> None:
    gateway = Gateway()
    (answer,) = gateway.send(m.request_headers(protocol_config=m.config(BodyMode.GRPC, BodyMode.GRPC)))
    check_pick(answer, answer.request_headers.response.header_mutation)
    for piece in pieces:
        message = pb.HttpBody(body=piece, grpc_message_compressed=True)
        (answer,) = gateway.send(pb.ProcessingRequest(request_body=message))
        sent = answer.request_body.response.body_mutation.streamed_response
        assert (sent.body, sent.grpc_message_compressed) == (piece, True)
    gateway.send(pb.ProcessingRequest(request_body=pb.HttpBody(end_of_stream_without_message=True)))
    assert gateway.answers[-1].request_body.response.body_mutation.streamed_response.end_of_stream_without_message
    assert gateway.stream.request_done


@given(content=BODIES, cuts=CUTS, with_trailers=st.booleans(), reorder=st.booleans())
def test_full_duplex_responses(content: bytes, cuts: list[int], with_trailers: bool, reorder: bool) -> None:
    gateway = Gateway(reorder=reorder)
    modes = m.config(BodyMode.FULL_DUPLEX_STREAMED, BodyMode.FULL_DUPLEX_STREAMED)
    gateway.send(m.request_headers(end_of_stream=True, protocol_config=modes))
    assert gateway.pick.covers_response
    served = m.metadata("envoy.lb", {f"{DESTINATION}-served": PICK})
    (answer,) = gateway.send(
        m.response_headers({":status": "200", "content-type": "text/event-stream"}, metadata_context=served)
    )
    assert answer == pb.ProcessingResponse(response_headers=pb.HeadersResponse())
    pieces = cut(content, cuts)
    sent: list[Any] = []
    for number, piece in enumerate(pieces):
        answers = gateway.send(m.body("response_body", piece, number == len(pieces) - 1 and not with_trailers))
        assert answers, "each piece is answered at once"
        sent += [a.response_body.response.body_mutation.streamed_response for a in answers]
    assert b"".join(piece.body for piece in sent) == content
    assert all(len(piece.body) <= 62_000 for piece in sent)
    assert sum(piece.end_of_stream for piece in sent) == (not with_trailers)
    if with_trailers:
        (answer,) = gateway.send(m.trailers("response_trailers"))
        assert answer == pb.ProcessingResponse(response_trailers=pb.TrailersResponse())
    assert ResponseStarted(200, PICK, True) in gateway.events
    assert sum(e.size for e in gateway.events if isinstance(e, ResponseChunk)) == len(content)
    assert gateway.events.count(ResponseEnded()) == 1
    assert isinstance(gateway.events[-1], ResponseEnded)


@pytest.mark.parametrize("mode", [BodyMode.STREAMED, BodyMode.BUFFERED, BodyMode.BUFFERED_PARTIAL])
def test_other_response_modes_continue(mode: BodyMode) -> None:
    gateway = Gateway()
    gateway.send(m.request_headers(end_of_stream=True, protocol_config=m.config(BodyMode.NONE, mode)))
    gateway.send(m.response_headers({":status": "200"}))
    (answer,) = gateway.send(m.body("response_body", b"abc", True))
    assert answer == pb.ProcessingResponse(response_body=pb.BodyResponse())
    assert gateway.events[-1] == ResponseEnded()


def test_the_pick_waits_and_what_comes_meanwhile_is_answered_after_it_in_order() -> None:
    stream = ExtProcStream(m.settings())
    stream.feed(m.request_headers(protocol_config=m.config(BodyMode.STREAMED, BodyMode.STREAMED)).SerializeToString())
    assert [type(event) for event in stream.take_events()] == [PickNeeded]
    for piece in (b"a", b"b"):
        assert stream.feed(m.body("request_body", piece, piece == b"b").SerializeToString()) == []
    assert stream.feed(m.trailers("request_trailers").SerializeToString()) == []
    out = [pb.ProcessingResponse.FromString(raw) for raw in stream.resume(Decision((PICK, "10.0.0.8:8000")))]
    kinds = [answer.WhichOneof("response") for answer in out]
    assert kinds == ["request_headers", "request_body", "request_body", "request_trailers"]
    assert m.picked_metadata(out[0]) == f"{PICK},10.0.0.8:8000"
    with pytest.raises(RuntimeError):
        stream.resume(Decision((PICK,)))


@pytest.mark.parametrize("mode", list(BodyMode))
def test_a_refusal_is_an_immediate_answer_and_the_end(mode: BodyMode) -> None:
    refusal = Refusal(429, RefusalReason.SATURATED, "try again", retry_after_seconds=3)
    gateway = Gateway(outcome=refusal)
    gateway.send(m.request_headers(protocol_config=m.config(mode)))
    if not gateway.events:
        gateway.send(m.body("request_body", b"{}", True))
    immediate = gateway.answers[-1].immediate_response
    assert immediate.status.code == 429
    assert immediate.details == "endpoint_picker_rejected_saturated"
    headers = m.set_headers(immediate.headers)
    assert headers["content-type"] == "application/json"
    assert headers["x-llm-d-request-dropped-reason"] == "rejected-saturated"
    assert headers["retry-after"] == "3"
    assert headers["x-request-id"] == "id-1"
    assert json.loads(immediate.body) == {
        "error": {"message": "try again", "type": "rate_limit_error", "param": None, "code": "rejected_saturated"}
    }
    # What was already on its way is not answered.
    assert gateway.send(m.body("request_body", b"more", True)) == []
    assert gateway.send(m.trailers("request_trailers")) == []


def test_a_pick_of_nothing_leaves_the_choice_to_the_gateway() -> None:
    gateway = Gateway(outcome=Decision(()))
    (answer,) = gateway.send(m.request_headers(end_of_stream=True))
    assert not answer.HasField("dynamic_metadata")
    assert m.set_headers(answer.request_headers.response.header_mutation) == {}
    assert set(answer.request_headers.response.header_mutation.remove_headers) == UNTRUSTED


@pytest.mark.parametrize("mode", [BodyMode.FULL_DUPLEX_STREAMED, BodyMode.BUFFERED])
def test_bodies_that_no_server_could_answer_are_refused(mode: BodyMode) -> None:
    gateway = Gateway()
    gateway.send(m.request_headers(protocol_config=m.config(mode)))
    (answer,) = gateway.send(m.body("request_body", b'{"model": "m"', True))
    assert answer.immediate_response.status.code == 400
    (refused,) = gateway.events
    assert isinstance(refused, RequestRefused)
    assert (refused.request.request_id, refused.request.path) == ("id-1", "/v1/completions")
    assert (refused.status, refused.reason) == (400, "bad-request")


def test_a_body_over_the_limit_is_refused() -> None:
    gateway = Gateway(settings=m.settings(max_body_bytes=10))
    gateway.send(m.request_headers())
    assert gateway.send(m.body("request_body", b"x" * 10, False)) == []
    (answer,) = gateway.send(m.body("request_body", b"x", False))
    assert answer.immediate_response.status.code == 413


def test_a_body_over_the_limit_of_parsing_is_picked_for_unread() -> None:
    content = b'{"model":"m","prompt":"abc"}'
    for limit, model in ((len(content), "m"), (len(content) - 1, "")):
        gateway = Gateway(settings=m.settings(max_parsed_body_bytes=limit), outcome=Decision((PICK,)))
        gateway.send(m.request_headers())
        answers = gateway.send(m.body("request_body", content, True))
        assert b"".join(a.request_body.response.body_mutation.streamed_response.body for a in answers) == content
        request = gateway.pick.request
        assert (request.model, bool(request.unread), request.body_size) == (model, not model, len(content))


@pytest.mark.parametrize("mode", [BodyMode.FULL_DUPLEX_STREAMED, BodyMode.BUFFERED])
def test_the_model_is_rewritten_where_it_stands(mode: BodyMode) -> None:
    gateway = Gateway(outcome=Decision((PICK,), model="new"))
    gateway.send(m.request_headers(protocol_config=m.config(mode)))
    content = b'{"prompt": "the \\"model\\": \\"x\\"", "model" : "old", "n": 1.50}'
    answers = gateway.send(m.body("request_body", content, True))
    mutation = answers[-1].request_body.response.body_mutation
    rewritten = mutation.body or mutation.streamed_response.body
    assert rewritten == content.replace(b'"old"', b'"new"')
    if mode is BodyMode.FULL_DUPLEX_STREAMED:
        headers = m.set_headers(answers[0].request_headers.response.header_mutation)
        assert headers["content-length"] == str(len(rewritten))


@pytest.mark.parametrize(
    ("value", "subset"),
    [
        (["10.0.0.1:80", "10.0.0.2"], ("10.0.0.1:80", "10.0.0.2")),
        ("10.0.0.1:80, 10.0.0.2", ("10.0.0.1:80", "10.0.0.2")),
        (["10.0.0.1:80,10.0.0.2"], ("10.0.0.1:80", "10.0.0.2")),
        ([], ()),
        ("", ()),
        (None, ()),
        (7, ()),
        ([1, None, {}], ()),
    ],
)
@pytest.mark.parametrize("reorder", [False, True])
def test_the_subset_hint(value: Any, subset: tuple[str, ...], reorder: bool) -> None:
    hint = m.metadata("envoy.lb.subset_hint", {f"{DESTINATION}-subset": value})
    gateway = Gateway(reorder=reorder)
    gateway.send(m.request_headers(end_of_stream=True, metadata_context=hint))
    assert gateway.pick.request.subset == subset


@pytest.mark.parametrize("namespace", ["envoy.lb", "other", "envoy.lb.subset_hint"])
def test_other_metadata_is_no_subset_hint(namespace: str) -> None:
    gateway = Gateway()
    gateway.send(m.request_headers(end_of_stream=True, metadata_context=m.metadata(namespace, {"x": ["10.0.0.1"]})))
    assert gateway.pick.request.subset is None


def test_what_the_pick_is_told_of_the_request() -> None:
    gateway = Gateway()
    sent = [
        *REQUEST.items(),
        ("x-gateway-inference-objective", "batch"),
        ("x-llm-d-inference-objective", "chat"),
        ("x-gateway-inference-fairness-id", "tenant"),
        (DESTINATION, "10.9.9.9:1"),
        (f"{DESTINATION}-subset", "10.9.9.9:1"),
        ("x-two", "a"),
        ("X-Two", "b"),
    ]
    gateway.send(m.request_headers(sent))
    document = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 5}
    gateway.send(m.body("request_body", json.dumps(document).encode(), True))
    request = gateway.pick.request
    assert (request.model, request.streaming, request.max_tokens) == ("m", True, 5)
    assert (request.objective, request.fairness_id) == ("chat", "tenant")
    assert request.headers["x-two"] == "a,b"
    assert not UNTRUSTED & set(request.headers)
    assert request.prompt == b"user\x1fhi"


def test_a_local_answer_may_overtake_the_body() -> None:
    gateway = Gateway()
    gateway.send(m.request_headers())
    gateway.send(m.body("request_body", b"{", False))
    (answer,) = gateway.send(m.response_headers({":status": "408"}, True))
    assert answer.WhichOneof("response") == "response_headers"
    assert gateway.events == [ResponseStarted(408, "", False), ResponseEnded()]


def test_a_second_end_of_stream_is_not_passed_on() -> None:
    gateway = Gateway()
    gateway.send(m.request_headers())
    gateway.send(m.body("request_body", b"{}", True))
    assert gateway.send(m.body("request_body", b"", True)) == []
    with pytest.raises(ProtocolViolation):
        gateway.send(m.body("request_body", b"more", True))


def test_skipped_request_headers_leave_metadata_to_carry_the_pick() -> None:
    gateway = Gateway()
    first = m.body("request_body", b"", True)
    first.protocol_config.CopyFrom(m.config(BodyMode.FULL_DUPLEX_STREAMED))
    (answer,) = gateway.send(first)
    assert answer.request_body.response.body_mutation.streamed_response.end_of_stream
    assert m.picked_metadata(answer) == PICK


def test_observation_streams_are_never_answered() -> None:
    gateway = Gateway()
    sent = {**REQUEST, DESTINATION: PICK}
    served = m.metadata("envoy.lb", {f"{DESTINATION}-served": "10.0.0.8:8000"})
    for message in (
        m.request_headers(sent, observability_mode=True),
        m.response_headers({":status": "200"}, observability_mode=True, metadata_context=served),
        m.body("response_body", b"abc", False),
        m.trailers("response_trailers"),
        m.body("response_body", b"late", True),
        m.trailers("response_trailers"),
    ):
        assert gateway.send(message) == []
    assert gateway.stream.observing
    assert [type(event).__name__ for event in gateway.events] == [
        "RequestObserved",
        "ResponseStarted",
        "ResponseChunk",
        "ResponseEnded",
    ]
    assert gateway.stream.request_id == "id-1"


@pytest.mark.parametrize(
    ("headers", "flow"),
    [
        ({}, ""),
        ({"x-forwarded-for": "9.9.9.9, 10.0.0.1"}, "10.0.0.1"),
        ({"x-gateway-inference-fairness-id": "team", "x-forwarded-for": "10.0.0.1"}, "team"),
    ],
)
def test_an_observation_says_whose_request_it_is(headers: dict[str, str], flow: str) -> None:
    gateway = Gateway()
    gateway.send(m.request_headers({**REQUEST, DESTINATION: PICK, **headers}, observability_mode=True))
    (observed,) = gateway.events
    assert isinstance(observed, RequestObserved)
    assert (observed.destination, observed.flow) == (PICK, flow)


MESSAGES = st.sampled_from(
    [
        m.request_headers(),
        m.request_headers(end_of_stream=True),
        m.request_headers(observability_mode=True),
        m.request_headers(protocol_config=m.config(BodyMode.BUFFERED, BodyMode.FULL_DUPLEX_STREAMED)),
        m.request_headers(protocol_config=m.config(BodyMode.STREAMED)),
        m.body("request_body", b'{"model":"m"}', True),
        m.body("request_body", b"[", False),
        m.body("response_body", b"x" * 70_000, False),
        m.body("response_body", b"", True),
        m.trailers("request_trailers"),
        m.trailers("response_trailers"),
        m.response_headers({":status": "200"}),
        m.response_headers({":status": "nonsense"}, True),
        pb.ProcessingRequest(),
    ]
)


@given(sequence=st.lists(MESSAGES, max_size=8), reorder=st.booleans())
def test_any_order_of_messages_is_answered_or_refused_as_the_proxys_fault(
    sequence: list[pb.ProcessingRequest], reorder: bool
) -> None:
    gateway = Gateway(reorder=reorder)
    try:
        for message in sequence:
            gateway.send(message)
    except (ProtocolViolation, MalformedMessage):
        pass
    ends = [a for a in gateway.answers if a.request_body.response.body_mutation.streamed_response.end_of_stream]
    assert len(ends) <= 1


@given(prefix=st.lists(MESSAGES, max_size=2), raw=st.binary(max_size=60))
def test_any_bytes_are_a_message_or_malformed(prefix: list[pb.ProcessingRequest], raw: bytes) -> None:
    gateway = Gateway()
    try:
        for message in prefix:
            gateway.send(message)
        gateway.send_raw(raw)
    except (ProtocolViolation, MalformedMessage):
        pass


@given(message=MESSAGES, position=st.integers(0, 200), byte=st.integers(0, 255))
def test_a_damaged_message_is_read_or_malformed(message: pb.ProcessingRequest, position: int, byte: int) -> None:
    raw = bytearray(message.SerializeToString())
    if raw:
        raw[position % len(raw)] = byte
    with contextlib.suppress(ProtocolViolation, MalformedMessage):
        Gateway().send_raw(bytes(raw))
