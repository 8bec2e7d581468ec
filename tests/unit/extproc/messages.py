"""A gateway's side of the conversation: messages as a gateway writes them, answers read with protobuf's own classes."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from google.protobuf import json_format

from headrace.core import Decision, Refusal
from headrace.extproc import BodyMode, ConversationSettings, ExtProcStream
from headrace.extproc.events import Event, PickNeeded
from headrace.xds.envoy.config.core.v3 import base_pb2
from headrace.xds.envoy.service.ext_proc.v3 import external_processor_pb2 as pb

T = TypeVar("T")

PICK = "10.0.0.7:8000"
DESTINATION = "x-gateway-destination-endpoint"


def result(steps: Generator[None, None, T]) -> T:
    """What work in steps comes to."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            value: T = done.value
            return value


def settings(**changes: Any) -> ConversationSettings:
    return ConversationSettings(**{"new_request_id": lambda: "new-id", **changes})


def config(request: BodyMode, response: BodyMode = BodyMode.NONE) -> pb.ProtocolConfiguration:
    return pb.ProtocolConfiguration(request_body_mode=int(request), response_body_mode=int(response))


def http_headers(headers: Mapping[str, str] | Sequence[tuple[str, str]], end_of_stream: bool = False) -> pb.HttpHeaders:
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    values = [base_pb2.HeaderValue(key=name, raw_value=value.encode()) for name, value in pairs]
    return pb.HttpHeaders(headers=base_pb2.HeaderMap(headers=values), end_of_stream=end_of_stream)


REQUEST = {":method": "POST", ":path": "/v1/completions", ":authority": "x", "x-request-id": "id-1"}


def request_headers(
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = REQUEST, end_of_stream: bool = False, **fields: Any
) -> pb.ProcessingRequest:
    return pb.ProcessingRequest(request_headers=http_headers(headers, end_of_stream), **fields)


def response_headers(headers: Mapping[str, str], end_of_stream: bool = False, **fields: Any) -> pb.ProcessingRequest:
    return pb.ProcessingRequest(response_headers=http_headers(headers, end_of_stream), **fields)


def body(kind: str, content: bytes, end_of_stream: bool) -> pb.ProcessingRequest:
    return pb.ProcessingRequest(**{kind: pb.HttpBody(body=content, end_of_stream=end_of_stream)})


def trailers(kind: str) -> pb.ProcessingRequest:
    return pb.ProcessingRequest(**{kind: pb.HttpTrailers()})


def metadata(namespace: str, value: Mapping[str, Any]) -> base_pb2.Metadata:
    return json_format.ParseDict({"filterMetadata": {namespace: dict(value)}}, base_pb2.Metadata())


def oneof_last(message: pb.ProcessingRequest) -> bytes:
    """The message as Go writes it: the oneof after every other field."""
    rest = pb.ProcessingRequest()
    rest.CopyFrom(message)
    only = pb.ProcessingRequest()
    name = message.WhichOneof("request")
    if name is not None:
        rest.ClearField(name)
        getattr(only, name).CopyFrom(getattr(message, name))
    return rest.SerializeToString() + only.SerializeToString()


@dataclass
class Gateway:
    """Feeds a stream and collects what comes back. Picks are answered with `outcome` as soon as they are asked for."""

    outcome: Decision | Refusal = field(default_factory=lambda: Decision((PICK,)))
    reorder: bool = False
    settings: ConversationSettings = field(default_factory=settings)

    def __post_init__(self) -> None:
        self.stream = ExtProcStream(self.settings)
        self.answers: list[pb.ProcessingResponse] = []
        self.events: list[Event] = []

    def send(self, message: pb.ProcessingRequest) -> list[pb.ProcessingResponse]:
        raw = oneof_last(message) if self.reorder else message.SerializeToString()
        return self.send_raw(raw)

    def send_raw(self, raw: bytes) -> list[pb.ProcessingResponse]:
        out = list(self.stream.feed(raw))
        while (events := self.stream.take_events()) or self.stream.busy:
            self.events += events
            for event in events:
                if isinstance(event, PickNeeded):
                    out += self.stream.resume(self.outcome)
            out += self.stream.go_on()
        read = [pb.ProcessingResponse.FromString(answer) for answer in out]
        self.answers += read
        return read

    @property
    def pick(self) -> PickNeeded:
        """The one pick that was asked for."""
        (event,) = [event for event in self.events if isinstance(event, PickNeeded)]
        return event


def set_headers(mutation: pb.HeaderMutation) -> dict[str, str]:
    found = {option.header.key: option.header.raw_value.decode() for option in mutation.set_headers}
    assert len(found) == len(mutation.set_headers)
    for option in mutation.set_headers:
        assert option.append_action == base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    return found


def picked_metadata(answer: pb.ProcessingResponse) -> str:
    return str(json_format.MessageToDict(answer.dynamic_metadata)["envoy.lb"][DESTINATION])
