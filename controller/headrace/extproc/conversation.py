"""One request's ext_proc conversation: serialized ProcessingRequests in, serialized ProcessingResponses out.

No I/O and no clock. Where a pick is needed, `feed` puts a PickNeeded among the events and the conversation waits;
`resume` goes on with what was decided. Messages that come meanwhile are kept and answered afterwards, in order.

Every transition is in one table, `_TRANSITIONS`: what is not in it is the proxy's error, except that a refused request
ignores what was already on its way.

Where the pick is answered follows from the gateway's `protocol_config` (proposal 004; ext_proc.proto):

=====================  ================================================================================
request ends w/ headers  in the headers' answer
NONE, STREAMED           in the headers' answer: the pick comes from headers alone, bodies pass by
BUFFERED, ..._PARTIAL    headers continue at once, the pick is in the body's answer
FULL_DUPLEX_STREAMED     nothing until the body is whole, then headers, body pieces, trailers, in this order
GRPC                     as STREAMED, each piece sent on as it came
=====================  ================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum, IntEnum, auto

from headrace.core import Decision, Refusal, RefusalReason, Request
from headrace.extproc import answers
from headrace.extproc.body import BodyFacts, UnreadableBody
from headrace.extproc.events import Event, PickNeeded, RequestRefused
from headrace.extproc.metadata import NO_HEADERS, read_headers, subset_hint
from headrace.extproc.modes import (
    ONE_BODY_ANSWER,
    PICK_FROM_HEADERS,
    BodyMode,
    ProtocolViolation,
    http_body,
    read_config,
)
from headrace.extproc.request import request_of
from headrace.extproc.request_body import RequestBody
from headrace.extproc.response import ResponsePhase
from headrace.extproc.settings import ConversationSettings
from headrace.extproc.wire import Kind, Message
from headrace.extproc.work import Work
from headrace.protocol import http


class _Phase(IntEnum):
    START = auto()
    COLLECTING = auto()  # the request's body is on its way
    PICKING = auto()  # a PickNeeded is out
    FORWARDING = auto()  # picked; bodies and trailers of the request pass by
    RESPONDING = auto()  # the response's headers have come
    REFUSED = auto()


# To look a member up in its class costs more than all else that is done with it.
_START, _COLLECTING, _PICKING, _FORWARDING, _RESPONDING, _REFUSED = _Phase
_DUPLEX_MODE = BodyMode.FULL_DUPLEX_STREAMED
_CUT_MODE = BodyMode.BUFFERED_PARTIAL
_NONE_MODE = BodyMode.NONE


class _Site(Enum):
    """The answer that carries the pick."""

    HEADERS = auto()
    BODY = auto()
    TRAILERS = auto()
    DUPLEX = auto()


_AT_HEADERS, _AT_BODY, _AT_TRAILERS, _AT_DUPLEX = _Site


class Conversation:
    """The state machine of one ext_proc stream that picks."""

    # What a conversation begins with. They are the class's: most conversations change few of them.
    _phase: _Phase = _START
    _site: _Site = _AT_HEADERS
    # Without a protocol_config (older gateways) the protocol's own mode is meant.
    _request_mode: BodyMode = _DUPLEX_MODE
    _response_mode: BodyMode = _DUPLEX_MODE
    _headers = NO_HEADERS
    _subset: tuple[str, ...] | None = None
    # "" before the request's headers.
    request_id = ""
    _headers_seen = _request_id_is_new = _body_ended = _trailers_ended = False
    # Made when it is needed: most conversations end with the request.
    _response: ResponsePhase | None = None
    _model = ""
    _backlog: tuple[Message, ...] = ()

    def __init__(self, settings: ConversationSettings) -> None:
        self._settings = settings
        self.events: list[Event] = []
        self._body = RequestBody(settings)
        # Of a long body.
        self.work = Work()

    def handle(self, message: Message) -> list[bytes]:
        """The answers to one message, in the order to send them.

        Raises MalformedMessage or ProtocolViolation, both the proxy's fault; the conversation is over then."""
        if self._phase is _PICKING:
            self._backlog += (message,)
            return []
        if self.work.steps is not None:
            return [*self.work.finish(), *self.handle(message)]
        if message.protocol_config is not None:
            self._request_mode, self._response_mode = read_config(message.protocol_config)
        if message.kind is None or self._phase is _REFUSED:
            return []
        handler = _TRANSITIONS.get((self._phase, message.kind))
        if handler is None:
            raise ProtocolViolation(f"{message.kind.name} while {self._phase.name}")
        if message.metadata_context is not None and self._phase in _BEFORE_PICK and self._subset is None:
            self._subset = subset_hint(message.metadata_context) if self._settings.subset_hint else None
        return handler(self, message)

    def resume(self, outcome: Decision | Refusal) -> list[bytes]:
        """The answers once the pick that was asked for is decided, including those to messages that came meanwhile."""
        if self._phase is not _PICKING:
            raise RuntimeError("no pick was asked for")
        if isinstance(outcome, Refusal):
            out = [self._refuse(outcome)]
        else:
            self._phase = _FORWARDING
            out = self._picked(outcome)
        backlog, self._backlog = self._backlog, ()
        for message in backlog:
            out += self.handle(message)
        return out

    @property
    def collecting(self) -> bool:
        """Whether the rest of the request's body is waited for. A gateway that buffers it waits by its own rules."""
        return self._phase is _COLLECTING and self._request_mode is _DUPLEX_MODE

    def give_up_body(self) -> list[bytes]:
        """The answers where the rest of the request's body has not come in time."""
        text = f"the body is not complete after {self._settings.body_seconds:g} s"
        return [self._refuse_here(Refusal(408, RefusalReason.BODY_TIMEOUT, text))]

    def sent(self) -> None:
        """All answers so far are sent: what they were made of is not held any more."""
        if self._phase not in _HOLDING:
            self._body.drop()

    def close(self) -> None:
        """The stream is over, in whatever way."""
        self.work.stop()
        self._body.drop()
        if self._response is not None:
            self._response.close()

    @property
    def request_done(self) -> bool:
        """Whether the request is picked for and nothing of it is to come that has to be answered."""
        if self._phase is not _FORWARDING:
            return False
        return self._body_ended or self._trailers_ended or self._request_mode in ONE_BODY_ANSWER

    # The request.

    def _on_request_headers(self, message: Message) -> list[bytes]:
        self._headers, ended = read_headers(message.content)
        self._headers_seen = True
        self._name_request()
        mode = self._request_mode
        if ended or mode in PICK_FROM_HEADERS:
            self._body_ended = ended
            return self._ask(BodyFacts())
        self._phase = _COLLECTING
        if mode is _DUPLEX_MODE:
            return []
        # Buffered: the gateway sends the body only after this answer. What clients may not send goes right away.
        return [answers.request_headers(self._settings.templates.of("")[0])]

    def _on_body_without_headers(self, message: Message) -> list[bytes]:
        """The gateway skips request headers: the pick can only be told as metadata."""
        self._name_request()
        if self._request_mode in PICK_FROM_HEADERS:
            self._phase = _FORWARDING
            return self._on_passing_body(message)
        self._phase = _COLLECTING
        return self._on_request_body(message)

    def _on_request_body(self, message: Message) -> list[bytes]:
        body = http_body(message.content)
        self._body_ended = body.end_of_stream
        # A partly buffered body without its end may have been cut at the gateway's limit.
        cut = self._request_mode is _CUT_MODE and not self._body_ended
        refusal = self._body.add(body.body, cut=cut)
        if refusal is not None:
            return [self._refuse_here(refusal)]
        if self._request_mode is not _DUPLEX_MODE:
            return self._body_is_whole(_AT_BODY)
        if self._body_ended:
            return self._body_is_whole(_AT_DUPLEX)
        if self._body.is_long:
            self.work.begin(self._body.read_steps())
        return []

    def _on_collected_trailers(self, message: Message) -> list[bytes]:
        self._trailers_ended = True
        duplex = self._request_mode is _DUPLEX_MODE
        return self._body_is_whole(_AT_DUPLEX if duplex else _AT_TRAILERS)

    def _body_is_whole(self, site: _Site) -> list[bytes]:
        self._site = site
        self._body.end()
        if not self._body.is_long:
            return self._read()
        self.work.begin(self._read_steps())
        return []

    def _read_steps(self) -> Iterator[list[bytes]]:
        yield from self._body.read_steps()
        yield self._read()

    def _read(self) -> list[bytes]:
        whole = self._request_mode is not _CUT_MODE or self._body_ended
        try:
            facts = self._body.facts(self._headers.known, whole=whole)
        except UnreadableBody as error:
            return [self._refuse_here(Refusal(400, RefusalReason.BAD_REQUEST, str(error)))]
        return self._ask(facts)

    def _name_request(self) -> None:
        known = self._headers.known.get(http.REQUEST_ID, "")
        self._request_id_is_new = not known
        self.request_id = known or self._settings.new_request_id()

    def _ask(self, facts: BodyFacts) -> list[bytes]:
        self._phase = _PICKING
        self._model = facts.model
        request = self._request(facts)
        self._headers = NO_HEADERS
        self.events.append(PickNeeded(request, covers_response=self._response_mode is not _NONE_MODE))
        return []

    def _request(self, facts: BodyFacts) -> Request:
        """The request as it is known now."""
        return request_of(self._settings, self.request_id, self._headers, self._subset, self._body, facts)

    def _picked(self, decision: Decision) -> list[bytes]:
        for name, value in decision.response_headers:
            self._response_phase().mutation += answers.set_header(name, value)
        renamed = decision.model is not None and self._rename(decision.model)
        if self._site is _AT_DUPLEX:
            return self._picked_in_duplex(decision.destination)
        mutation, metadata = self._pick_template(decision.destination)
        if self._site is _AT_HEADERS:
            return [answers.request_headers(mutation) + metadata]
        if self._site is _AT_BODY:
            body = self._body.joined() if renamed else None
            return [answers.buffered_request_body(mutation, body) + metadata]
        return [answers.UNCHANGED[Kind.REQUEST_TRAILERS] + metadata]

    def _picked_in_duplex(self, destination: str) -> list[bytes]:
        body = self._body.send_on(self.work, trailers=self._trailers_ended)
        if not self._headers_seen:
            return [body[0] + self._settings.templates.of(destination)[1], *body[1:]] if body else []
        if not self._request_id_is_new and not self._trailers_ended:
            return [self._settings.templates.answer(destination, self._body.size), *body]
        mutation, metadata = self._pick_template(destination)
        if not self._trailers_ended:
            mutation += answers.set_content_length(self._body.size)
        return [answers.request_headers(mutation) + metadata, *body]

    def _pick_template(self, destination: str) -> tuple[bytes, bytes]:
        mutation, metadata = self._settings.templates.of(destination)
        if self._request_id_is_new:
            mutation += answers.set_header(http.REQUEST_ID, self.request_id)
        return mutation, metadata

    def _rename(self, model: str) -> bool:
        """Put another model's name into the body, if that is wanted and its own can be found."""
        if not self._model or model == self._model or not self._body.rename(model):
            return False
        self._response_phase().restore_model = self._model
        return True

    def _on_passing_body(self, message: Message) -> list[bytes]:
        """A piece of the request after the pick."""
        if self._request_mode in (BodyMode.NONE, BodyMode.BUFFERED, BodyMode.BUFFERED_PARTIAL):
            return [answers.UNCHANGED[Kind.REQUEST_BODY]]
        body = http_body(message.content)
        if self._body_ended:
            # A second end of stream would corrupt the request: a proxy's empty echo of it is dropped.
            if body.body:
                raise ProtocolViolation("request body after its end of stream")
            return []
        self._body_ended = body.end_of_stream or body.end_of_stream_without_message
        if self._request_mode is BodyMode.STREAMED:
            return [answers.UNCHANGED[Kind.REQUEST_BODY]]
        return [answers.passed_on(Kind.REQUEST_BODY, message.content)]

    def _refuse_here(self, refusal: Refusal) -> bytes:
        self._body.drop()
        self.events.append(RequestRefused(self._request(BodyFacts()), refusal.status, refusal.reason.value))
        return self._refuse(refusal)

    def _refuse(self, refusal: Refusal) -> bytes:
        self._phase = _REFUSED
        self.close()
        return answers.immediate(refusal, ((http.REQUEST_ID, self.request_id),))

    # The response, where the gateway sends it through this stream too.

    def _on_response_headers(self, message: Message) -> list[bytes]:
        self._body.drop()  # a local answer may overtake a body that was still coming
        self._phase = _RESPONDING
        return self._response_phase().headers(
            message, self._response_mode, conformance=self._settings.conformance_hooks
        )

    def _response_phase(self) -> ResponsePhase:
        if self._response is None:
            self._response = ResponsePhase(self.events, self._settings.responses)
        return self._response


