"""The wire reader agrees with protobuf on what is a message, and on what is in it."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from headrace.extproc import MalformedMessage
from headrace.extproc.wire import Kind, read_message, read_varint, varint
from headrace.xds.envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from . import messages as m


@given(st.integers(0, 2**63 - 1))
def test_varints_come_back(number: int) -> None:
    raw = varint(number)
    assert read_varint(raw, 0) == (number, len(raw))


def test_a_field_that_comes_twice_is_merged() -> None:
    first = pb.ProcessingRequest(request_body=pb.HttpBody(body=b"abc")).SerializeToString()
    second = pb.ProcessingRequest(request_body=pb.HttpBody(end_of_stream=True)).SerializeToString()
    message = read_message(first + second)
    assert message.kind is Kind.REQUEST_BODY
    assert pb.HttpBody.FromString(message.content) == pb.HttpBody(body=b"abc", end_of_stream=True)


def test_the_last_kind_of_the_oneof_counts() -> None:
    first = m.body("request_body", b"abc", False).SerializeToString()
    second = m.trailers("request_trailers").SerializeToString()
    assert read_message(first + second).kind is Kind.REQUEST_TRAILERS


@given(st.binary(max_size=80))
def test_agreement_with_protobuf(raw: bytes) -> None:
    try:
        message = read_message(raw)
    except MalformedMessage:
        with pytest.raises(DecodeError):
            _strict(raw)
        return
    try:
        parsed = pb.ProcessingRequest.FromString(raw)
    except DecodeError:
        return  # damaged further inside: found where the field is read
    name = parsed.WhichOneof("request")
    assert (message.kind.name.lower() if message.kind is not None else None) == name
    assert message.observability_mode == parsed.observability_mode


def _strict(raw: bytes) -> None:
    """Protobuf's own reading. Groups (wire types 3 and 4) it skips; no message of ext_proc has any."""
    pb.ProcessingRequest.FromString(raw)
    at = 0
    while at < len(raw):
        tag, at = read_varint(raw, at)
        if tag & 7 in (3, 4):
            raise DecodeError("a group")
        at = read_varint(raw, at)[1] if tag & 7 == 0 else at + (8 if tag & 7 == 1 else 4)
        if tag & 7 == 2:
            length, at = read_varint(raw, at - 4)
            at += length
