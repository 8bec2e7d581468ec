"""How a gateway shows bodies, and what it may not do."""

from __future__ import annotations

import contextlib
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from google.protobuf.message import DecodeError

from headrace.extproc.wire import MalformedMessage, read_varint
from headrace.xds.envoy.service.ext_proc.v3 import external_processor_pb2 as pb


class BodyMode(IntEnum):
    """`ProcessingMode.BodySendMode` of the ext_proc filter."""

    NONE = 0
    STREAMED = 1
    BUFFERED = 2
    BUFFERED_PARTIAL = 3
    FULL_DUPLEX_STREAMED = 4
    GRPC = 5


# The picker's pieces replace the gateway's own.
DUPLEX = frozenset((BodyMode.FULL_DUPLEX_STREAMED, BodyMode.GRPC))
# A body is shown at most once.
ONE_BODY_ANSWER = frozenset((BodyMode.NONE, BodyMode.BUFFERED, BodyMode.BUFFERED_PARTIAL))
# The request's headers wait for the pick, its body does not.
PICK_FROM_HEADERS = frozenset((BodyMode.NONE, BodyMode.STREAMED, BodyMode.GRPC))


class ProtocolViolation(ValueError):  # noqa: N818
    """A message that has no place where it came. The proxy's fault: its stream cannot go on."""


@lru_cache(maxsize=64)
def read_config(content: bytes) -> tuple[BodyMode, BodyMode]:
    """The body modes, request and response, of a serialized ProtocolConfiguration. A gateway sends the same few bytes
    with every request. Raises MalformedMessage."""
    try:
        config = pb.ProtocolConfiguration.FromString(content)
        return BodyMode(config.request_body_mode), BodyMode(config.response_body_mode)
    except (DecodeError, ValueError) as error:
        raise MalformedMessage(f"protocol_config: {error}") from None


class HttpBody(NamedTuple):
    """A piece of a body."""

    body: bytes = b""
    end_of_stream: bool = False
    end_of_stream_without_message: bool = False


_LAST_EMPTY = HttpBody(end_of_stream=True)
_ENDS = b"\x10\x01"


def http_body(content: bytes) -> HttpBody:
    """A serialized HttpBody. Raises MalformedMessage.

    Taken apart here where it has the usual form, of a body and whether the stream ends: protobuf would copy the body
    twice. What has another form protobuf reads."""
    if content == _ENDS:
        return _LAST_EMPTY
    if content[:1] == b"\x0a":
        with contextlib.suppress(IndexError, MalformedMessage):
            size, at = content[1], 2
            if size > 127:
                size, at = read_varint(content, 1)
            end = at + size
            if end == len(content):
                return HttpBody(content[at:end])
            if end + 2 == len(content) and content.endswith(_ENDS):
                return HttpBody(content[at:end], True)
    try:
        read = pb.HttpBody.FromString(content)
    except DecodeError as error:
        raise MalformedMessage(f"HttpBody: {error}") from None
    return HttpBody(read.body, bool(read.end_of_stream), bool(read.end_of_stream_without_message))
