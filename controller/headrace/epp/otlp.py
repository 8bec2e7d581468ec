"""Sends spans as OTLP, over gRPC or HTTP, on the event loop: no thread, and nothing that a request waits for.

What cannot be sent is tried again with later spans; past the queue's bound spans are dropped and counted."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import ssl
from collections.abc import Iterable, Sequence

import aiohttp
import grpc
import grpc.aio
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from headrace.epp import otlp_pb2 as messages
from headrace.epp.tracing import Span, Tracer, Value
from headrace.epp.tracing_settings import TracingSettings

logger = logging.getLogger(__name__)

_SERVER, _ERROR = 2, 2
_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
# OTLP: these say that the same may be taken later.
_LATER_GRPC = {
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}
_LATER_HTTP = {408, 429, 502, 503, 504}


class NotTaken(Exception):  # noqa: N818
    """The receiver did not take a batch. `later`: it may take it another time."""

    def __init__(self, message: str, *, later: bool) -> None:
        super().__init__(message)
        self.later = later


def encode(spans: Iterable[Span], settings: TracingSettings) -> bytes:
    """An ExportTraceServiceRequest of these spans."""
    request = messages.ExportTraceServiceRequest()
    of_resource = request.resource_spans.add()
    of_resource.resource.attributes.extend(_attribute(name, value) for name, value in settings.resource.items())
    scope = of_resource.scope_spans.add()
    scope.scope.name = "headrace.epp"
    for span in spans:
        made = scope.spans.add(
            trace_id=span.context.trace_id.to_bytes(16, "big"),
            span_id=span.context.span_id.to_bytes(8, "big"),
            parent_span_id=span.parent_id.to_bytes(8, "big") if span.parent_id else b"",
            trace_state=span.context.state,
            name=span.name,
            kind=_SERVER,
            start_time_unix_nano=span.start_ns,
            end_time_unix_nano=span.end_ns,
        )
        made.attributes.extend(_attribute(name, value) for name, value in span.attributes.items())
        if span.error:
            made.status.code, made.status.message = _ERROR, span.error
    return bytes(request.SerializeToString())


def _attribute(name: str, value: Value) -> messages.KeyValue:
    made = messages.KeyValue(key=name)
    if isinstance(value, bool):
        made.value.bool_value = value
    elif isinstance(value, int):
        made.value.int_value = value
    elif isinstance(value, float):
        made.value.double_value = value
    else:
        made.value.string_value = value
    return made


class Exporter:
    """Takes spans from a tracer and sends them, some at a time. `run` until it is cancelled, then `close`."""

    def __init__(self, tracer: Tracer, settings: TracingSettings) -> None:
        self.exported = 0
        self.failed = 0
        self._tracer = tracer
        self._settings = settings
        self._full = asyncio.Event()
        self._complaint = ""
        self._channel: grpc.aio.Channel | None = None
        self._session: aiohttp.ClientSession | None = None
        # Not taken yet, to be tried again.
        self._left: list[Span] = []
        tracer.on_ended = self._ended

    async def run(self) -> None:
        """Send what ends. Never returns."""
        while True:
            try:
                await self._once()
            except Exception:  # picks go on without traces
                logger.exception("sending traces failed: a fault in the picker")
                await asyncio.sleep(self._settings.delay)

    async def _once(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.delay):
                await self._full.wait()
        self._full.clear()
        if self._left and not await self._send(self._left):
            # The receiver is away: it is asked again after a while, not for every batch that fills.
            await asyncio.sleep(self._settings.delay)
            return
        while spans := self._tracer.take(self._settings.batch):
            if not await self._send(spans):
                return

    async def close(self) -> None:
        """Send what is left, if it can be sent at once, and close the connections."""
        try:
            async with asyncio.timeout(min(2.0, self._settings.timeout)):
                for spans in (self._left, self._tracer.take(self._settings.batch)):
                    if spans and not await self._send(spans):
                        break
        except TimeoutError:
            pass
        if self._channel is not None:
            await self._channel.close()
        if self._session is not None:
            await self._session.close()

    def _ended(self) -> None:
        if len(self._tracer) >= self._settings.batch:
            self._full.set()

    async def _send(self, spans: Sequence[Span]) -> bool:
        """False where the receiver is away; the spans are then kept for another time."""
        self._left = []
        try:
            if self._settings.exporter == "console":
                _print(spans)
            elif self._settings.protocol == "grpc":
                await self._send_grpc(encode(spans, self._settings))
            else:
                await self._send_http(encode(spans, self._settings))
        except (NotTaken, OSError) as refused:
            # OSError: of a certificate's file.
            error = refused if isinstance(refused, NotTaken) else NotTaken(str(refused), later=True)
            if str(error) != self._complaint:
                logger.warning("traces are not taken by %s: %s", self._settings.endpoint, error)
            self._complaint = str(error)
            if error.later:
                self._left = list(spans)
            else:
                self.failed += len(spans)
            return False
        if self._complaint:
            logger.info("traces are taken by %s again", self._settings.endpoint)
            self._complaint = ""
        self.exported += len(spans)
        return True

    async def _send_grpc(self, raw: bytes) -> None:
        settings = self._settings
        if self._channel is None:
            compression = grpc.Compression.Gzip if settings.gzip else grpc.Compression.NoCompression
            if settings.secure:
                credentials = grpc.ssl_channel_credentials(
                    *(path.read_bytes() if path else None for path in (settings.ca, settings.key, settings.certificate))
                )
                self._channel = grpc.aio.secure_channel(settings.endpoint, credentials, compression=compression)
            else:
                self._channel = grpc.aio.insecure_channel(settings.endpoint, compression=compression)
        export: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(_METHOD)
        try:
            await export(raw, timeout=settings.timeout, metadata=settings.headers or None)
        except grpc.aio.AioRpcError as error:
            text = f"{error.code().name}: {error.details()}"
            raise NotTaken(text, later=error.code() in _LATER_GRPC) from None

    async def _send_http(self, raw: bytes) -> None:
        settings = self._settings
        if self._session is None:
            context: ssl.SSLContext | bool = True
            if settings.secure:
                context = ssl.create_default_context(cafile=settings.ca)
                if settings.certificate is not None:
                    context.load_cert_chain(settings.certificate, settings.key)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context), timeout=aiohttp.ClientTimeout(total=settings.timeout)
            )
        headers = {**dict(settings.headers), "content-type": "application/x-protobuf"}
        if settings.gzip:
            raw, headers["content-encoding"] = gzip.compress(raw), "gzip"
        try:
            async with self._session.post(settings.endpoint, data=raw, headers=headers) as answer:
                if answer.status >= 400:
                    raise NotTaken(f"status {answer.status}", later=answer.status in _LATER_HTTP)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            text = "timed out" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"[:200]
            raise NotTaken(text, later=True) from None


class SpanCollector(Collector):
    """How many spans were taken, and how many nobody will see."""

    def __init__(self, tracer: Tracer, exporter: Exporter) -> None:
        self._tracer = tracer
        self._exporter = exporter

    def collect(self) -> Iterable[Metric]:
        """The counts."""
        spans = CounterMetricFamily("headrace_epp_spans", "Spans of picks, sent or not.", labels=("result",))
        spans.add_metric(("ok",), self._exporter.exported)
        spans.add_metric(("refused",), self._exporter.failed)
        spans.add_metric(("dropped",), self._tracer.dropped)
        yield spans


def _print(spans: Iterable[Span]) -> None:
    for span in spans:
        logger.info(
            "span %s",
            span.name,
            extra={
                "trace_id": f"{span.context.trace_id:032x}",
                "span_id": f"{span.context.span_id:016x}",
                "seconds": (span.end_ns - span.start_ns) / 1e9,
                "attributes": span.attributes,
                "error": span.error,
            },
        )
