"""Protobuf's wire format, as far as the conversation needs it without a full parse.

`ProcessingRequest` is taken apart by field number, in whatever order its fields come: Envoy writes the oneof first, Go
clients write it last. What is inside a field is parsed by protobuf itself, or passed on as bytes.
Source: protobuf encoding specification; envoy/service/ext_proc/v3/external_processor.proto."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class MalformedMessage(ValueError):  # noqa: N818
    """Bytes that are not the protobuf message they should be. The proxy's fault: its stream cannot go on."""


class Kind(IntEnum):
    """Which message of the oneof `ProcessingRequest.request` it is: the field's number."""

    REQUEST_HEADERS = 2
    RESPONSE_HEADERS = 3
    REQUEST_BODY = 4
    RESPONSE_BODY = 5
    REQUEST_TRAILERS = 6
    RESPONSE_TRAILERS = 7


_KINDS: tuple[Kind | None, ...] = (None, None, *Kind)
_METADATA_CONTEXT = 8
_OBSERVABILITY_MODE = 10
_PROTOCOL_CONFIG = 11


class Message(NamedTuple):
    """One ProcessingRequest. `kind` is None where the oneof is empty or a kind this code does not know."""

    kind: Kind | None
    content: bytes
    metadata_context: bytes | None
    observability_mode: bool
    protocol_config: bytes | None


def read_message(raw: bytes) -> Message:
    """Take a serialized ProcessingRequest apart. Raises MalformedMessage."""
    kind = 0
    content = b""
    metadata = config = None
    observability = False
    at = 0
    size = len(raw)
    try:
        while at < size:
            tag = raw[at]
            at += 1
            if tag > 127:
                tag, at = read_varint(raw, at - 1)
            field = tag >> 3
            wire_type = tag & 7
            if wire_type == 2:
                length = raw[at]
                at += 1
                if length > 127:
                    length, at = read_varint(raw, at - 1)
                end = at + length
                if end > size:
                    raise MalformedMessage(f"field {field} says {length} bytes, {size - at} are left")
                if 2 <= field <= 7:
                    # A field that comes twice is merged, and concatenation is how protobuf defines merging.
                    content = content + raw[at:end] if kind == field else raw[at:end]
                    kind = field
                elif field == _METADATA_CONTEXT:
                    metadata = (metadata or b"") + raw[at:end]
                elif field == _PROTOCOL_CONFIG:
                    config = (config or b"") + raw[at:end]
                at = end
            elif wire_type == 0:
                value, at = read_varint(raw, at)
                if field == _OBSERVABILITY_MODE:
                    observability = value != 0
            elif wire_type == 5:
                at += 4
            elif wire_type == 1:
                at += 8
            else:
                raise MalformedMessage(f"field {field} has wire type {wire_type}")
            if field == 0:
                raise MalformedMessage("field number 0")
    except IndexError:
        raise MalformedMessage("the message ends inside a field") from None
    if at != size:
        raise MalformedMessage("the message ends inside a field")
    return Message(_KINDS[kind], content, metadata, observability, config)


def read_varint(raw: bytes, at: int) -> tuple[int, int]:
    """The varint at `at`, and where it ends. Raises IndexError if it is cut, MalformedMessage if it is too long."""
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise MalformedMessage("a varint of more than ten bytes")


_ONE_BYTE = tuple(bytes((number,)) for number in range(128))


def varint(number: int) -> bytes:
    """A non-negative number as a varint."""
    if number < 128:
        return _ONE_BYTE[number]
    if number < 1 << 14:
        return bytes((number & 127 | 128, number >> 7))
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def nested(field: int, content: bytes) -> bytes:
    """A length-delimited field (message, text or bytes)."""
    size = len(content)
    if size < 128 and field < 16:
        return _ONE_BYTE[field << 3 | 2] + _ONE_BYTE[size] + content
    return varint(field << 3 | 2) + varint(size) + content


def flag(field: int, value: bool) -> bytes:
    """A bool field; false, the default, is not written."""
    return varint(field << 3) + b"\x01" if value else b""
