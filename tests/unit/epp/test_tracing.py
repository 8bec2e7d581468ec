"""Traces: whose, which are kept, what they tell; and where they go, by the standard variables."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Decision, FailureMode, Refusal
from headrace.epp.tracing import Sampler, Span, TraceContext, Tracer, read_traceparent
from headrace.epp.tracing_settings import InvalidTracing, TracingSettings, read_settings

from .test_director import director, endpoints, needed

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


def tracer(ratio: float = 1.0, **more: int) -> Tracer:
    return Tracer(Sampler(ratio), wall_ns=lambda: 5_000, rng=Random(1), **more)


def test_the_callers_trace() -> None:
    found = read_traceparent({"traceparent": PARENT, "tracestate": "vendor=1"})
    assert found == TraceContext(int(TRACE, 16), 0xB7AD6B7169203331, True, "vendor=1")
    unsampled = read_traceparent({"traceparent": PARENT[:-1] + "0"})
    assert unsampled is not None
    assert not unsampled.sampled
    # A later version may have more.
    assert read_traceparent({"traceparent": f"cc{PARENT[2:]}-more"}) is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        f"ff{PARENT[2:]}",
        f"{PARENT}-more",
        PARENT.upper(),
        PARENT[:-1],
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-{TRACE}-{'0' * 16}-01",
    ],
)
def test_what_names_no_trace(text: str) -> None:
    assert read_traceparent({"traceparent": text}) is None


@given(st.text(max_size=80))
def test_any_text_is_a_trace_or_none(text: str) -> None:
    found = read_traceparent({"traceparent": text, "tracestate": text})
    assert found is None or (found.trace_id and found.span_id)


def test_a_share_of_traces_is_kept_and_callers_decide_first() -> None:
    rng = Random(2)
    sampler = Sampler(0.1)
    kept = sum(sampler.keeps(rng.getrandbits(128), None) for _ in range(5000))
    assert 350 < kept < 650
    yes, no = (TraceContext(1 << 127, 1, sampled) for sampled in (True, False))
    assert sampler.keeps(2**64 - 1, yes)
    assert not sampler.keeps(0, no)
    assert Sampler(0.0, by_parent=False).keeps(0, yes) is False
    assert Sampler(1.0, by_parent=False).keeps(2**64 - 1, no)


def test_spans_are_kept_up_to_a_bound_and_taken_in_order() -> None:
    made = tracer(most_kept=2)
    ended: list[int] = []
    made.on_ended = lambda: ended.append(len(made))
    for number in range(3):
        span = made.start(f"s{number}", {})
        assert span is not None
        made.end(span, {"text": "x" * 1000})
    assert (made.dropped, ended) == (1, [1, 2])
    (first,) = made.take(1)
    assert (first.name, first.start_ns, first.parent_id) == ("s0", 5_000, 0)
    assert first.attributes == {"text": "x" * 256}
    assert len(made.take(9)) == 1
    assert tracer(0.0).start("s", {}) is None


async def test_a_pick_is_told_without_its_prompt() -> None:
    d = director()
    d.tracer = tracer()
    d.replace_endpoints(endpoints(2), FailureMode.CLOSE)
    headers = {"traceparent": PARENT}
    picked = await d.decide(needed(model="m", prompt=b"a secret", body_size=10, headers=headers, priority=3))
    assert isinstance(picked.outcome, Decision)
    refused = await d.decide(needed(model="m", subset=(), headers=headers))
    assert isinstance(refused.outcome, Refusal)
    first, second = d.tracer.take(9)
    assert (first.name, first.context.trace_id, first.parent_id) == (
        "headrace.pick",
        int(TRACE, 16),
        0xB7AD6B7169203331,
    )
    assert first.attributes == {
        "headrace.pool": "pool",
        "headrace.request_id": "r",
        "gen_ai.request.model": "m",
        "headrace.target_model": "m",
        "headrace.priority": 3,
        "headrace.candidates": 2,
        "k8s.pod.name": picked.entry.record.endpoint.pod_name,  # type: ignore[union-attr]
        "headrace.outcome": "picked",
        "headrace.endpoint": picked.outcome.destination,
    }
    assert (second.attributes["headrace.outcome"], second.attributes["http.response.status_code"]) == (
        "rejected-no-endpoints",
        503,
    )
    assert second.error
    assert "secret" not in repr([first, second])


async def test_without_a_sample_nothing_is_kept() -> None:
    d = director()
    d.tracer = tracer()
    d.replace_endpoints(endpoints(1), FailureMode.CLOSE)
    await d.decide(needed(headers={"traceparent": PARENT[:-1] + "0"}))
    assert len(d.tracer) == 0


def test_where_traces_go_by_default() -> None:
    assert read_settings({}) == TracingSettings(resource={"service.name": "headrace-epp"})
    assert read_settings({"OTEL_TRACES_EXPORTER": "none"}) is None
    assert read_settings({"OTEL_SDK_DISABLED": "true"}) is None


def settings(**environment: str) -> TracingSettings:
    found = read_settings({f"OTEL_{name}": value for name, value in environment.items()})
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("endpoint", "where", "secure"),
    [
        ("http://collector:4317", "collector:4317", False),
        ("https://collector", "collector:4317", True),
        ("https://[::1]:1", "[::1]:1", True),
        ("collector:55", "collector:55", True),
    ],
)
def test_endpoints_of_grpc(endpoint: str, where: str, secure: bool) -> None:
    found = settings(EXPORTER_OTLP_ENDPOINT=endpoint)
    assert (found.endpoint, found.secure) == (where, secure)


def test_endpoints_of_http() -> None:
    http = {"EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    assert settings(**http).endpoint == "http://localhost:4318/v1/traces"
    assert settings(**http, EXPORTER_OTLP_ENDPOINT="https://c/x/").endpoint == "https://c/x/v1/traces"
    specific = settings(**http, EXPORTER_OTLP_ENDPOINT="http://no", EXPORTER_OTLP_TRACES_ENDPOINT="https://c/own")
    assert (specific.endpoint, specific.secure) == ("https://c/own", True)


def test_the_other_variables(tmp_path: Path) -> None:
    ca = tmp_path / "ca.crt"
    ca.touch()
    found = settings(
        EXPORTER_OTLP_HEADERS="Authorization=Bearer%20x,b=c",
        EXPORTER_OTLP_TRACES_TIMEOUT="2500",
        EXPORTER_OTLP_COMPRESSION="gzip",
        EXPORTER_OTLP_CERTIFICATE=str(ca),
        TRACES_SAMPLER="traceidratio",
        TRACES_SAMPLER_ARG="0.25",
        RESOURCE_ATTRIBUTES="service.name=a,zone=b",
        SERVICE_NAME="mine",
        BSP_MAX_QUEUE_SIZE="100",
        BSP_SCHEDULE_DELAY="50",
    )
    assert found.headers == (("authorization", "Bearer x"), ("b", "c"))
    assert (found.timeout, found.gzip, found.ca) == (2.5, True, ca)
    assert found.sampler == Sampler(0.25, by_parent=False)
    assert found.resource == {"service.name": "mine", "zone": "b"}
    assert (found.queue, found.batch, found.delay) == (100, 100, 0.05)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TRACES_EXPORTER", "zipkin"),
        ("EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("EXPORTER_OTLP_ENDPOINT", "ftp://c"),
        ("EXPORTER_OTLP_ENDPOINT", "http://c:port"),
        ("EXPORTER_OTLP_TIMEOUT", "1s"),
        ("EXPORTER_OTLP_HEADERS", "secret"),
        ("EXPORTER_OTLP_CERTIFICATE", "/nowhere"),
        ("EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("TRACES_SAMPLER", "some"),
        ("TRACES_SAMPLER_ARG", "2"),
        ("BSP_MAX_QUEUE_SIZE", "0"),
    ],
)
def test_what_cannot_be_meant_names_the_variable(name: str, value: str) -> None:
    with pytest.raises(InvalidTracing, match=f"OTEL_{name}=") as caught:
        settings(**{name: value})
    assert "secret" not in str(caught.value)


def test_spans_last_no_less_than_nothing() -> None:
    times = iter([10, 5])
    made = Tracer(Sampler(1.0), wall_ns=lambda: next(times), rng=Random(1))
    span = made.start("s", {})
    assert isinstance(span, Span)
    made.end(span, {})
    assert span.end_ns == span.start_ns