def _response_body(conversation: Conversation, message: Message) -> list[bytes]:
    return conversation._response_phase().body(message, conversation._response_mode)


def _response_trailers(conversation: Conversation, message: Message) -> list[bytes]:
    return conversation._response_phase().trailers()


def _pass_trailers(_: Conversation, message: Message) -> list[bytes]:
    return [answers.UNCHANGED[Kind.REQUEST_TRAILERS]]


_BEFORE_PICK = frozenset((_START, _COLLECTING))
_HOLDING = frozenset((_COLLECTING, _PICKING))

_TRANSITIONS: dict[tuple[_Phase, Kind], Callable[[Conversation, Message], list[bytes]]] = {
    (_START, Kind.REQUEST_HEADERS): Conversation._on_request_headers,
    (_START, Kind.REQUEST_BODY): Conversation._on_body_without_headers,
    (_START, Kind.REQUEST_TRAILERS): _pass_trailers,
    (_START, Kind.RESPONSE_HEADERS): Conversation._on_response_headers,
    (_START, Kind.RESPONSE_BODY): _response_body,
    (_START, Kind.RESPONSE_TRAILERS): _response_trailers,
    (_COLLECTING, Kind.REQUEST_BODY): Conversation._on_request_body,
    (_COLLECTING, Kind.REQUEST_TRAILERS): Conversation._on_collected_trailers,
    # A local answer of the gateway (a timeout, a full buffer) overtakes the body.
    (_COLLECTING, Kind.RESPONSE_HEADERS): Conversation._on_response_headers,
    (_FORWARDING, Kind.REQUEST_BODY): Conversation._on_passing_body,
    (_FORWARDING, Kind.REQUEST_TRAILERS): _pass_trailers,
    (_FORWARDING, Kind.RESPONSE_HEADERS): Conversation._on_response_headers,
    (_FORWARDING, Kind.RESPONSE_BODY): _response_body,
    (_FORWARDING, Kind.RESPONSE_TRAILERS): _response_trailers,
    # A model server may answer before the request has ended.
    (_RESPONDING, Kind.REQUEST_BODY): Conversation._on_passing_body,
    (_RESPONDING, Kind.REQUEST_TRAILERS): _pass_trailers,
    (_RESPONDING, Kind.RESPONSE_BODY): _response_body,
    (_RESPONDING, Kind.RESPONSE_TRAILERS): _response_trailers,
}
