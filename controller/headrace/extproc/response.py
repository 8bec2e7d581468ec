"""The response's half of a conversation: passed on as it came, but for the model's name; its usage read on the way.

Source: ext_proc.proto, StreamedBodyResponse and BodyMutation; proposal 004."""

from __future__ import annotations

from headrace.config.limits import ByteBudget, Held
from headrace.core.fields import is_digits
from headrace.extproc import answers
from headrace.extproc.events import Event, ResponseChunk, ResponseEnded, ResponseStarted
from headrace.extproc.metadata import conformance_report, read_headers, served_endpoint
from headrace.extproc.model_name import ModelNames
from headrace.extproc.modes import DUPLEX, ONE_BODY_ANSWER, BodyMode, HttpBody, ProtocolViolation, http_body
from headrace.extproc.usage import UsageMeter
from headrace.extproc.wire import Kind, Message
from headrace.protocol import http

_EVENT_STREAM = "text/event-stream"


class ResponseReader:
    """What is told of a response, whether it passes through or is only observed. Puts events into the given list.

    `kept` is the budget of what is kept of all responses. Call `close` in the end."""

    __slots__ = ("_ended", "_events", "_kept", "_meter", "readable", "streaming")

    def __init__(self, events: list[Event], kept: ByteBudget) -> None:
        self._events = events
        self._kept = kept
        self._meter: UsageMeter | None = None
        self._ended = False
        self.streaming = False
        self.readable = False

    def headers(self, message: Message) -> None:
        """The response's headers. Raises MalformedMessage."""
        headers, ended = read_headers(message.content)
        kind = headers.get(http.CONTENT_TYPE, "").partition(";")[0].strip().lower()
        self.streaming = kind == _EVENT_STREAM
        self.readable = (self.streaming or kind == "application/json") and headers.get(
            http.CONTENT_ENCODING, "identity"
        ) == "identity"
        status = headers.get(http.STATUS, "")
        self._events.append(
            ResponseStarted(
                status=int(status) if is_digits(status, 3) else 0,
                served=served_endpoint(message.metadata_context) if message.metadata_context is not None else "",
                streaming=self.streaming,
            )
        )
        if self.readable:
            self._meter = UsageMeter(Held(self._kept), events=self.streaming)
        if ended:
            self.end()

    def piece(self, body: HttpBody) -> None:
        """A piece of the body. Raises ProtocolViolation for one after the end."""
        content = body.body
        if self._ended:
            if content:
                raise ProtocolViolation("response body after its end of stream")
            return
        self._events.append(ResponseChunk(len(content)))
        if self._meter is not None:
            self._meter.feed(content)
        if body.end_of_stream or body.end_of_stream_without_message:
            self.end()

    def close(self) -> None:
        """The stream is over, in whatever way."""
        if self._meter is not None:
            self._meter.close()

    @property
    def ended(self) -> bool:
        """Whether the response is complete."""
        return self._ended

    def end(self) -> None:
        """The response is complete. May be told again."""
        if not self._ended:
            self._ended = True
            usage = self._meter.usage() if self._meter is not None else None
            self._events.append(ResponseEnded(usage))


class ResponsePhase:
    """A response that passes through. `restore_model` is set to the client's own name where the request's was
    rewritten; `mutation` is a serialized HeaderMutation for its headers."""

    __slots__ = ("_names", "_reader", "close", "mutation", "restore_model")

    def __init__(self, events: list[Event], kept: ByteBudget) -> None:
        self._reader = ResponseReader(events, kept)
        self.close = self._reader.close
        self._names: ModelNames | None = None
        self.restore_model: str | None = None
        self.mutation = b""

    def headers(self, message: Message, mode: BodyMode, *, conformance: bool = False) -> list[bytes]:
        """The answer to the response's headers. `conformance`: the client is told which endpoint answered."""
        if conformance:
            self.mutation += answers.set_header(http.CONFORMANCE_SERVED, conformance_report(message.metadata_context))
        reader = self._reader
        reader.headers(message)
        mutation = self.mutation
        body_shown = not reader.ended and mode not in (BodyMode.NONE, BodyMode.GRPC)
        if self.restore_model is not None and reader.readable and body_shown:
            self._names = ModelNames(self.restore_model, events=reader.streaming, nested=True)
            if mode not in ONE_BODY_ANSWER:  # there the body's own answer carries its new length
                mutation += answers.REMOVE_CONTENT_LENGTH
        return [answers.response_headers(mutation) if mutation else answers.UNCHANGED[Kind.RESPONSE_HEADERS]]

    def body(self, message: Message, mode: BodyMode) -> list[bytes]:
        """The answers to a piece of the response's body."""
        body = http_body(message.content)
        reader = self._reader
        if reader.ended:
            reader.piece(body)
            # An empty echo of the end; where each piece is answered, so is this.
            return [] if mode in DUPLEX else [answers.UNCHANGED[Kind.RESPONSE_BODY]]
        reader.piece(body)
        content = body.body
        changed = content if self._names is None else self._names.feed(content)
        if mode in DUPLEX:
            if changed is content and len(content) <= answers.MAX_CHUNK_BYTES:
                return [answers.passed_on(Kind.RESPONSE_BODY, message.content)]
            return list(answers.chunks(Kind.RESPONSE_BODY, changed, end_of_stream=body.end_of_stream))
        if changed is content:
            return [answers.UNCHANGED[Kind.RESPONSE_BODY]]
        return [answers.changed_body(Kind.RESPONSE_BODY, changed, with_length=mode in ONE_BODY_ANSWER)]

    def trailers(self) -> list[bytes]:
        """The answer to the response's trailers."""
        self._reader.end()
        return [answers.UNCHANGED[Kind.RESPONSE_TRAILERS]]
