"""Traces: whose, which are kept, what they tell; and what is said of variables that cannot be meant."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from threading import Event

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio, TraceIdRatioBased

from headrace.core import Decision, FailureMode, Refusal
from headrace.core.invalid import CannotServe
from headrace.epp.director import Pick
from headrace.epp.options import add_arguments, read_options
from headrace.epp.process import Process
from headrace.epp.tracing import InvalidTracing, Tracer, _Told, check, start_tracing
from headrace.scheduling import default_profile

from .test_director import director, endpoints, needed

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def log_as_before() -> object:
    yield None
    for name in ("opentelemetry", "opentelemetry.exporter"):
        packages = logging.getLogger(name)
        packages.propagate, packages.handlers = True, []


def in_memory() -> tuple[Tracer, InMemorySpanExporter]:
    kept, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    return Tracer(provider, kept, "pool"), kept


async def test_a_pick_is_told_without_its_prompt() -> None:
    tracer, kept = in_memory()
    d = director(observers=[tracer.decided])
    d.pool.endpoints_changed(endpoints(2), FailureMode.CLOSE)
    headers = {"traceparent": PARENT, "tracestate": "vendor=1"}
    picked = await d.director.decide(needed(model="m", prompt=b"a secret", body_size=10, headers=headers, priority=3))
    assert isinstance(picked.answer, Decision)
    refused = await d.director.decide(needed(model="m", subset=(), headers=headers))
    assert isinstance(refused.answer, Refusal)
    first, second = kept.get_finished_spans()
    assert first.parent is not None
    assert first.context is not None
    assert (first.name, first.context.trace_id, first.parent.span_id) == (
        "headrace.pick",
        int(TRACE, 16),
        0xB7AD6B7169203331,
    )
    assert first.context.trace_state.get("vendor") == "1"
    assert dict(first.attributes or {}) == {
        "headrace.pool": "pool",
        "headrace.request_id": "r",
        "gen_ai.request.model": "m",
        "headrace.target_model": "m",
        "headrace.priority": 3,
        "headrace.candidates": 2,
        "k8s.pod.name": picked.entry.record.endpoint.pod_name,  # type: ignore[union-attr]
        "headrace.outcome": "picked",
        "headrace.endpoint": picked.answer.destination,
    }
    assert second.attributes is not None
    assert (second.attributes["headrace.outcome"], second.attributes["http.response.status_code"]) == (
        "rejected-no-endpoints",
        503,
    )
    assert second.status.description
    assert "secret" not in first.to_json() + second.to_json()


async def test_a_client_that_goes_is_told() -> None:
    tracer, kept = in_memory()
    d = director(observers=[tracer.decided])
    waiting = asyncio.create_task(d.director.decide(needed()))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    (span,) = kept.get_finished_spans()
    assert (span.attributes or {})["headrace.outcome"] == "cancelled"


async def test_without_a_sample_nothing_is_kept() -> None:
    tracer, kept = in_memory()
    d = director(observers=[tracer.decided])
    d.pool.endpoints_changed(endpoints(1), FailureMode.CLOSE)
    await d.director.decide(needed(headers={"traceparent": PARENT[:-1] + "0"}))
    assert not kept.get_finished_spans()


async def started(monkeypatch: pytest.MonkeyPatch, **environment: str) -> TracerProvider | None:
    for name, value in environment.items():
        monkeypatch.setenv(f"OTEL_{name}", value)
    tracer = start_tracing("pool", lambda result, spans: None)
    if tracer is None:
        return None
    await tracer.close()
    return tracer._provider


async def test_a_tenth_is_kept_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_NAME", "epp-0")
    provider = await started(monkeypatch, EXPORTER_OTLP_COMPRESSION="none", EXPORTER_OTLP_HEADERS="")
    assert provider is not None
    assert isinstance(provider.sampler, ParentBasedTraceIdRatio)
    assert "0.1" in provider.sampler.get_description()
    assert provider.resource.attributes["service.name"] == "headrace-epp"
    assert provider.resource.attributes["k8s.pod.name"] == "epp-0"


async def test_what_the_environment_says_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = await started(
        monkeypatch,
        EXPORTER_OTLP_PROTOCOL="http/protobuf",
        TRACES_SAMPLER="traceidratio",
        TRACES_SAMPLER_ARG="0.25",
        RESOURCE_ATTRIBUTES="service.name=a,zone=b",
        SERVICE_NAME="mine",
    )
    assert provider is not None
    assert isinstance(provider.sampler, TraceIdRatioBased)
    assert provider.sampler.rate == 0.25
    assert provider.resource.attributes["service.name"] == "mine"
    assert provider.resource.attributes["zone"] == "b"


@pytest.mark.parametrize("off", [{"TRACES_EXPORTER": "none"}, {"SDK_DISABLED": "true"}])
async def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, off: dict[str, str]) -> None:
    assert await started(monkeypatch, **off) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TRACES_EXPORTER", "zipkin"),
        ("EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("EXPORTER_OTLP_ENDPOINT", "ftp://c"),
        ("EXPORTER_OTLP_TRACES_ENDPOINT", "http://c:port"),
        ("EXPORTER_OTLP_TIMEOUT", "1s"),
        ("EXPORTER_OTLP_TIMEOUT", "0"),
        ("EXPORTER_OTLP_HEADERS", "secret"),
        ("EXPORTER_OTLP_CERTIFICATE", "/nowhere"),
        ("EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("RESOURCE_ATTRIBUTES", "a"),
        ("TRACES_SAMPLER", "some"),
        ("TRACES_SAMPLER_ARG", "2"),
        ("TRACES_SAMPLER_ARG", "nan"),
        ("BSP_SCHEDULE_DELAY", "5s"),
        ("BSP_MAX_QUEUE_SIZE", "0"),
        ("BSP_MAX_QUEUE_SIZE", "100"),
    ],
)
def test_what_cannot_be_meant_names_the_variable(name: str, value: str) -> None:
    with pytest.raises(InvalidTracing, match=f"OTEL_{name}=") as caught:
        check({f"OTEL_{name}": value})
    assert "secret" not in str(caught.value)


def test_what_can_be_meant(tmp_path: Path) -> None:
    ca = tmp_path / "ca.crt"
    ca.touch()
    check(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "https://[::1]:4317/x",
            "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Bearer%20x==,b=c",
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "0.5",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_EXPORTER_OTLP_CERTIFICATE": str(ca),
            "OTEL_TRACES_SAMPLER": "parentbased_always_on",
            "OTEL_TRACES_SAMPLER_ARG": "1.0",
            "OTEL_BSP_MAX_QUEUE_SIZE": "100",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "100",
            "OTHER": "?",
        }
    )


class Away(SpanExporter):
    """Does not take spans, and logs that again and again, as exporters do."""

    taken = False

    def __init__(self) -> None:
        self.ended = Event()

    def export(self, spans: object) -> SpanExportResult:
        for text in ("code UNAVAILABLE", "failed"):
            logging.getLogger("opentelemetry.exporter.some").error(text)
        logging.getLogger("opentelemetry.sdk.some").error("the queue is full")
        return SpanExportResult.SUCCESS if self.taken else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self.ended.set()


def test_a_receiver_that_is_away_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    away, counts = Away(), Counter[str]()
    told = _Told(away, lambda result, spans: counts.update({result: spans}))
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            told.export([])
        away.taken = True
        for _ in range(2):
            told.export([])
    assert [record.getMessage() for record in caplog.records] == [
        "traces are not taken; picks go on without: code UNAVAILABLE",
        "traces are taken again",
    ]
    assert set(counts) == {"failed", "ok"}


async def test_what_is_left_is_sent_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.epp.tracing._CLOSE_SECONDS", 60)
    kept, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(kept, schedule_delay_millis=600_000))
    tracer = Tracer(provider, kept, "pool")
    tracer.decided(Pick(needed().request, default_profile()))
    assert not kept.get_finished_spans()
    await tracer.close()
    assert len(kept.get_finished_spans()) == 1


async def test_the_end_is_not_kept_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that neither takes nor refuses: the end gives up on it."""
    away, provider = Away(), TracerProvider(shutdown_on_exit=False)
    monkeypatch.setattr("headrace.epp.tracing._CLOSE_SECONDS", 0.05)
    monkeypatch.setattr(provider, "shutdown", lambda: away.ended.wait(60))
    await Tracer(provider, away, "pool").close()
    assert away.ended.is_set()


@pytest.mark.parametrize("missing", ["opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.grpc"])
def test_without_the_packages_the_fix_is_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name in list(sys.modules):
        if name == "headrace.epp.tracing" or name.startswith(missing):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = read_options(parser.parse_args(["--tracing", "--endpoints=127.0.0.1:1", "--secure-serving=false"]))
    with pytest.raises(CannotServe, match=r"--tracing needs .*pip install 'headrace\[tracing\]'"):
        Process(options)


def test_without_tracing_nothing_of_it_is_loaded() -> None:
    code = "import sys, headrace.epp.command; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]"
