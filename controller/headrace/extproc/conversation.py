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

import contextlib
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from headrace.core import Decision, Refusal, RefusalReason, Request
from headrace.extproc import answers
from headrace.extproc.body import BodyFacts, UnreadableBody, read_body
from headrace.extproc.events import Event, PickNeeded, RequestRefused
from headrace.extproc.metadata import conformance_report, read_headers, subset_hint
from headrace.extproc.model_name import with_model
from headrace.extproc.modes import (
    ONE_BODY_ANSWER,
    PICK_FROM_HEADERS,
    BodyMode,
    ProtocolViolation,
    http_body,
    read_config,
)
from headrace.extproc.response import ResponsePhase
from headrace.extproc.settings import ConversationSettings
from headrace.extproc.wire import Kind, Message
from headrace.protocol import http


class _Phase(Enum):
    START = auto()
    COLLECTING = auto()  # the request's body is on its way
    PICKING = auto()  # a PickNeeded is out
    FORWARDING = auto()  # picked; bodies and trailers of the request pass by
    RESPONDING = auto()  # the response's headers have come
    REFUSED = auto()


class _Site(Enum):
    """The answer that carries the pick."""

    HEADERS = auto()
    BODY = auto()
    TRAILERS = auto()
    DUPLEX = auto()


class Conversation:
    """The state machine of one ext_proc stream that picks."""

    def __init__(self, settings: ConversationSettings) -> None:
        self._settings = settings
        self.events: list[Event] = []
        self._phase = _Phase.START
        self._site = _Site.HEADERS
        # Without a protocol_config (older gateways) the protocol's own mode is meant.
        self._request_mode = BodyMode.FULL_DUPLEX_STREAMED
        self._response_mode = BodyMode.FULL_DUPLEX_STREAMED
        self._headers: dict[str, str] = {}
        self._headers_seen = False
        self._subset: tuple[str, ...] | None = None
        self._request_id = ""
        self._request_id_is_new = False
        self._pieces: list[bytes] = []
        self._held = 0
        self._body = b""
        self._body_ended = False
        self._trailers_ended = False
        # Made when it is needed: most conversations end with the request.
        self._response: ResponsePhase | None = None
        self._model = ""
        self._backlog: list[Message] = []

    def handle(self, message: Message) -> list[bytes]:
        """The answers to one message, in the order to send them.

        Raises MalformedMessage or ProtocolViolation, both the proxy's fault; the conversation is over then."""
        if self._phase is _Phase.PICKING:
            self._backlog.append(message)
            return []
        if message.protocol_config is not None:
            self._request_mode, self._response_mode = read_config(message.protocol_config)
        if message.kind is None or self._phase is _Phase.REFUSED:
            return []
        handler = _TRANSITIONS.get((self._phase, message.kind))
        if handler is None:
            raise ProtocolViolation(f"{message.kind.name} while {self._phase.name}")
        if message.metadata_context is not None and self._phase in _BEFORE_PICK and self._subset is None:
            self._subset = subset_hint(message.metadata_context) if self._settings.subset_hint else None
        return handler(self, message)

    def resume(self, outcome: Decision | Refusal) -> list[bytes]:
        """The answers once the pick that was asked for is decided, including those to messages that came meanwhile."""
        if self._phase is not _Phase.PICKING:
            raise RuntimeError("no pick was asked for")
        if isinstance(outcome, Refusal):
            out = [self._refuse(outcome)]
        else:
            self._phase = _Phase.FORWARDING
            out = self._picked(outcome)
        backlog, self._backlog = self._backlog, []
        for message in backlog:
            out += self.handle(message)
        return out

    @property
    def request_done(self) -> bool:
        """Whether the request is picked for and nothing of it is to come that has to be answered."""
        if self._phase is not _Phase.FORWARDING:
            return False
        return self._body_ended or self._trailers_ended or self._request_mode in ONE_BODY_ANSWER

    @property
    def request_id(self) -> str:
        """The request's id; "" before its headers."""
        return self._request_id

    # The request.

    def _on_request_headers(self, message: Message) -> list[bytes]:
        self._headers, ended = read_headers(message.content)
        self._headers_seen = True
        self._name_request()
        mode = self._request_mode
        if ended or mode in PICK_FROM_HEADERS:
            self._body_ended = ended
            return self._ask(_Site.HEADERS, BodyFacts())
        self._phase = _Phase.COLLECTING
        if mode is BodyMode.FULL_DUPLEX_STREAMED:
            return []
        # Buffered: the gateway sends the body only after this answer. What clients may not send goes right away.
        return [answers.request_headers(self._settings.templates.of("")[0])]

    def _on_body_without_headers(self, message: Message) -> list[bytes]:
        """The gateway skips request headers: the pick can only be told as metadata."""
        self._name_request()
        if self._request_mode in PICK_FROM_HEADERS:
            self._phase = _Phase.FORWARDING
            return self._on_passing_body(message)
        self._phase = _Phase.COLLECTING
        return self._on_request_body(message)

    def _on_request_body(self, message: Message) -> list[bytes]:
        body = http_body(message.content)
        self._pieces.append(body.body)
        self._held += len(body.body)
        if self._held > self._settings.max_body_bytes:
            limit = self._settings.max_body_bytes
            return [self._refuse_here(413, RefusalReason.BODY_TOO_LARGE, f"the body is over {limit} bytes")]
        self._body_ended = bool(body.end_of_stream)
        if self._request_mode is BodyMode.FULL_DUPLEX_STREAMED:
            return self._body_is_whole(_Site.DUPLEX) if self._body_ended else []
        return self._body_is_whole(_Site.BODY)

    def _on_collected_trailers(self, message: Message) -> list[bytes]:
        self._trailers_ended = True
        duplex = self._request_mode is BodyMode.FULL_DUPLEX_STREAMED
        return self._body_is_whole(_Site.DUPLEX if duplex else _Site.TRAILERS)

    def _body_is_whole(self, site: _Site) -> list[bytes]:
        self._body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces = []
        headers = self._headers
        # A partly buffered body without its end may have been cut at the gateway's limit.
        whole = self._request_mode is not BodyMode.BUFFERED_PARTIAL or self._body_ended
        try:
            facts = read_body(
                self._body,
                path=headers.get(http.PATH, "") if headers.get(http.METHOD, "POST") == "POST" else "",
                content_encoding=headers.get(http.CONTENT_ENCODING, ""),
                whole=whole,
                max_bytes=self._settings.max_parsed_body_bytes,
            )
        except UnreadableBody as error:
            return [self._refuse_here(400, RefusalReason.BAD_REQUEST, str(error))]
        return self._ask(site, facts)

    def _name_request(self) -> None:
        self._request_id = self._headers.get(http.REQUEST_ID, "")
        if not self._request_id:
            self._request_id = self._settings.new_request_id()
            self._request_id_is_new = True

    def _ask(self, site: _Site, facts: BodyFacts) -> list[bytes]:
        self._site = site
        self._phase = _Phase.PICKING
        self._model = facts.model
        request = self._request(facts)
        self._headers = {}
        self.events.append(PickNeeded(request, covers_response=self._response_mode is not BodyMode.NONE))
        return []

    def _request(self, facts: BodyFacts) -> Request:
        """The request as it is known now."""
        hidden = http.UNTRUSTED if self._settings.control_headers else http.UNTRUSTED_OR_CONTROL
        headers = {name: value for name, value in self._headers.items() if name not in hidden}
        return _request(self._request_id, headers, self._subset, self._body, facts)

    def _picked(self, decision: Decision) -> list[bytes]:
        mutation, metadata = self._settings.templates.of(decision.destination)
        if self._request_id_is_new:
            mutation += answers.set_header(http.REQUEST_ID, self._request_id)
        for name, value in decision.response_headers:
            self._response_phase().mutation += answers.set_header(name, value)
        body, self._body = self._body, b""
        rewritten = self._rewritten(body, decision.model)
        if self._site is _Site.HEADERS:
            return [answers.request_headers(mutation) + metadata]
        if self._site is _Site.BODY:
            return [answers.buffered_request_body(mutation, rewritten) + metadata]
        if self._site is _Site.TRAILERS:
            return [answers.UNCHANGED[Kind.REQUEST_TRAILERS] + metadata]
        body = rewritten if rewritten is not None else body
        out: list[bytes] = []
        if self._headers_seen:
            if not self._trailers_ended:
                # Envoy drops the client's own content-length in this mode; some model servers want one.
                mutation += answers.set_content_length(len(body))
            out.append(answers.request_headers(mutation) + metadata)
        out += answers.chunks(Kind.REQUEST_BODY, body, end_of_stream=not self._trailers_ended)
        if self._trailers_ended:
            out.append(answers.UNCHANGED[Kind.REQUEST_TRAILERS])
        if not self._headers_seen and out:
            out[0] += metadata
        return out

    def _rewritten(self, body: bytes, model: str | None) -> bytes | None:
        """The body with another model's name, if that is wanted and its own can be found."""
        if model is None or not self._model or model == self._model:
            return None
        try:
            changed = with_model(body, model, self._settings.max_parsed_body_bytes)
        except ValueError:
            return None
        self._response_phase().restore_model = self._model
        return changed

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
        self._body_ended = bool(body.end_of_stream or body.end_of_stream_without_message)
        if self._request_mode is BodyMode.STREAMED:
            return [answers.UNCHANGED[Kind.REQUEST_BODY]]
        return [answers.passed_on(Kind.REQUEST_BODY, message.content)]

    def _on_passing_trailers(self, message: Message) -> list[bytes]:
        return [answers.UNCHANGED[Kind.REQUEST_TRAILERS]]

    def _refuse_here(self, status: int, reason: RefusalReason, text: str) -> bytes:
        self._body = b""
        self.events.append(RequestRefused(self._request(BodyFacts()), status, reason.value))
        return self._refuse(Refusal(status, reason, text))

    def _refuse(self, refusal: Refusal) -> bytes:
        self._phase = _Phase.REFUSED
        self._pieces = []
        self._body = b""
        return answers.immediate(refusal, ((http.REQUEST_ID, self._request_id),))

    # The response, where the gateway sends it through this stream too.

    def _on_response_headers(self, message: Message) -> list[bytes]:
        self._pieces = []  # a local answer may overtake a body that was still coming
        self._phase = _Phase.RESPONDING
        response = self._response_phase()
        if self._settings.conformance_hooks:
            report = conformance_report(message.metadata_context)
            response.mutation += answers.set_header(http.CONFORMANCE_SERVED, report)
        return response.headers(message, self._response_mode)

    def _on_response_body(self, message: Message) -> list[bytes]:
        return self._response_phase().body(message, self._response_mode)

    def _on_response_trailers(self, message: Message) -> list[bytes]:
        return self._response_phase().trailers()

    def _response_phase(self) -> ResponsePhase:
        if self._response is None:
            self._response = ResponsePhase(self.events)
        return self._response


