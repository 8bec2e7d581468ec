"""A stream's session: what the director and the metrics are told of a response as it goes by."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from prometheus_client import generate_latest

from headrace.config.limits import STEP_BYTES, ByteBudget
from headrace.core import FailureMode, Request
from headrace.epp.composition import Components
from headrace.epp.metrics import Metrics
from headrace.epp.service import StreamSession
from headrace.extproc import BodyMode
from headrace.extproc.request_body import PIECE_OVERHEAD
from headrace.xds.envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from ...turns import counted_turns
from ..extproc import messages as m
from .test_director import Clock, director, endpoints

USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 8}}
LABELS = '{model_name="m",target_model_name="m"}'
BODY = json.dumps({"model": "m", "prompt": "p", "stream": True}).encode()


def picker(clock: Clock) -> Components:
    made = director(clock=clock)
    made.pool.endpoints_changed(endpoints(2), FailureMode.CLOSE)
    return made


async def feed(session: StreamSession, *messages: pb.ProcessingRequest) -> list[pb.ProcessingResponse]:
    out = []
    for message in messages:
        out += [
            pb.ProcessingResponse.FromString(raw)
            for raw in await session.finish(session.feed(message.SerializeToString()))
        ]
    return out


def sample(d: Components, name: str) -> float:
    for line in generate_latest(d.metrics.registry).decode().splitlines():
        found, _, value = line.rpartition(" ")
        if found == name:
            return float(value)
    return 0.0


def histogram(d: Components, name: str) -> tuple[float, float]:
    """Count and sum."""
    return tuple(sample(d, f"inference_objective_{name}_{part}{LABELS}") for part in ("count", "sum"))  # type: ignore[return-value]


async def pick(d: Components, response: BodyMode = BodyMode.NONE, **headers: str) -> StreamSession:
    session = StreamSession(d.director, d.pool, m.settings(), observed=response is BodyMode.NONE)
    config = m.config(BodyMode.FULL_DUPLEX_STREAMED, response)
    await feed(
        session,
        m.request_headers({**m.REQUEST, **headers}, protocol_config=config),
        m.body("request_body", BODY, True),
    )
    return session


@pytest.mark.parametrize("observed", [True, False], ids=["observed", "passed through"])
async def test_tokens_and_times_of_a_streamed_response(observed: bool) -> None:
    clock = Clock()
    d = picker(clock)
    slo = {"x-slo-ttft-ms": "100", "x-slo-tpot-ms": "100"}
    picking = await pick(d, BodyMode.NONE if observed else BodyMode.FULL_DUPLEX_STREAMED, **slo)
    session = picking
    if observed:
        picking.end()
        session = StreamSession(d.director, d.pool, m.settings())
        await feed(session, m.request_headers(m.REQUEST, observability_mode=True))
    content_type = {":status": "200", "content-type": "text/event-stream"}
    await feed(session, m.response_headers(content_type))
    assert histogram(d, "request_ttft_seconds") == (0, 0)
    clock.now += 0.5
    await feed(session, m.body("response_body", b'data: {"choices":[]}\n\n', False))
    clock.now += 2.0
    last = f"data: {json.dumps({'usage': USAGE})}\n\n".encode()
    await feed(session, m.body("response_body", last, False), m.body("response_body", b"", True))
    session.end()
    assert histogram(d, "request_ttft_seconds") == (1, 0.5)
    assert histogram(d, "request_tpot_seconds") == (1, 0.5)
    assert histogram(d, "normalized_time_per_output_token_seconds") == (1, 0.5)
    assert histogram(d, "input_tokens") == (1, 9)
    assert histogram(d, "output_tokens") == (1, 5)
    assert histogram(d, "prompt_cached_tokens") == (1, 8)
    assert histogram(d, "response_sizes") == (1, 22 + len(last))
    assert histogram(d, "request_duration_seconds") == (1, 2.5)
    for kind in ("ttft", "tpot"):
        last = f'inference_objective_inference_request_metric{{model_name="m",target_model_name="m",type="{kind}"}}'
        assert sample(d, last) == histogram(d, f"request_{kind}_seconds")[1]
        labels = f'{{model_name="m",target_model_name="m",type="{kind}"}}'
        assert sample(d, f"inference_objective_request_slo_violation_total{labels}") == 1
    assert len(d.pool.ledger) == 0


async def test_a_json_response_has_no_first_token() -> None:
    d = picker(Clock())
    session = await pick(d, BodyMode.BUFFERED)
    await feed(session, m.response_headers({":status": "200", "content-type": "application/json"}))
    await feed(session, m.body("response_body", json.dumps({"usage": USAGE}).encode(), True))
    assert histogram(d, "request_ttft_seconds") == (0, 0)
    assert histogram(d, "request_tpot_seconds") == (0, 0)
    assert histogram(d, "output_tokens") == (1, 5)


async def test_where_no_body_is_seen_no_size_is_told() -> None:
    d = picker(Clock())
    (await pick(d)).end()
    session = StreamSession(d.director, d.pool, m.settings())
    await feed(
        session,
        m.request_headers(m.REQUEST, observability_mode=True),
        m.response_headers({":status": "503", "content-type": "application/json"}),
        m.trailers("response_trailers"),
    )
    session.end()
    assert histogram(d, "response_sizes") == (0, 0)
    assert histogram(d, "request_duration_seconds") == (1, 0)
    assert (
        sample(d, 'inference_objective_request_error_total{error_code="503",model_name="m",target_model_name="m"}') == 1
    )


async def test_a_refused_body_is_counted() -> None:
    d = picker(Clock())
    session = StreamSession(d.director, d.pool, m.settings())
    answers: list[Any] = await feed(session, m.request_headers(), m.body("request_body", b"[]", True))
    assert answers[-1].immediate_response.status.code == 400
    assert sample(d, 'headrace_epp_refused_total{reason="bad-request"}') == 1


def test_models_named_by_clients_do_not_make_series_without_end() -> None:
    metrics = Metrics("pool")
    for number in range(1100):
        metrics.not_picked(Request("r", model=f"m{number % 550}", asked_model=f"a{number % 1050}"), 429, "full")
    text = generate_latest(metrics.registry).decode()
    lines = [line for line in text.splitlines() if line.startswith("inference_objective_request_total{")]
    assert len(lines) == 1001
    assert 'request_total{model_name="other",priority="0",target_model_name="other"} 100.0' in text


async def test_a_request_that_the_stream_refuses_is_counted_and_logged() -> None:
    d = picker(Clock())
    session = StreamSession(d.director, d.pool, m.settings(max_body_bytes=8))
    headers = m.request_headers(m.REQUEST, protocol_config=m.config(BodyMode.FULL_DUPLEX_STREAMED))
    await feed(session, headers, m.body("request_body", BODY, True))
    session.end()
    (logged,) = d.decisions.find()
    assert logged["refused"] == {"status": 413, "reason": "body-too-large"}
    assert sample(d, 'headrace_epp_refused_total{reason="body-too-large"}') == 1
    assert len(d.pool.ledger) == 0


DUPLEX = m.config(BodyMode.FULL_DUPLEX_STREAMED)


async def test_what_is_refused_for_want_of_memory_is_counted() -> None:
    d = picker(Clock())
    settings = m.settings(bodies=ByteBudget(len(BODY) + 100))
    d.metrics.show_budget(settings.bodies)
    first, second = (StreamSession(d.director, d.pool, settings) for _ in range(2))
    await feed(first, m.request_headers(protocol_config=DUPLEX), m.body("request_body", BODY, False))
    assert sample(d, "headrace_epp_held_body_bytes") == len(BODY) + PIECE_OVERHEAD
    assert sample(d, "headrace_epp_held_body_bytes_limit") == len(BODY) + 100
    answers = await feed(second, m.request_headers(protocol_config=DUPLEX), m.body("request_body", BODY, True))
    assert answers[-1].immediate_response.status.code == 503
    assert sample(d, 'headrace_epp_refused_total{reason="rejected-body-memory"}') == 1
    first.end()
    second.end()
    assert sample(d, "headrace_epp_held_body_bytes") == 0


async def test_a_body_has_a_deadline_from_its_headers_on() -> None:
    clock = Clock()
    d = picker(clock)
    session = StreamSession(d.director, d.pool, m.settings(body_seconds=10.0))
    assert session.patience is None
    await feed(session, m.request_headers(protocol_config=DUPLEX))
    assert session.patience == 10.0
    for _ in range(3):
        clock.now += 3.0
        await feed(session, m.body("request_body", b"{", False))
        assert session.patience is not None
    assert session.patience == 1.0
    clock.now += 3.0
    assert session.patience == 0.0
    (answer,) = session.body_is_late()
    assert pb.ProcessingResponse.FromString(answer).immediate_response.status.code == 408
    assert sample(d, 'headrace_epp_refused_total{reason="body-timeout"}') == 1
    assert session.patience is None


async def test_a_body_that_is_there_has_no_deadline() -> None:
    session = await pick(picker(Clock()))
    assert session.patience is None
    assert session.body_is_late() == []


def long_body(size: int) -> bytes:
    """Of small values, which are the most work."""
    return b'{"model":"m","prompt":"p","x":[' + b'{"":0},' * (size // 7) + b"0]}"


@pytest.mark.parametrize("mode", [BodyMode.FULL_DUPLEX_STREAMED, BodyMode.BUFFERED])
async def test_a_long_body_is_read_and_sent_on_with_turns_for_others(mode: BodyMode) -> None:
    d = picker(Clock())
    content = long_body(800_000) + b" " * (3 << 20)
    settings = m.settings()
    session = StreamSession(d.director, d.pool, settings)
    async with counted_turns() as turns:
        await asyncio.sleep(0)
        await feed(session, m.request_headers(protocol_config=m.config(mode)))
        answers = await feed(session, m.body("request_body", content, True))
    assert turns.count >= len(content) // STEP_BYTES
    (logged,) = d.decisions.find()
    assert logged["model"] == "m"
    if mode is BodyMode.FULL_DUPLEX_STREAMED:
        pieces = [a.request_body.response.body_mutation.streamed_response for a in answers[1:]]
        assert b"".join(piece.body for piece in pieces) == content
        assert [piece.end_of_stream for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        assert max(len(piece.body) for piece in pieces) <= 62_000
        assert m.set_headers(answers[0].request_headers.response.header_mutation)["content-length"] == str(len(content))
    assert settings.bodies.held > len(content)
    session.sent()
    assert settings.bodies.held == 0
    session.end()


async def test_small_pieces_of_a_body_are_put_together() -> None:
    d = picker(Clock())
    settings = m.settings()
    session = StreamSession(d.director, d.pool, settings)
    await feed(session, m.request_headers(protocol_config=DUPLEX))
    content = b'{"model":"m","prompt":"%b"}' % (b"p" * 20_000)
    for at in range(0, len(content), 10):
        await feed(session, m.body("request_body", content[at : at + 10], False))
    # Of some thousand bytes each.
    assert settings.bodies.held <= len(content) + 6 * PIECE_OVERHEAD
    answers = await feed(session, m.body("request_body", b"", True))
    sent = b"".join(a.request_body.response.body_mutation.streamed_response.body for a in answers[1:])
    assert sent == content


async def test_a_model_that_a_server_has_answered_to_keeps_its_label_whatever_strangers_invent() -> None:
    d = picker(Clock())
    session = await pick(d, BodyMode.BUFFERED)
    await feed(session, m.response_headers({":status": "200"}))
    for number in range(1000):
        d.metrics.not_picked(Request("r", model=f"invented-{number}"), 429, "full")
    session = await pick(d, BodyMode.BUFFERED)
    name = 'inference_objective_request_total{model_name="m",priority="0",target_model_name="m"}'
    assert sample(d, name) == 2
    lines = generate_latest(d.metrics.registry).decode().splitlines()
    assert sum(line.startswith("inference_objective_request_total{") for line in lines) == 102
