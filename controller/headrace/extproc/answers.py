"""Serialized ProcessingResponses, put together from bytes.

Field numbers are those of envoy/service/ext_proc/v3/external_processor.proto; tests parse every answer with protobuf's
own classes. Concatenating two serialized messages merges them, which is how variable parts join fixed ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import orjson

from headrace.core import Refusal
from headrace.extproc.wire import Kind, flag, nested, varint
from headrace.protocol import http, rpc

# A data plane may refuse larger pieces: the reference picker's limit, just under the 64 KiB of Envoy's own buffers.
MAX_CHUNK_BYTES = 62_000

# ProcessingResponse: the field that answers each kind of request is one less than the request's own number.
_OVERWRITE = b"\x18\x02"  # HeaderValueOption.append_action = OVERWRITE_IF_EXISTS_OR_ADD
_DYNAMIC_METADATA = 8
_ENDS = flag(2, True)  # StreamedBodyResponse.end_of_stream

# CONTINUE, with nothing changed, to each kind of message.
UNCHANGED: dict[Kind, bytes] = {kind: nested(kind - 1, b"") for kind in Kind}

# `HeaderMutation.remove_headers` for a body whose length is about to change.
REMOVE_CONTENT_LENGTH = nested(2, http.CONTENT_LENGTH.encode())

_REMOVE_UNTRUSTED = b"".join(nested(2, name.encode()) for name in http.UNTRUSTED)

# An entry per fallback list ever answered; a pool of 1,000 endpoints has 1,000 lists of one.
_MAX_TEMPLATES = 8192


def set_header(name: str, value: str) -> bytes:
    """`HeaderMutation.set_headers`: one header, replacing what is there."""
    return _set_header(_header_name(name), value)


_CONTENT_LENGTH = nested(1, http.CONTENT_LENGTH.encode())


def set_content_length(size: int) -> bytes:
    """`set_header` for the one header whose value is new with every request."""
    return _set_header(_CONTENT_LENGTH, str(size))


def _header_name(name: str) -> bytes:
    return nested(1, name.encode())


def _set_header(name: bytes, value: str) -> bytes:
    header = name + nested(3, value.encode())
    return nested(1, nested(1, header) + _OVERWRITE)


class PickTemplates:
    """Header mutation and metadata of a pick, kept per destination: a pool answers the same few again and again."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[bytes, bytes]] = {}
        # The same as whole answers, before and after a content length of so many digits.
        self._answers: dict[tuple[str, int], tuple[bytes, bytes]] = {}

    def of(self, destination: str) -> tuple[bytes, bytes]:
        """Serialized `HeaderMutation`, and the `dynamic_metadata` field, for `ip:port[,ip:port...]`.

        An empty destination gives a mutation that only removes what clients may not send."""
        found = self._kept.get(destination)
        if found is None:
            if len(self._kept) >= _MAX_TEMPLATES:
                self._kept.clear()
            found = self._kept[destination] = (_mutation(destination), _metadata(destination))
        return found

    def answer(self, destination: str, body_size: int) -> bytes:
        """The answer to a request's headers, with the length of the body that follows: Envoy drops the client's own in
        full duplex, and some model servers want one."""
        digits = b"%d" % body_size
        place = (destination, len(digits))
        found = self._answers.get(place)
        if found is None:
            if len(self._answers) >= _MAX_TEMPLATES:
                self._answers.clear()
            mutation, metadata = self.of(destination)
            # The length is the last in it, but for how it is to be put there.
            end = len(digits) + len(_OVERWRITE)
            before = request_headers(mutation + set_content_length(body_size))[:-end]
            found = self._answers[place] = (before, _OVERWRITE + metadata)
        return found[0] + digits + found[1]


def _mutation(destination: str) -> bytes:
    return (set_header(http.DESTINATION, destination) if destination else b"") + _REMOVE_UNTRUSTED


def _metadata(destination: str) -> bytes:
    if not destination:
        return b""
    value = nested(3, destination.encode())
    inner = nested(1, nested(1, http.DESTINATION.encode()) + nested(2, value))
    outer = nested(1, nested(1, rpc.LOAD_BALANCER_NAMESPACE.encode()) + nested(2, nested(5, inner)))
    return nested(_DYNAMIC_METADATA, outer)


