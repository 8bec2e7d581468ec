"""The director with admission, sessions, profiles and a configuration that changes."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from prometheus_client import generate_latest

from headrace.core import Decision, FailureMode, Refusal, RefusalReason, Request
from headrace.datalayer.metrics_page import ServerMetrics
from headrace.epp.composition import Components
from headrace.epp.config_file import parse_config
from headrace.epp.flow_metrics import FlowControlCollector
from headrace.flowcontrol import FlowControlConfig
from headrace.flowcontrol.config import BandConfig
from headrace.flowcontrol.fairness import LeastAttainedService
from headrace.prefixes.kv_events import AllCleared, Batch, BlocksStored
from headrace.prefixes.kv_settings import KvEventsSettings
from headrace.prefixes.tokenizer import TokenizerSettings
from headrace.scheduling.saturation import ConcurrencyDetector

from .test_director import Clock, director, endpoints, needed

PER_ENDPOINT = 2


def waiting_director(**fields: Any) -> Components:
    made = director(
        flow_control=FlowControlConfig(
            enabled=True, **{"detector": ConcurrencyDetector(max_requests=PER_ENDPOINT), **fields}
        )
    )
    made.pool.endpoints_changed(endpoints(2), FailureMode.CLOSE)
    return made


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_requests_wait_for_places_and_none_is_given_away_twice() -> None:
    d = waiting_director()
    tasks = [asyncio.create_task(d.director.decide(needed(request_id=str(n)))) for n in range(10)]
    await settle()
    done = [task.result() for task in tasks if task.done()]
    assert len(done) == 2 * PER_ENDPOINT
    assert [state.in_flight for state in d.pool.store.snapshot()] == [PER_ENDPOINT] * 2
    finished = 0
    while not all(task.done() for task in tasks):
        picked = next(task for task in tasks if task.done() and not task.result().entry.over).result()  # type: ignore[union-attr]
        assert picked.entry is not None
        d.pool.finished(picked.entry)
        finished += 1
        await settle()
        assert all(state.in_flight <= PER_ENDPOINT for state in d.pool.store.snapshot())
    assert all(isinstance(task.result().answer, Decision) for task in tasks)
    assert finished == 6


async def test_a_client_that_goes_leaves_nothing_behind() -> None:
    d = waiting_director()
    held = [await d.director.decide(needed(request_id=str(n))) for n in range(4)]
    waiting = asyncio.create_task(d.director.decide(needed(request_id="gone")))
    await settle()
    waiting.cancel()
    await settle()
    assert not list(d.flow.waiting())
    for picked in held:
        assert picked.entry is not None
        d.pool.finished(picked.entry)
    assert len(d.pool.ledger) == 0


async def test_no_endpoints_are_waited_for() -> None:
    d = waiting_director()
    d.pool.endpoints_changed((), FailureMode.CLOSE)
    waiting = asyncio.create_task(d.director.decide(needed()))
    await settle()
    assert not waiting.done()
    d.pool.endpoints_changed(endpoints(1), FailureMode.CLOSE)
    assert (await waiting).answer == Decision(("10.0.0.1:8000",))


async def test_negative_priorities_are_shed_from_a_full_pool_without_flow_control() -> None:
    d = director()
    d.pool.endpoints_changed(endpoints(1), FailureMode.CLOSE)
    record = d.pool.store.get("10.0.0.1:8000")
    assert record is not None
    record.scraped(ServerMetrics(waiting=9, running=9, kv_usage=0.9), 1.0)
    shed = await d.director.decide(needed(priority=-1))
    assert isinstance(shed.answer, Refusal)
    assert (shed.answer.status, shed.answer.reason) == (429, RefusalReason.SATURATED)
    assert isinstance((await d.director.decide(needed(priority=0))).answer, Decision)
    record.scraped(ServerMetrics(waiting=0, running=0, kv_usage=0.1), 1e9)
    assert isinstance((await d.director.decide(needed(priority=-1))).answer, Decision)


async def test_what_flows_get_is_charged() -> None:
    d = waiting_director(
        detector=ConcurrencyDetector(max_requests=1), default_band=BandConfig(fairness=LeastAttainedService())
    )
    first = await d.director.decide(needed(request_id="1", fairness_id="rich", prompt=b"x" * 4000, max_tokens=10))
    second = await d.director.decide(needed(request_id="2", fairness_id="rich", prompt=b"y" * 4000))
    tasks = {
        name: asyncio.create_task(d.director.decide(needed(request_id=name, fairness_id=name)))
        for name in ("rich", "poor")
    }
    await settle()
    for picked in (first, second):
        assert picked.entry is not None
        d.pool.finished(picked.entry)
        await settle()
        if picked is first:
            assert (tasks["poor"].done(), tasks["rich"].done()) == (True, False)
    assert all(task.done() for task in tasks.values())


async def test_admission_in_the_metrics() -> None:
    d = waiting_director()
    d.metrics.registry.register(FlowControlCollector(d.metrics.flow_control, d.flow.waiting, d.flow.saturation))
    for number in range(4):
        await d.director.decide(needed(request_id=str(number), fairness_id="f", model="m"))
    waiting = asyncio.create_task(d.director.decide(needed(fairness_id="f", model="m", body_size=77, priority=3)))
    await settle()
    text = generate_latest(d.metrics.registry).decode()
    labels = 'fairness_id="f",inference_pool="pool",model_name="m",priority="3",target_model_name="m"'
    for line in (
        f"inference_extension_flow_control_queue_size{{{labels}}} 1.0",
        f"inference_extension_flow_control_queue_bytes{{{labels}}} 77.0",
        'inference_extension_flow_control_pool_saturation{inference_pool="pool"} 1.0',
        'inference_extension_flow_control_request_queue_duration_seconds_count{fairness_id="f",inference_pool="pool",'
        'model_name="m",outcome="Dispatched",priority="0",target_model_name="m"} 4.0',
        'inference_extension_flow_control_request_enqueue_duration_seconds_count{fairness_id="f",'
        'outcome="NotYetFinalized",priority="3"} 1.0',
        "inference_extension_flow_control_dispatch_cycle_duration_seconds_count",
        'headrace_epp_flow_control_requests_total{outcome="Dispatched",priority="0"} 4.0',
    ):
        assert line in text
    waiting.cancel()
    await settle()


async def test_client_made_flows_do_not_make_series_without_end() -> None:
    d = waiting_director(detector=ConcurrencyDetector(max_requests=10**6))
    for number in range(1100):
        await d.director.decide(needed(request_id=str(number), fairness_id=f"f{number}", model=f"m{number}"))
    text = generate_latest(d.metrics.registry).decode()
    name = "inference_extension_flow_control_request_queue_duration_seconds_count{"
    assert sum(line.startswith(name) for line in text.splitlines()) == 1001


CONFIG = """\
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
"""


async def test_a_session_stays_where_it_went_and_the_client_is_told() -> None:
    config = parse_config(
        CONFIG
        + """
