"""The conformance suite's response header: the endpoint that the gateway says answered, or what it left out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.extproc import BodyMode
from headrace.extproc.events import ResponseStarted
from headrace.xds.envoy.config.core.v3 import base_pb2
from headrace.xds.envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from . import messages as m
from .messages import DESTINATION, Gateway

SERVED = f"{DESTINATION}-served"
HEADER = "x-conformance-test-served-endpoint"


def gateway(hooks: bool = True, reorder: bool = False) -> Gateway:
    """A gateway in the protocol's own mode whose request is picked for."""
    found = Gateway(settings=m.settings(conformance_hooks=hooks), reorder=reorder)
    mode = m.config(BodyMode.FULL_DUPLEX_STREAMED, BodyMode.FULL_DUPLEX_STREAMED)
    found.send(m.request_headers(protocol_config=mode))
    found.send(m.body("request_body", b'{"model":"m"}', True))
    return found


def report(answer: pb.ProcessingResponse) -> str:
    assert answer.WhichOneof("response") == "response_headers"
    mutation = answer.response_headers.response.header_mutation
    assert not mutation.remove_headers
    headers = m.set_headers(mutation)
    assert set(headers) == {HEADER}
    return headers[HEADER]


@given(text=st.text(min_size=1), reorder=st.booleans())
def test_the_served_endpoint_is_told(text: str, reorder: bool) -> None:
    flow = gateway(reorder=reorder)
    served = m.metadata("envoy.lb", {SERVED: text})
    (answer,) = flow.send(m.response_headers({":status": "200"}, metadata_context=served))
    assert report(answer) == text
    (started,) = [event for event in flow.events if isinstance(event, ResponseStarted)]
    assert (started.status, started.served) == (200, text)
    # Bodies and their end pass as without the hooks.
    (piece,) = flow.send(m.body("response_body", b"answer", True))
    assert piece.response_body.response.body_mutation.streamed_response.body == b"answer"


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        base_pb2.Metadata(),
        m.metadata("envoy.lb", {DESTINATION: "10.0.0.1:3000"}),
        m.metadata("envoy.lb", {SERVED: ["10.0.0.1:3000"]}),
        m.metadata("other", {SERVED: "10.0.0.1:3000"}),
    ],
)
def test_a_gateway_that_does_not_say_is_found_out(metadata: base_pb2.Metadata | None) -> None:
    (answer,) = gateway().send(m.response_headers({":status": "200"}, metadata_context=metadata))
    assert report(answer).startswith("fail: ")


def test_without_the_flag_responses_are_left_alone() -> None:
    served = m.metadata("envoy.lb", {SERVED: "10.0.0.1:3000"})
    (answer,) = gateway(hooks=False).send(m.response_headers({":status": "200"}, metadata_context=served))
    assert answer == pb.ProcessingResponse(response_headers=pb.HeadersResponse())