def request_headers(mutation: bytes) -> bytes:
    """Continue with the request's headers changed."""
    return nested(1, nested(1, nested(2, mutation)))


def response_headers(mutation: bytes) -> bytes:
    """Continue with the response's headers changed."""
    return nested(2, nested(1, nested(2, mutation)))


def buffered_request_body(mutation: bytes, body: bytes | None = None) -> bytes:
    """Continue after a buffered body, with headers changed and, if given, another body in its place."""
    if body is None:
        return nested(3, nested(1, nested(2, mutation)))
    # Envoy checks that the length is the new body's.
    return nested(3, nested(1, nested(2, mutation + set_content_length(len(body))) + nested(3, nested(1, body))))


def changed_body(kind: Kind, body: bytes, *, with_length: bool) -> bytes:
    """Continue after a piece of body (buffered: the whole of it, `with_length`), with another one in its place."""
    common = nested(2, set_content_length(len(body))) if with_length else b""
    common += nested(3, nested(1, body) if body else flag(2, True))
    return nested(kind - 1, nested(1, common))


def chunks(kind: Kind, body: bytes, *, end_of_stream: bool) -> Iterator[bytes]:
    """A body (`kind` is REQUEST_BODY or RESPONSE_BODY) as full-duplex pieces; the last one ends the stream if told to.

    An empty body is one empty piece where it has to end the stream, and none otherwise."""
    size = len(body)
    if not size and not end_of_stream:
        return
    # A view: a piece of a long body is copied once, into its answer.
    view = memoryview(body)
    for at in range(0, max(1, size), MAX_CHUNK_BYTES):
        piece = view[at : at + MAX_CHUNK_BYTES]
        end = _ENDS if end_of_stream and at + MAX_CHUNK_BYTES >= size else b""
        before = b"\x0a" + varint(len(piece))
        yield b"".join((_around(kind, len(before) + len(piece) + len(end)), before, piece, end))


def passed_on(kind: Kind, content: bytes) -> bytes:
    """A full-duplex body piece sent on as it came.

    `content` is the serialized HttpBody: StreamedBodyResponse has the same fields under the same numbers, so it is
    nested anew without being parsed."""
    return _around(kind, len(content)) + content


def _around(kind: Kind, size: int) -> bytes:
    """What comes before a StreamedBodyResponse of so many bytes."""
    # ProcessingResponse.{request,response}_body . response . body_mutation . streamed_response
    mutation = b"\x1a" + varint(size)
    size += len(mutation)
    common = b"\x1a" + varint(size)
    size += len(common)
    response = b"\x0a" + varint(size)
    size += len(response)
    return b"".join((varint((kind - 1) << 3 | 2), varint(size), response, common, mutation))


_ERROR_TYPES = {
    400: "invalid_request_error",
    404: "not_found_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable",
}


def error_body(refusal: Refusal) -> bytes:
    """The refusal in the form OpenAI's clients expect of errors."""
    return orjson.dumps(
        {
            "error": {
                "message": refusal.message,
                "type": _ERROR_TYPES.get(refusal.status, "server_error"),
                "param": None,
                "code": refusal.reason.value.replace("-", "_"),
            }
        }
    )


def immediate(refusal: Refusal, extra_headers: Sequence[tuple[str, str]] = ()) -> bytes:
    """Answer the client at once with the refusal's status and a JSON error body."""
    headers = [
        (http.CONTENT_TYPE, "application/json"),
        (http.DROPPED_REASON, refusal.reason.value),
        *extra_headers,
    ]
    if refusal.retry_after_seconds is not None:
        headers.append((http.RETRY_AFTER, str(refusal.retry_after_seconds)))
    content = nested(1, b"\x08" + varint(refusal.status))
    content += nested(2, b"".join(set_header(name, value) for name, value in headers))
    content += nested(3, error_body(refusal))
    # Shown by Envoy's access log as response code details.
    content += nested(5, b"endpoint_picker_" + refusal.reason.value.replace("-", "_").encode())
    return nested(7, content)
