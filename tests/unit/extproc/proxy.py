"""What a proxy makes of the picker's answers: the bytes that reach the model server and the client, in every mode.

As Envoy's ext_proc filter: NONE shows nothing, BUFFERED and BUFFERED_PARTIAL show a body once, STREAMED takes one
answer to each piece, FULL_DUPLEX_STREAMED sends on what the picker sends and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.extproc import BodyMode
from headrace.xds.envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from . import messages as m
from .messages import Gateway

ONCE = (BodyMode.BUFFERED, BodyMode.BUFFERED_PARTIAL)


@dataclass
class Passed:
    """One direction as it came out of the proxy."""

    headers: dict[str, str]
    body: bytes = b""
    ends: int = 0
    order: list[str] = field(default_factory=list)
    refused: int = 0


def pass_through(
    gateway: Gateway,
    direction: str,
    headers: Mapping[str, str],
    pieces: Sequence[bytes],
    *,
    modes: tuple[BodyMode, BodyMode],
    trailers: bool,
    partial_limit: int = 1 << 30,
    **fields: Any,
) -> Passed:
    """Send a request or a response through the picker. `pieces` empty and no trailers: it ends with its headers."""
    mode = modes[0] if direction == "request" else modes[1]
    passed = Passed(dict(headers))
    first = pb.ProcessingRequest(
        **{f"{direction}_headers": m.http_headers(headers, not pieces and not trailers)},
        protocol_config=m.config(*modes),
        **fields,
    )
    _take(passed, direction, gateway.send(first))
    if pieces:
        _bodies(gateway, direction, mode, passed, pieces, trailers=trailers, limit=partial_limit)
    if trailers:
        _take(passed, direction, gateway.send(m.trailers(f"{direction}_trailers")))
    elif not pieces:
        passed.ends += 1
    return passed


def _bodies(
    gateway: Gateway,
    direction: str,
    mode: BodyMode,
    passed: Passed,
    pieces: Sequence[bytes],
    *,
    trailers: bool,
    limit: int,
) -> None:
    kind = f"{direction}_body"
    if mode is BodyMode.NONE:
        passed.body, passed.ends = b"".join(pieces), int(not trailers)
        return
    if mode in ONCE:
        whole = b"".join(pieces)
        shown = whole[:limit] if mode is BodyMode.BUFFERED_PARTIAL else whole
        ended = not trailers and len(shown) == len(whole)
        if not shown and trailers:
            return
        answers = gateway.send(m.body(kind, shown, ended))
        _take(passed, direction, answers)
        if passed.refused:
            return
        (answer,) = answers
        passed.body = _changed(getattr(answer, kind).response.body_mutation, shown) + whole[len(shown) :]
        passed.ends = int(not trailers)
        return
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1 and not trailers
        answers = gateway.send(m.body(kind, piece, last))
        _take(passed, direction, answers)
        if mode is BodyMode.STREAMED:
            (answer,) = answers
            passed.body += _changed(getattr(answer, kind).response.body_mutation, piece)
            passed.ends += last


def _changed(mutation: pb.BodyMutation, body: bytes) -> bytes:
    kind = mutation.WhichOneof("mutation")
    assert kind in (None, "body", "clear_body"), "streamed answers belong to full duplex"
    return body if kind is None else mutation.body if kind == "body" else b""


def _take(passed: Passed, direction: str, answers: Sequence[pb.ProcessingResponse]) -> None:
    for answer in answers:
        kind = answer.WhichOneof("response")
        if kind == "immediate_response":
            passed.refused = answer.immediate_response.status.code
            continue
        assert kind.startswith(direction), kind
        common = getattr(answer, kind).response if not kind.endswith("trailers") else None
        if common is not None:
            for option in common.header_mutation.set_headers:
                passed.headers[option.header.key] = option.header.raw_value.decode()
            for name in common.header_mutation.remove_headers:
                if name not in {o.header.key for o in common.header_mutation.set_headers}:
                    passed.headers.pop(name, None)
        if kind.endswith("body") and common is not None:
            mutation = common.body_mutation
            if mutation.HasField("streamed_response"):
                assert not passed.ends, "a body goes on after its end"
                passed.body += mutation.streamed_response.body
                passed.ends += mutation.streamed_response.end_of_stream
        passed.order.append(kind.removeprefix(f"{direction}_"))