_BEFORE_PICK = frozenset((_Phase.START, _Phase.COLLECTING))

_TRANSITIONS: dict[tuple[_Phase, Kind], Callable[[Conversation, Message], list[bytes]]] = {
    (_Phase.START, Kind.REQUEST_HEADERS): Conversation._on_request_headers,
    (_Phase.START, Kind.REQUEST_BODY): Conversation._on_body_without_headers,
    (_Phase.START, Kind.REQUEST_TRAILERS): Conversation._on_passing_trailers,
    (_Phase.START, Kind.RESPONSE_HEADERS): Conversation._on_response_headers,
    (_Phase.START, Kind.RESPONSE_BODY): Conversation._on_response_body,
    (_Phase.START, Kind.RESPONSE_TRAILERS): Conversation._on_response_trailers,
    (_Phase.COLLECTING, Kind.REQUEST_BODY): Conversation._on_request_body,
    (_Phase.COLLECTING, Kind.REQUEST_TRAILERS): Conversation._on_collected_trailers,
    # A local answer of the gateway (a timeout, a full buffer) overtakes the body.
    (_Phase.COLLECTING, Kind.RESPONSE_HEADERS): Conversation._on_response_headers,
    (_Phase.FORWARDING, Kind.REQUEST_BODY): Conversation._on_passing_body,
    (_Phase.FORWARDING, Kind.REQUEST_TRAILERS): Conversation._on_passing_trailers,
    (_Phase.FORWARDING, Kind.RESPONSE_HEADERS): Conversation._on_response_headers,
    (_Phase.FORWARDING, Kind.RESPONSE_BODY): Conversation._on_response_body,
    (_Phase.FORWARDING, Kind.RESPONSE_TRAILERS): Conversation._on_response_trailers,
    # A model server may answer before the request has ended.
    (_Phase.RESPONDING, Kind.REQUEST_BODY): Conversation._on_passing_body,
    (_Phase.RESPONDING, Kind.REQUEST_TRAILERS): Conversation._on_passing_trailers,
    (_Phase.RESPONDING, Kind.RESPONSE_BODY): Conversation._on_response_body,
    (_Phase.RESPONDING, Kind.RESPONSE_TRAILERS): Conversation._on_response_trailers,
}


