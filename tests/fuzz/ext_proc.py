"""The ext_proc conversation: raw bytes, messages in any order, and whole requests through a proxy in every mode.

The first byte says which. What may come out of the first two: answers that are ProcessingResponses, or one of the two
errors that end a stream. Of the third: every byte that went in save for the model asked for, ended once, in order."""

from __future__ import annotations

import json
from typing import Any

from headrace.config.limits import ByteBudget
from headrace.core import Decision, Refusal, RefusalReason
from headrace.extproc import BodyMode, ExtProcStream, request_body
from headrace.extproc.events import PickNeeded
from headrace.extproc.modes import ProtocolViolation
from headrace.extproc.request_body import WHOLE_BYTES
from headrace.extproc.wire import MalformedMessage, read_message
from headrace.xds.envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from ..unit.extproc import messages as m
from ..unit.extproc.proxy import pass_through
from ..unit.extproc.test_every_mode import CLIENTS, check_order
from ..unit.extproc.test_model_name import expected
from .reader import Reader

MODES = [mode for mode in BodyMode if mode is not BodyMode.GRPC]
KINDS = [
    "request_headers",
    "request_body",
    "request_trailers",
    "response_headers",
    "response_body",
    "response_trailers",
]
NAMES = [
    ":method",
    ":path",
    ":status",
    "content-type",
    "content-encoding",
    "content-length",
    "x-request-id",
    "x-gateway-inference-objective",
    "x-gateway-inference-fairness-id",
    "x-gateway-model-name-rewrite",
    "x-slo-ttft-ms",
    "x-gateway-destination-endpoint",
    "x-gateway-destination-endpoint-served",
]
VALUES = [
    "POST",
    "GET",
    "/v1/completions",
    "/v1/messages",
    "/anything?x=1",
    "200",
    "application/json",
    "text/event-stream; charset=utf-8",
    "gzip",
    "12",
    "-1",
    "nan",
]
OUTCOMES = [
    Decision((m.PICK,)),
    Decision((m.PICK, "10.0.0.8:8000"), model="target", response_headers=(("x-session", "s"),)),
    Decision(()),
    Decision((m.PICK,), model=""),
    Refusal(429, RefusalReason.SATURATED, "no", retry_after_seconds=1),
]


def target(data: bytes) -> None:
    """One input. Bodies of some bytes are scanned already."""
    request_body.WHOLE_BYTES = 40
    try:
        _target(data)
    finally:
        request_body.WHOLE_BYTES = WHOLE_BYTES


def _target(data: bytes) -> None:
    reader = Reader(data)
    choice = reader.byte() % 4
    if choice == 0:
        one_message(reader.rest())
    elif choice == 1:
        messages(reader)
    else:
        a_request(reader)


def one_message(raw: bytes) -> None:
    """What our own decoder makes of bytes, beside what protobuf makes of them."""
    try:
        ours = read_message(raw)
    except MalformedMessage:
        ours = None
    try:
        theirs = pb.ProcessingRequest.FromString(raw)
    except Exception:  # noqa: BLE001 - DecodeError, and UnicodeDecodeError of some builds
        theirs = None
    if ours is not None and theirs is not None:
        # Merging a oneof's members is all that may differ: the last one counts for both.
        kind = theirs.WhichOneof("request")
        assert (ours.kind.name.lower() if ours.kind else None) == kind, (ours.kind, kind)
        assert ours.observability_mode == theirs.observability_mode
    drive([raw], OUTCOMES[0], late=0)


def messages(reader: Reader) -> None:
    """Messages in any order, valid each by itself or not at all."""
    outcome = reader.choice(OUTCOMES)
    late = reader.below(4)
    raws = []
    while not reader.done and len(raws) < 24:
        raws.append(a_message(reader))
    drive(raws, outcome, late)


def a_message(reader: Reader) -> bytes:
    kind = reader.choice([*KINDS, "raw"])
    if kind == "raw":
        return reader.piece()
    bits = reader.byte()
    ends = bool(bits & 1)
    message = pb.ProcessingRequest()
    if kind.endswith("headers"):
        pairs = [(a_name(reader), a_value(reader)) for _ in range(reader.below(6))]
        getattr(message, kind).CopyFrom(m.http_headers(pairs, ends))
    elif kind.endswith("body"):
        content = pb.HttpBody(body=reader.piece(), end_of_stream=ends, end_of_stream_without_message=bool(bits & 16))
        getattr(message, kind).CopyFrom(content)
    else:
        getattr(message, kind).SetInParent()
    if bits & 2:
        message.protocol_config.request_body_mode = reader.below(7)
        message.protocol_config.response_body_mode = reader.below(7)
    if bits & 4:
        hint = [reader.text() for _ in range(reader.below(3))]
        value: Any = hint if bits & 8 else ",".join(hint)
        message.metadata_context.CopyFrom(
            m.metadata("envoy.lb.subset_hint", {"x-gateway-destination-endpoint-subset": value})
        )
    if bits & 32:
        message.observability_mode = True
    return m.oneof_last(message) if bits & 64 else message.SerializeToString()


