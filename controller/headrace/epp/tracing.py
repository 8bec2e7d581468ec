"""Spans of picks, by OpenTelemetry's SDK. Imported only with --tracing: the extra `tracing` of the distribution has it.

The SDK's own thread sends what ended. Where to, how many and which say its environment variables. The defaults are the
reference picker's (v1.5.0): a tenth of the traces that nobody else has decided on, over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from headrace.core import Refusal
from headrace.epp.director import Pick
from headrace.serving.lifecycle import within

logger = logging.getLogger(__name__)

# Counts spans by what became of them, `ok` or `failed`. Called from another thread.
Count = Callable[[str, int], None]

_MOST_TEXT = 256
_CLOSE_SECONDS = 2.0
_OTLP = "OTEL_EXPORTER_OTLP_(TRACES_)?"
_HOST = r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+)"
# Variables, what they may be, and the fix. The packages themselves end in a traceback, or warn and take another value.
_RULES = (
    ("OTEL_TRACES_EXPORTER", "otlp|console|none", "use otlp, console or none"),
    (_OTLP + "PROTOCOL", "grpc|http/protobuf", "use grpc or http/protobuf"),
    (_OTLP + "ENDPOINT", rf"https?://{_HOST}(:\d{{1,5}})?(/\S*)?", "write http://HOST:PORT or https://HOST:PORT"),
    (_OTLP + "COMPRESSION", "gzip", "use gzip or none"),
    (_OTLP + "TIMEOUT", r"(?=.*[1-9])\d{1,6}(\.\d+)?", "give seconds over 0"),
    (_OTLP + "INSECURE", "(?i:true|false)", "use true or false"),
    ("OTEL_TRACES_SAMPLER", "(parentbased_)?(always_on|always_off|traceidratio)", "use always_on, always_off or "
     "traceidratio, or one of them after parentbased_"),
    ("OTEL_TRACES_SAMPLER_ARG", r"0?\.\d+|0|1(\.0*)?", "give the share of traces to keep, 0 to 1"),
    (r"OTEL_BSP_\w+", r"[1-9]\d{0,8}", "give a whole number over 0"),
)  # fmt: skip
_PAIRS = re.compile(r"\s*[^\s=,]+\s*=[^,]*(,\s*[^\s=,]+\s*=[^,]*)*,?\s*")


class InvalidTracing(ValueError):  # noqa: N818
    """An environment variable of tracing that cannot be used: names it, its value and the fix."""

    def __init__(self, name: str, value: str, fix: str) -> None:
        super().__init__(f"{name}={value}: {fix}")


def check(environment: Mapping[str, str]) -> None:
    """Refuse what OpenTelemetry would fail at or guess about. Raises InvalidTracing."""
    for name, value in environment.items():
        for pattern, allowed, fix in _RULES:
            if re.fullmatch(pattern, name) and not re.fullmatch(allowed, value.strip()):
                raise InvalidTracing(name, value, fix)
        if re.fullmatch(_OTLP + "(CERTIFICATE|CLIENT_CERTIFICATE|CLIENT_KEY)", name) and not Path(value).is_file():
            raise InvalidTracing(name, value, "there is no such file")
        if re.fullmatch(_OTLP + "HEADERS|OTEL_RESOURCE_ATTRIBUTES", name) and not _PAIRS.fullmatch(value):
            # Not shown: it may be a credential.
            raise InvalidTracing(name, "...", "write key=value,key=value")
    queue, batch = (environment.get(f"OTEL_BSP_MAX_{name}_SIZE") for name in ("QUEUE", "EXPORT_BATCH"))
    if int(batch or 512) > int(queue or 2048):
        fix = "give at least OTEL_BSP_MAX_EXPORT_BATCH_SIZE, which is 512 unless it is set"
        raise InvalidTracing("OTEL_BSP_MAX_QUEUE_SIZE", queue or "2048", fix)


def start_tracing(pool: str, count: Count) -> Tracer | None:
    """A tracer of a pool's picks, by the process's environment; None where that switches traces off.

    Raises InvalidTracing, and ImportError without the packages of a protocol."""
    # The specification calls these the same as not set; the packages do not.
    for name, value in list(os.environ.items()):
        if name.startswith("OTEL_") and (not value.strip() or (name.endswith("_COMPRESSION") and value == "none")):
            del os.environ[name]
    environment = os.environ
    check(environment)
    kind = environment.get("OTEL_TRACES_EXPORTER", "otlp")
    if kind == "none" or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        exporter = _Told(_exporter(environment, kind), count)
        ours = {"service.name": "headrace-epp"}
        for name, variable in (("k8s.pod.name", "POD_NAME"), ("k8s.namespace.name", "NAMESPACE")):
            if value := environment.get(variable, ""):
                ours[name] = value
        sampler = None
        if "OTEL_TRACES_SAMPLER" not in environment:
            sampler = ParentBasedTraceIdRatio(float(environment.get("OTEL_TRACES_SAMPLER_ARG", "0.1")))
        provider = TracerProvider(
            sampler=sampler,
            resource=Resource.create(ours).merge(OTELResourceDetector().detect()),
            span_limits=SpanLimits(max_span_attribute_length=_MOST_TEXT),
            shutdown_on_exit=False,
        )
        provider.add_span_processor(BatchSpanProcessor(exporter))
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        raise InvalidTracing("OTEL_*", "...", f"these variables cannot be used: {error}") from None
    return Tracer(provider, exporter, pool)


def _exporter(environment: Mapping[str, str], kind: str) -> SpanExporter:
    if kind == "console":
        return ConsoleSpanExporter(formatter=lambda span: f"{span.to_json(indent=None)}\n")
    protocol = environment.get("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    if environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", protocol) == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc

        return grpc.OTLPSpanExporter()
    from opentelemetry.exporter.otlp.proto.http import trace_exporter as http

    return http.OTLPSpanExporter()


class _Told(SpanExporter):
    """An exporter whose failures are told once, not for each try, each batch and each span that is dropped."""

    def __init__(self, exporter: SpanExporter, count: Count) -> None:
        self._exporter = exporter
        self._count = count
        self._away = False
        self._said = _FirstSaid()
        packages = logging.getLogger("opentelemetry")
        packages.propagate = False
        packages.handlers = [logging.NullHandler()]
        logging.getLogger("opentelemetry.exporter").handlers = [self._said]

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._said.text = ""
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # noqa: BLE001 (the thread goes on, and so do picks)
            result, self._said.text = SpanExportResult.FAILURE, f"{type(error).__name__}: {error}"
        taken = result is SpanExportResult.SUCCESS
        self._count("ok" if taken else "failed", len(spans))
        if not taken and not self._away:
            logger.warning("traces are not taken; picks go on without: %s", self._said.text)
        elif taken and self._away:
            logger.info("traces are taken again")
        self._away = not taken
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class _FirstSaid(logging.Handler):
    """What an exporter logs first of a batch: that has the reason, the last one may not."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = self.text or record.getMessage()


