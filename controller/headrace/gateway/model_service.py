"""Body-based routing: tells Envoy which model a request's body names, and which base model that is.

An ext_proc service on the discovery port, asked by the filter that `model_routing` puts into a listener. The answer
sets two headers and clears the route cache, so that the route is looked for again; the filters of the pool that is
found come later in the chain. A stream ends with its answer: nothing of a response depends on this process."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from msgspec import Struct

from headrace.core import Refusal, RefusalReason
from headrace.core.bounded_json import MAX_BYTES, TooComplex, TooLong
from headrace.extproc import MalformedMessage, answers
from headrace.extproc.body import model_steps
from headrace.extproc.metadata import read_headers
from headrace.extproc.wire import Kind, flag, nested, read_message
from headrace.gateway.metrics import Metrics
from headrace.gateway.snapshot import GatewayKey
from headrace.protocol import http, rpc
from headrace.xds.envoy.service.ext_proc.v3 import external_processor_pb2 as pb

logger = logging.getLogger(__name__)

# Bodies that are read at a time: the rest waits in Envoy, so that many long ones do not end in this process's memory.
_BODIES_AT_A_TIME = 8
# What an HttpBody has beside the body.
_AROUND_BODY = 1 << 10
_CLEAR_ROUTE_CACHE = flag(5, True)  # of CommonResponse


class ModelStream(Struct):
    """One request's conversation: headers, then its whole body. No I/O. `base_models` is model to base model."""

    base_models: Mapping[str, str]
    encoding: str = ""
    model: str = ""
    done: bool = False
    refused: bool = False

    def feed(self, raw: bytes) -> Generator[None, None, bytes]:
        """The answer to one message, come to in steps with a turn for others after each: a body too long or too complex
        to be read is refused. Raises MalformedMessage."""
        message = read_message(raw)
        if message.kind is Kind.REQUEST_HEADERS:
            headers, ended = read_headers(message.content)
            self.encoding = headers.get(http.CONTENT_ENCODING, "")
            self.done = ended
            return answers.UNCHANGED[message.kind]
        if message.kind is not Kind.REQUEST_BODY:
            raise MalformedMessage("neither headers nor a body of a request")
        self.done = True
        if len(message.content) > MAX_BYTES + _AROUND_BODY:
            # Not even taken out of its message: that is another copy.
            return self._refuse(413, RefusalReason.BODY_TOO_LARGE, TooLong(f"at most {MAX_BYTES} bytes are read"))
        try:
            body = pb.HttpBody.FromString(message.content)
        except DecodeError as error:
            raise MalformedMessage(f"HttpBody: {error}") from None
        try:
            self.model = yield from model_steps(body.body, content_encoding=self.encoding)
        except TooLong as error:
            return self._refuse(413, RefusalReason.BODY_TOO_LARGE, error)
        except TooComplex as error:
            return self._refuse(400, RefusalReason.BAD_REQUEST, error)
        return model_answer(self.model, self.base_models.get(self.model, ""))

    def _refuse(self, status: int, reason: RefusalReason, error: ValueError) -> bytes:
        self.refused = True
        return answers.immediate(Refusal(status, reason, f"the body cannot be read for its model: {error}"))


def model_answer(model: str, base_model: str) -> bytes:
    """The answer to a body: both headers as the body has them, or none, and a new look for the route.

    A name that no header can carry is none. Envoy has removed what the client sent under these names."""
    mutation = b"".join(
        answers.set_header(name, value)
        for name, value in ((http.MODEL, model), (http.BASE_MODEL, base_model))
        if value and value.isprintable()
    )
    if not mutation:
        return answers.UNCHANGED[Kind.REQUEST_BODY]
    return nested(3, nested(1, nested(2, mutation) + _CLEAR_ROUTE_CACHE))


@dataclass(eq=False)
class ModelService:
    """The gRPC service. `base_models` gives the newest mapping of model to base model for a Gateway; None: which one is
    not known."""

    base_models: Callable[[GatewayKey | None], Mapping[str, str]]
    metrics: Metrics

    def __post_init__(self) -> None:
        self._reading = asyncio.Semaphore(_BODIES_AT_A_TIME)

    def handler(self) -> grpc.GenericRpcHandler:
        """What a gRPC server registers."""
        method: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(self._process)
        return grpc.method_handlers_generic_handler(rpc.EXT_PROC_SERVICE, {"Process": method})

    async def _process(self, _: AsyncIterator[bytes], context: Any) -> None:
        stream = ModelStream(self.base_models(_gateway_of(context)))
        try:
            await self._turn(stream, context)
            if not stream.done:
                async with self._reading:
                    await self._turn(stream, context)
        except MalformedMessage as error:
            self.metrics.model_requests.labels("malformed").inc()
            logger.warning("body-based routing: the gateway broke the protocol: %s", error)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        result = "named" if stream.model else "refused" if stream.refused else "none"
        self.metrics.model_requests.labels(result).inc()

    async def _turn(self, stream: ModelStream, context: Any) -> None:
        raw = await context.read()
        if not isinstance(raw, bytes):  # grpc.aio.EOF
            stream.done = True
            return
        steps, answer = stream.feed(raw), None
        while answer is None:
            started = time.perf_counter()
            try:
                next(steps)
            except StopIteration as done:
                answer = done.value
            self.metrics.model_seconds.inc(time.perf_counter() - started)
            if answer is None:
                await asyncio.sleep(0)
        await context.write(answer)


def _gateway_of(context: Any) -> GatewayKey | None:
    """The Gateway that asks. An Envoy with an older configuration does not tell."""
    for key, value in context.invocation_metadata() or ():
        if key == rpc.GATEWAY and isinstance(value, str):
            namespace, _, name = value.partition("/")
            return (namespace, name)
    return None
