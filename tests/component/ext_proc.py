"""Asks an ext_proc server over gRPC, as Envoy does, without an Envoy between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import grpc.aio

from headrace.xds.envoy.service.ext_proc.v3 import external_processor_pb2 as pb

METHOD = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
DESTINATION = "x-gateway-destination-endpoint"
_PIECE = 64 << 10
_FULL_DUPLEX = 4
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def channel(port: int) -> grpc.aio.Channel:
    """A connection to a server on loopback."""
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=_OPTIONS)


def begin(path: str, *, whole: bool = False) -> bytes:
    """A request's headers; its body comes in pieces or whole."""
    first = pb.ProcessingRequest()
    if not whole:
        first.protocol_config.request_body_mode = _FULL_DUPLEX
    for name, value in {":method": "POST", ":path": path, "content-type": "application/json"}.items():
        first.request_headers.headers.headers.add(key=name, raw_value=value.encode())
    return first.SerializeToString()


def _messages(path: str, body: bytes, whole: bool) -> Iterator[bytes]:
    yield begin(path, whole=whole)
    size = max(1, len(body)) if whole else _PIECE
    for at in range(0, max(1, len(body)), size):
        piece = pb.ProcessingRequest()
        piece.request_body.body = body[at : at + size]
        piece.request_body.end_of_stream = at + size >= len(body)
        yield piece.SerializeToString()


async def ask(
    connection: grpc.aio.Channel, path: str, body: bytes, *, whole: bool = False
) -> tuple[int, dict[str, str]]:
    """Send a request, its body in pieces or whole; the status of an immediate answer, else 200, and the headers set."""
    call: Any = connection.stream_stream(METHOD)()
    headers: dict[str, str] = {}
    answered = 0
    try:
        for message in _messages(path, body, whole):
            await call.write(message)
            if whole and not answered:
                await call.read()  # the answer to the headers
                answered = 1
        while True:
            raw = await call.read()
            if not isinstance(raw, bytes):
                raise AssertionError(f"the stream ended without an answer: {await call.code()} {await call.details()}")
            answer = pb.ProcessingResponse.FromString(raw)
            if answer.HasField("immediate_response"):
                return answer.immediate_response.status.code, headers
            part = answer.request_headers if answer.HasField("request_headers") else answer.request_body
            for entry in part.response.header_mutation.set_headers:
                headers[entry.header.key] = (entry.header.raw_value or entry.header.value.encode()).decode()
            if whole or DESTINATION in headers:
                return 200, headers
    finally:
        call.cancel()


async def converse(
    connection: grpc.aio.Channel,
    path: str,
    body: bytes,
    piece: int,
    *,
    headers: Mapping[str, str] | None = None,
    answered: bool = False,
) -> dict[str, str]:
    """A request with its body in pieces of a size, 0 for all in one; the headers that the pick sets. `answered`: a
    server then answers it with status 200."""
    call: Any = connection.stream_stream(METHOD)()
    try:
        first = pb.ProcessingRequest.FromString(begin(path))
        for name, value in (headers or {}).items():
            first.request_headers.headers.headers.add(key=name, raw_value=value.encode())
        await call.write(first.SerializeToString())
        size = piece or max(1, len(body))
        for at in range(0, max(1, len(body)), size):
            message = pb.ProcessingRequest()
            message.request_body.body = body[at : at + size]
            message.request_body.end_of_stream = at + size >= len(body)
            await call.write(message.SerializeToString())
        found: dict[str, str] = {}
        while DESTINATION not in found:
            raw = await call.read()
            assert isinstance(raw, bytes), "the stream ended without an answer"
            answer = pb.ProcessingResponse.FromString(raw)
            assert not answer.HasField("immediate_response"), answer.immediate_response.body[:200]
            for entry in answer.request_headers.response.header_mutation.set_headers:
                found[entry.header.key] = entry.header.raw_value.decode()
        if answered:
            response = pb.ProcessingRequest()
            response.response_headers.headers.headers.add(key=":status", raw_value=b"200")
            await call.write(response.SerializeToString())
            await call.done_writing()
            while isinstance(await call.read(), bytes):
                pass
        return found
    finally:
        call.cancel()