def _request(
    request_id: str, headers: dict[str, str], subset: tuple[str, ...] | None, body: bytes, facts: BodyFacts
) -> Request:
    return Request(
        request_id=request_id,
        method=headers.get(http.METHOD, "POST"),
        path=headers.get(http.PATH, "/"),
        headers=headers,
        model=facts.model,
        prompt=facts.prompt,
        unread=facts.unread,
        body_size=len(body),
        body=body,
        streaming=facts.streaming,
        max_tokens=facts.max_tokens,
        subset=subset,
        **({} if http.CONTROL.isdisjoint(headers) else _read_control(headers)),
    )


def _read_control(headers: dict[str, str]) -> dict[str, Any]:
    """The fields of a Request that clients set by headers."""
    return {
        "objective": _first(headers, http.OBJECTIVE),
        "fairness_id": _first(headers, http.FAIRNESS_ID),
        "slo_ttft_ms": _milliseconds(headers, http.SLO_TTFT_MS),
        "slo_tpot_ms": _milliseconds(headers, http.SLO_TPOT_MS),
        "wanted_model": _first(headers, http.MODEL_REWRITE),
    }


def _first(headers: dict[str, str], candidates: tuple[str, ...]) -> str:
    for name in candidates:
        if headers.get(name):
            return headers[name]
    return ""


def _milliseconds(headers: dict[str, str], candidates: tuple[str, ...]) -> float | None:
    """The first header's positive number; what is none asks for nothing."""
    for name in candidates:
        with contextlib.suppress(ValueError):
            if 0.0 < (value := float(headers.get(name, ""))) < 1e12:
                return value
    return None
