"""Picks as spans at a receiver of OTLP, over gRPC and over HTTP, in the trace that the client began."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from ...hang import HANG_SECONDS
from .conftest import RunStack

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Receiver:
    """A collector: keeps the spans it is sent. While `away`, it says that it is."""

    def __init__(self) -> None:
        self.away = False
        self.refused = 0
        self.tokens: set[str] = set()
        self.spans: list[Any] = []
        self.services: set[str] = set()
        self.came = asyncio.Event()

    def take(self, raw: bytes, token: str) -> bool:
        if self.away:
            self.refused += 1
            return False
        self.tokens.add(token)
        for of_resource in ExportTraceServiceRequest.FromString(raw).resource_spans:
            self.services |= {a.value.string_value for a in of_resource.resource.attributes if a.key == "service.name"}
            for of_scope in of_resource.scope_spans:
                self.spans.extend(of_scope.spans)
        self.came.set()
        return True

    async def wait_spans(self, count: int) -> list[Any]:
        async with asyncio.timeout(HANG_SECONDS):
            while len(self.spans) < count:
                self.came.clear()
                await self.came.wait()
        return self.spans


@contextlib.asynccontextmanager
async def receiver(protocol: str) -> AsyncIterator[tuple[Receiver, str]]:
    """A receiver, and its endpoint as a variable has it."""
    kept = Receiver()

    async def export(raw: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        token = str(dict(context.invocation_metadata() or ()).get("authorization", ""))
        if not kept.take(raw, token):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        return b""

    async def post(request: web.Request) -> web.Response:
        assert request.content_type == "application/x-protobuf"
        raw = await request.read()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        taken = kept.take(raw, request.headers.get("authorization", ""))
        return web.Response(status=200 if taken else 503)

    if protocol == "grpc":
        server = grpc.aio.server()
        service = "opentelemetry.proto.collector.trace.v1.TraceService"
        methods = {"Export": grpc.unary_unary_rpc_method_handler(export)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield kept, f"http://127.0.0.1:{port}"
        finally:
            await server.stop(0)
        return
    app = web.Application()
    app.router.add_post("/v1/traces", post)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield kept, f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


@pytest.mark.parametrize(("protocol", "compression"), [("grpc", "none"), ("http/protobuf", "gzip")])
async def test_picks_are_spans_of_the_clients_trace(
    run_stack: RunStack, monkeypatch: pytest.MonkeyPatch, protocol: str, compression: str
) -> None:
    async with receiver(protocol) as (kept, endpoint):
        for name, value in {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_EXPORTER_OTLP_COMPRESSION": compression,
            "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20t",
            "OTEL_SERVICE_NAME": "the-picker",
            "OTEL_TRACES_SAMPLER_ARG": "0",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            # How long a batch is tried again.
            "OTEL_EXPORTER_OTLP_TIMEOUT": str(HANG_SECONDS),
        }.items():
            monkeypatch.setenv(name, value)
        async with run_stack(servers=2, flags=("--tracing",)) as stack:
            url = stack.url + "/v1/completions"
            body = {"model": "base", "prompt": "a secret"}
            sampled = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "one"}
            async with stack.client.post(url, json=body, headers=sampled) as answer:
                assert answer.status == 200
                served = (await answer.json())["server"]
            (span,) = await kept.wait_spans(1)
            assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
            assert span.name == "headrace.pick"
            assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano
            told = attributes(span)
            assert (told["headrace.request_id"], told["headrace.endpoint"]) == ("one", served)
            assert (told["headrace.candidates"], told["headrace.outcome"]) == (2, "picked")
            assert (told["headrace.pool"], told["gen_ai.request.model"]) == ("static", "base")
            assert "secret" not in str(span)
            assert (kept.services, kept.tokens) == ({"the-picker"}, {"Bearer t"})
            # Nobody asked for these: none of them is kept at a share of 0.
            for headers in ({}, {"traceparent": f"00-{TRACE}-{PARENT}-00"}):
                async with stack.client.post(url, json=body, headers=headers) as answer:
                    assert answer.status == 200
            # A receiver that is away gets its spans when it is back; requests do not notice.
            kept.away = True
            for number in range(3):
                again = {**sampled, "x-request-id": f"later-{number}"}
                async with stack.client.post(url, json=body, headers=again) as answer:
                    assert answer.status == 200
            async with asyncio.timeout(HANG_SECONDS):
                while not kept.refused:  # noqa: ASYNC110 (another process)
                    await asyncio.sleep(0.02)
            kept.away = False
            spans = await kept.wait_spans(4)
            ids = [attributes(span)["headrace.request_id"] for span in spans]
            assert sorted(ids) == ["later-0", "later-1", "later-2", "one"]
            # Counted when the answer has come.
            async with asyncio.timeout(HANG_SECONDS):
                while await stack.picker.metric('headrace_epp_spans_total{result="ok"}') != 4:  # noqa: ASYNC110 (another process)
                    await asyncio.sleep(0.02)