def a_name(reader: Reader) -> str:
    return reader.text() if reader.flag() else reader.choice(NAMES)


def a_value(reader: Reader) -> str:
    return reader.text() if reader.flag() else reader.choice(VALUES)


def drive(raws: list[bytes], outcome: Decision | Refusal, late: int) -> None:
    """Feed a stream; a pick is decided `late` messages after it was asked for."""
    bodies = ByteBudget(8192, small=512)
    stream = ExtProcStream(m.settings(max_body_bytes=4096, conformance_hooks=True, bodies=bodies))
    asked = 0
    waiting: int | None = None
    try:
        for raw in [*raws, *[b""] * late]:
            check_answers(stream.feed(raw))
            while (events := stream.take_events()) or stream.busy:
                for event in events:
                    if isinstance(event, PickNeeded):
                        asked += 1
                        waiting = late
                check_answers(stream.go_on())
            if waiting is not None:
                if waiting == 0:
                    waiting = None
                    check_answers(stream.resume(outcome))
                else:
                    waiting -= 1
    except (MalformedMessage, ProtocolViolation) as error:
        assert str(error)
    assert asked <= 1, "a request is picked for once"
    stream.close()
    assert bodies.held == 0


def check_answers(answers: list[bytes]) -> None:
    for answer in answers:
        assert pb.ProcessingResponse.FromString(answer).WhichOneof("response") is not None


def a_request(reader: Reader) -> None:
    """A request and its response through a proxy, whole."""
    modes = (reader.choice(MODES), reader.choice(MODES))
    bits = reader.byte()
    rewritten = bool(bits & 1)
    trailers, reply_trailers, streaming, bodyless = (bool(bits & bit) for bit in (2, 4, 8, 16))
    gateway = m.Gateway(outcome=Decision((m.PICK,), model="target" if rewritten else None), reorder=bool(bits & 32))
    limit = 1 + reader.below(300)
    content = a_body(reader)
    pieces = [] if bodyless else reader.cut(content)
    # On the second path a body that no server could answer is refused.
    strict = bool(bits & 64)
    headers = {**CLIENTS, ":path": "/v1/completions" if strict else "/anything"}
    sent = pass_through(gateway, "request", headers, pieces, modes=modes, trailers=trailers, partial_limit=limit)
    if sent.refused:
        assert strict
        assert sent.refused == 400
        return
    check_order(sent, trailers=trailers)
    if not bodyless:
        same(content, sent.body, model="target" if rewritten else None, cut=modes[0] is BodyMode.BUFFERED_PARTIAL)
    changed = sent.body != content and not bodyless
    reply = a_body(reader)
    kind = "text/event-stream" if streaming else "application/json"
    back = pass_through(
        gateway,
        "response",
        {":status": "200", "content-type": kind, "content-length": str(len(reply))},
        reader.cut(reply),
        modes=modes,
        trailers=reply_trailers,
    )
    check_order(back, trailers=reply_trailers)
    if not changed and not rewritten:
        assert back.body == reply
    if "content-length" in back.headers:
        assert back.headers["content-length"] == str(len(back.body))


def a_body(reader: Reader) -> bytes:
    kind = reader.below(8)
    if kind < 3:
        return reader.piece()
    if kind == 3:
        depth = reader.below(1100)
        inner = b"[" * depth + b"]" * depth
        name = reader.choice([b'"model"', b'"mod\\u0065l"'])
        return b'{"prompt":' + inner + b"," + name + b':"a","x":' + (reader.take(3) or b"1") + b"}"
    document = {reader.text(): reader.text() for _ in range(reader.below(3))}
    if reader.flag():
        document["model"] = reader.text()
    if reader.flag():
        document["prompt"] = reader.text()
    return json.dumps(document).encode()


def same(content: bytes, sent: bytes, *, model: str | None, cut: bool) -> None:
    """Nothing of a body has changed but its model, if that was asked for."""
    if sent == content:
        return
    assert model is not None
    if cut:
        return
    try:
        before, after = json.loads(content), json.loads(sent)
    except (ValueError, RecursionError):
        return  # nobody's JSON: a name that looks like the model's may have been replaced
    if isinstance(before, dict):
        before = {name: value for name, value in before.items() if name not in ("response", "message")}
        after = {name: value for name, value in after.items() if name not in ("response", "message")}
    assert after == expected(before, model)