plugins:
- type: session-affinity-scorer
- name: named
  type: session-affinity-filter
  parameters: {strategy: session_id}
- type: random-picker
""",
        "test",
    )
    d = director(config=config.scheduling)
    d.pool.endpoints_changed(endpoints(5), FailureMode.CLOSE)
    first = await d.director.decide(needed(headers={"x-session-id": "s"}))
    assert isinstance(first.answer, Decision)
    ((name, value),) = first.answer.response_headers
    assert name == "x-session-token"
    for _ in range(10):
        again = await d.director.decide(needed(headers={"x-session-id": "s"}))
        assert isinstance(again.answer, Decision)
        assert again.answer.endpoints == first.answer.endpoints
        assert again.answer.response_headers == ((name, value),)


async def test_cold_prompts_go_round() -> None:
    config = parse_config(CONFIG + "plugins: [{type: no-hit-lru-scorer}]\n", "test")
    d = director(config=config.scheduling)
    d.pool.endpoints_changed(endpoints(4), FailureMode.CLOSE)
    seen = []
    for number in range(8):
        picked = await d.director.decide(needed(request_id=str(number), prompt=bytes([number]) * 600, model="m"))
        assert isinstance(picked.answer, Decision)
        seen.append(picked.answer.endpoints[0])
    assert len(set(seen[:4])) == 4
    assert seen[4:] == seen[:4]


async def test_a_profile_that_there_is_not_is_the_clients_fault() -> None:
    config = parse_config(
        CONFIG
        + """
plugins:
- type: random-picker
- type: header-profile-handler
  parameters: {defaultProfile: a}
