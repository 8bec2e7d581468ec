"""A stream that only watches (`observability_mode`): nothing is answered, events tell what went by.

Source: ext_proc.proto, ProcessingRequest.observability_mode. The gateway ignores answers here, and neither waits for
nor fails with such a stream: an answer of a model server is never delayed or cut by its observer."""

from __future__ import annotations

from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from google.protobuf.message import DecodeError

from headrace.core import Decision, Refusal
from headrace.extproc import names
from headrace.extproc.conversation import started_event
from headrace.extproc.events import Event, RequestObserved, ResponseChunk, ResponseEnded
from headrace.extproc.metadata import read_headers
from headrace.extproc.wire import Kind, MalformedMessage, Message


class Observation:
    """The state of one observation stream. Any order and any subset of messages is taken: modes differ by gateway."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._request_id = ""
        self._ended = False

    @property
    def request_id(self) -> str:
        """The observed request's id; "" before its headers."""
        return self._request_id

    def handle(self, message: Message) -> list[bytes]:
        """Take one message; there is never an answer. Raises MalformedMessage."""
        if message.kind is Kind.REQUEST_HEADERS:
            headers, _ = read_headers(message.content)
            self._request_id = headers.get(names.REQUEST_ID, "")
            self.events.append(RequestObserved(self._request_id, headers.get(names.DESTINATION, "")))
        elif message.kind is Kind.RESPONSE_HEADERS:
            headers, ended = read_headers(message.content)
            self.events.append(started_event(headers, message.metadata_context))
            self._end_if(ended)
        elif message.kind is Kind.RESPONSE_BODY:
            try:
                body = pb.HttpBody.FromString(message.content)
            except DecodeError as error:
                raise MalformedMessage(f"HttpBody: {error}") from None
            self.events.append(ResponseChunk(len(body.body)))
            self._end_if(bool(body.end_of_stream or body.end_of_stream_without_message))
        elif message.kind is Kind.RESPONSE_TRAILERS:
            self._end_if(True)
        return []

    def resume(self, outcome: Decision | Refusal) -> list[bytes]:
        """An observation never asks for a pick."""
        raise RuntimeError("no pick was asked for")

    def _end_if(self, ended: bool) -> None:
        if ended and not self._ended:
            self._ended = True
            self.events.append(ResponseEnded())
