"""An endpoint picker that answers what it is told to, in the protocol's own mode: somebody else's, for the gateway."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from headrace.xds.envoy.config.core.v3 import base_pb2
from headrace.xds.envoy.service.ext_proc.v3 import external_processor_pb2 as pb

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
DESTINATION = "x-gateway-destination-endpoint"


@dataclass
class ScriptedPicker:
    """Picks `destination` for every request; `served` takes what the gateway says of each response."""

    destination: str = ""
    port: int = 0
    served: list[str] = field(default_factory=list)

    async def process(self, requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        """One stream, both directions FULL_DUPLEX_STREAMED."""
        async for raw in requests:
            message = pb.ProcessingRequest.FromString(raw)
            answer = pb.ProcessingResponse()
            kind = message.WhichOneof("request")
            if kind == "request_headers":
                option = answer.request_headers.response.header_mutation.set_headers.add()
                option.header.CopyFrom(base_pb2.HeaderValue(key=DESTINATION, raw_value=self.destination.encode()))
                answer.dynamic_metadata.update({"envoy.lb": {DESTINATION: self.destination}})
            elif kind == "response_headers":
                fields = message.metadata_context.filter_metadata["envoy.lb"].fields
                self.served.append(fields[f"{DESTINATION}-served"].string_value)
                answer.response_headers.SetInParent()
            elif kind in ("request_body", "response_body"):
                body = getattr(message, kind)
                streamed = getattr(answer, kind).response.body_mutation.streamed_response
                streamed.body, streamed.end_of_stream = body.body, body.end_of_stream
            else:
                getattr(answer, str(kind)).SetInParent()
            yield answer.SerializeToString()


@contextlib.asynccontextmanager
async def scripted_picker(destination: str) -> AsyncIterator[ScriptedPicker]:
    """Serve until the block ends, on a free port of loopback, in cleartext."""
    picker = ScriptedPicker(destination)

    # gRPC takes only an asynchronous generator function for a stream of answers.
    async def process(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for answer in picker.process(requests, context):
            yield answer

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.http2.max_ping_strikes", 0)])
    methods: dict[str, Any] = {"Process": grpc.stream_stream_rpc_method_handler(process)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    picker.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield picker
    finally:
        await server.stop(0)