schedulingProfiles:
- name: a
  plugins: [{pluginRef: random-picker}]
- name: b
""",
        "test",
    )
    d = director(config=config.scheduling)
    d.pool.endpoints_changed(endpoints(1), FailureMode.CLOSE)
    refused = await d.director.decide(needed(headers={"epp-profile": "c"}))
    assert isinstance(refused.answer, Refusal)
    assert refused.answer.status == 400
    assert isinstance((await d.director.decide(needed(headers={"epp-profile": "b"}))).answer, Decision)
    assert next(logged["profile"] for logged in d.decisions.find()) == "b"


async def test_filters_that_find_all_too_full_answer_429() -> None:
    config = parse_config(
        CONFIG + "plugins: [{type: concurrency-detector, parameters: {maxConcurrency: 1}}]\n"
        "schedulingProfiles: [{name: p, plugins: [{pluginRef: concurrency-detector}]}]\n",
        "test",
    )
    d = director(config=config.scheduling)
    d.pool.endpoints_changed(endpoints(1), FailureMode.CLOSE)
    assert isinstance((await d.director.decide(needed())).answer, Decision)
    refused = await d.director.decide(needed())
    assert isinstance(refused.answer, Refusal)
    assert (refused.answer.status, refused.answer.reason) == (429, RefusalReason.SATURATED)


async def test_another_configuration_keeps_what_is_known() -> None:
    d = director()
    d.pool.endpoints_changed(endpoints(3), FailureMode.CLOSE)
    picked = await d.director.decide(needed(prompt=b"x" * 2000, model="m"))
    assert isinstance(picked.answer, Decision)
    (home,) = picked.answer.endpoints
    blocks = d.index.entries(home)
    assert blocks
    other = parse_config(CONFIG + "plugins: [{type: prefix-cache-scorer}, {type: max-score-picker}]\n", "test")
    d.reconfigure(other.scheduling, other.flow_control)
    assert d.index.entries(home) == blocks
    assert [entry.name for entry in d.director.config.profile.scorers] == ["prefix-cache-scorer"]
    again = await d.director.decide(needed(prompt=b"x" * 2000, model="m"))
    assert again.answer == picked.answer
    # Blocks of another size have other hashes.
    coarse = parse_config(
        CONFIG + "plugins: [{type: prefix-cache-scorer, parameters: {blockSizeTokens: 256}}]\n", "test"
    )
    d.reconfigure(coarse.scheduling, coarse.flow_control)
    assert d.index.entries(home) == 0
    assert len(d.index) == 0
    await d.director.decide(needed(prompt=b"x" * 2048, model="m"))
    assert len(d.index) == 2


async def test_tokens_in_flight_are_those_no_cache_has() -> None:
    d = director()
    d.pool.endpoints_changed(endpoints(1), FailureMode.CLOSE)
    first = await d.director.decide(needed(request_id="1", prompt=b"x" * 1024, model="m"))
    (state,) = d.pool.store.snapshot()
    assert state.in_flight_tokens == 256
    await d.director.decide(needed(request_id="2", prompt=b"x" * 1024 + b"y" * 40, model="m"))
    (state,) = d.pool.store.snapshot()
    assert state.in_flight_tokens == 256 + 10
    assert first.entry is not None
    d.pool.ledger.prompt_computed(first.entry)
    (state,) = d.pool.store.snapshot()
    assert state.in_flight_tokens == 10
    d.pool.finished(first.entry)
    (state,) = d.pool.store.snapshot()
    assert (state.in_flight, state.in_flight_tokens) == (1, 10)


async def test_prompts_given_as_tokens_go_where_servers_say_they_are() -> None:
    config = parse_config(
        CONFIG + "plugins: [{type: precise-prefix-cache-producer}, {type: prefix-cache-scorer}]\n", "test"
    )
    assert config.kv_events == KvEventsSettings()
    d = director(config=config.scheduling, kv_events=True)
    d.pool.endpoints_changed(endpoints(4), FailureMode.CLOSE)
    assert d.precise is not None
    tokens = list(range(64))
    home = "10.0.0.3:8000"
    stored = BlocksStored((1, 2, 3), None, tuple(tokens[:48]), 16)
    d.precise.apply(home, Batch(0, (stored,)))
    prompt = orjson.dumps(tokens)
    for number in range(5):
        picked = await d.director.decide(needed(request_id=str(number), prompt=prompt, model="m"))
        assert isinstance(picked.answer, Decision)
        assert picked.answer.endpoints == (home,)
    newest = d.decisions.find()[0]
    # Three blocks by the server's word; the fourth was sent there with the first of these requests.
    assert newest["prompt_blocks"] == 4
    assert next(c for c in newest["candidates"] if c["endpoint"] == home)["prefix_blocks_matched"] == 4
    record = d.pool.store.get(home)
    assert record is not None
    assert record.in_flight_tokens == 16
    # What servers tell is not for prompts whose tokens are not known.
    await d.director.decide(needed(request_id="text", prompt=b"x" * 4000, model="m"))
    assert d.decisions.find(request_id="text")[0]["prompt_blocks"] == 15
    # But that a cache was emptied is for all.
    text_home = d.decisions.find(request_id="text")[0]["winner"]
    assert d.index.entries(text_home)
    d.kv_events(text_home, Batch(8, (stored,)))
    assert d.index.entries(text_home)
    d.kv_events(text_home, Batch(9, (AllCleared(),)))
    assert d.index.entries(text_home) == d.precise.entries(text_home) == 0
    d.pool.endpoints_changed((), FailureMode.CLOSE)
    assert len(d.precise) == 0


async def test_text_prompts_go_where_servers_say_their_tokens_are() -> None:
    config = parse_config(
        CONFIG
        + "plugins: [{type: precise-prefix-cache-producer}, {type: token-producer}, {type: prefix-cache-scorer}]\n",
        "test",
    )
    assert config.tokenizer == TokenizerSettings()
    assert config.notes == ()
    alone = parse_config(CONFIG + "plugins: [{type: token-producer}]\n", "test")
    assert [note.partition(" ")[0] for note in alone.notes] == ["token-producer"]
    tokens = tuple(range(64))
    known: tuple[int, ...] | None = tokens
    asked: list[bytes] = []

    async def tokenize(request: Request) -> tuple[int, ...] | None:
        asked.append(request.body)
        return known

    d = director(config=config.scheduling, kv_events=True, tokenize=tokenize)
    d.pool.endpoints_changed(endpoints(4), FailureMode.CLOSE)
    assert d.precise is not None
    # While no server has told of its blocks, tokens would be for nothing.
    await d.director.decide(needed(request_id="early", prompt=b"x" * 400, body=b"early", model="m"))
    assert asked == []
    home = "10.0.0.3:8000"
    d.precise.apply(home, Batch(0, (BlocksStored((1, 2, 3), None, tokens[:48], 16),)))
    picked = await d.director.decide(needed(request_id="told", prompt=b"y" * 400, body=b"told", model="m"))
    assert isinstance(picked.answer, Decision)
    assert picked.answer.endpoints == (home,)
    assert d.decisions.find(request_id="told")[0]["prompt_blocks"] == 4
    # Tokens that are not to be had in time are done without.
    known = None
    await d.director.decide(needed(request_id="late", prompt=b"z" * 4000, body=b"late", model="m"))
    assert d.decisions.find(request_id="late")[0]["prompt_blocks"] == 15
    assert asked == [b"told", b"late"]


async def test_a_place_whose_end_nobody_saw_is_given_on_by_the_servers_word() -> None:
    clock = Clock()
    d = director(
        clock=clock,
        flow_control=FlowControlConfig(enabled=True, detector=ConcurrencyDetector(max_requests=1)),
    )
    d.pool.endpoints_changed(endpoints(1), FailureMode.CLOSE)
    await d.director.decide(needed(False, request_id="lost"))
    waiting = asyncio.create_task(d.director.decide(needed(False, request_id="waiting")))
    await settle()
    record = d.pool.store.get("10.0.0.1:8000")
    assert record is not None
    clock.now += 0.6
    for page in (ServerMetrics(running=0), ServerMetrics(running=1, waiting=0)):
        record.scraped(page, clock.now)
        d.pool.scraped(record)
        await settle()
        assert not waiting.done(), "a page that does not say, or one that still counts it"
    record.scraped(ServerMetrics(running=0, waiting=0), clock.now)
    d.pool.scraped(record)
    await settle()
    assert waiting.done()
    assert "headrace_epp_unobserved_requests_total 1.0" in generate_latest(d.metrics.registry).decode()
