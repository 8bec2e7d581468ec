"""A stream that only watches (`observability_mode`): nothing is answered, events tell what went by.

Source: ext_proc.proto, ProcessingRequest.observability_mode. The gateway ignores answers here, and neither waits for
nor fails with such a stream: an answer of a model server is never delayed or cut by its observer."""

from __future__ import annotations

from headrace.core import Decision, Refusal
from headrace.extproc.events import Event, RequestObserved
from headrace.extproc.metadata import last_forwarded, read_headers
from headrace.extproc.modes import http_body
from headrace.extproc.response import ResponseReader
from headrace.extproc.settings import ConversationSettings
from headrace.extproc.wire import Kind, Message
from headrace.extproc.work import Work
from headrace.protocol import http


class Observation:
    """The state of one observation stream. Any order and any subset of messages is taken: modes differ by gateway."""

    def __init__(self, settings: ConversationSettings) -> None:
        self.events: list[Event] = []
        self.work = Work()
        self._request_id = ""
        self._response = ResponseReader(self.events, settings.responses)
        self.close = self._response.close

    @property
    def request_id(self) -> str:
        """The observed request's id; "" before its headers."""
        return self._request_id

    # As of a conversation: there is nothing to wait for, nor to hold.
    collecting = request_done = False

    def sent(self) -> None:
        """Nothing is ever sent."""

    def handle(self, message: Message) -> list[bytes]:
        """Take one message; there is never an answer. Raises MalformedMessage."""
        if message.kind is Kind.REQUEST_HEADERS:
            headers, _ = read_headers(message.content)
            self._request_id = headers.get(http.REQUEST_ID, "")
            named = next((headers[name] for name in http.FAIRNESS_ID if headers.get(name)), "")
            flow = named or last_forwarded(headers)
            self.events.append(RequestObserved(self._request_id, headers.get(http.DESTINATION, ""), flow))
        elif message.kind is Kind.RESPONSE_HEADERS:
            self._response.headers(message)
        elif message.kind is Kind.RESPONSE_BODY and not self._response.ended:
            self._response.piece(http_body(message.content))
        elif message.kind is Kind.RESPONSE_TRAILERS:
            self._response.end()
        return []

    def resume(self, outcome: Decision | Refusal) -> list[bytes]:
        """An observation never asks for a pick."""
        raise RuntimeError("no pick was asked for")