class Tracer:
    """Makes spans of picks. `close` it in the end."""

    def __init__(self, provider: TracerProvider, exporter: SpanExporter, pool: str) -> None:
        self._provider = provider
        self._exporter = exporter
        self._pool = pool
        self._tracer = provider.get_tracer("headrace.epp")
        self._propagator = TraceContextTextMapPropagator()

    def decided(self, pick: Pick) -> None:
        """A span of the trace that the request's headers name, or of a new one; nothing of the prompt is in it."""
        request, answer = pick.request, pick.answer
        parent = self._propagator.extract(request.headers)
        span = self._tracer.start_span("headrace.pick", parent, SpanKind.SERVER, start_time=pick.began_at)
        if not span.is_recording():
            return
        attributes: dict[str, str | int] = {
            "headrace.pool": self._pool,
            "headrace.request_id": request.request_id,
            "gen_ai.request.model": request.asked_model or request.model,
            "headrace.target_model": request.model,
            "headrace.priority": request.priority,
            "headrace.candidates": pick.outcome.candidate_count,
        }
        if pick.entry is not None and pick.entry.record is not None:
            attributes["k8s.pod.name"] = pick.entry.record.endpoint.pod_name
        if answer is None:
            # The client went while its request waited.
            attributes["headrace.outcome"] = "cancelled"
        elif isinstance(answer, Refusal):
            attributes["headrace.outcome"] = answer.reason.value
            attributes["http.response.status_code"] = answer.status
            if answer.status >= 500:
                span.set_status(Status(StatusCode.ERROR, answer.message[:_MOST_TEXT]))
        else:
            attributes["headrace.outcome"] = "picked" if answer.endpoints else "failed-open"
            attributes["headrace.endpoint"] = answer.destination
        span.set_attributes(attributes)
        span.end()

    async def close(self) -> None:
        """Send what is left, for at most 2 s."""
        loop, sent = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(sent.set)

        # The SDK waits 30 s for its thread; a daemon does not keep the process from ending.
        threading.Thread(target=shut_down, daemon=True).start()
        if not await within(sent, _CLOSE_SECONDS):
            self._exporter.shutdown()
