"""A simulated SGLang: its own API, its own metrics, and the OpenAI API that it shares with the other engine."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from headrace.datalayer.engines import ENGINES
from headrace.datalayer.exposition import PageReader, read_labels
from headrace.replace.counters import RowsReader, in_flight_at_server, server_counters

from .process import simulator


@pytest.fixture(scope="module")
def sglang() -> Iterator[str]:
    """The URL of a fast server."""
    with simulator("--simulate", "sglang", "--speedup", "20", "--lora-adapter", "sql-lora") as (_, url):
        yield url


async def generate(session: aiohttp.ClientSession, url: str, body: Any, status: int = 200) -> Any:
    async with session.post(f"{url}/generate", json=body) as answer:
        found = await answer.read()
        assert answer.status == status, found
        return json.loads(found)


async def test_a_whole_answer(sglang: str, session: aiohttp.ClientSession) -> None:
    body = {"text": "once upon a time", "sampling_params": {"max_new_tokens": 7, "temperature": 0}}
    found = await generate(session, sglang, body)
    assert found["text"]
    assert found["meta_info"]["completion_tokens"] == 7
    assert found["meta_info"]["finish_reason"] == {"type": "length", "length": 7}
    same = await generate(session, sglang, {**body, "lora_path": "sql-lora"})
    assert same["meta_info"]["prompt_tokens"] == found["meta_info"]["prompt_tokens"]
    tokens = await generate(session, sglang, {"input_ids": [5, 6, 7], "sampling_params": {"max_new_tokens": 2}})
    assert tokens["meta_info"]["prompt_tokens"] == 3


async def test_each_event_of_a_stream_has_the_text_so_far(sglang: str, session: aiohttp.ClientSession) -> None:
    body = {"text": "once upon a time", "sampling_params": {"max_new_tokens": 7}}
    whole = await generate(session, sglang, body)
    async with session.post(f"{sglang}/generate", json={**body, "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line[5:].strip() for line in (await answer.read()).split(b"\n") if line.startswith(b"data:")]
    assert lines[-1] == b"[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    texts = [event["text"] for event in events]
    assert all(later.startswith(text) for text, later in itertools.pairwise(texts))
    assert texts[-1] == whole["text"]
    assert [event["meta_info"]["finish_reason"] is None for event in events] == [True] * (len(events) - 1) + [False]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "text: None is not valid; give 'text' or 'input_ids'"),
        ({"text": "a", "input_ids": [1]}, "one of the two"),
        ({"text": ["a", "b"]}, "give one prompt"),
        ({"input_ids": [[1], [2]]}, "give one prompt"),
        ({"text": "a", "sampling_params": 4}, "sampling_params: 4"),
        ({"text": "a", "sampling_params": {"n": 2}}, "sampling_params.n: 2"),
        ({"text": "a", "sampling_params": {"max_new_tokens": "x"}}, "max_tokens: 'x'"),
    ],
)
async def test_what_is_no_request_is_named(
    sglang: str, session: aiohttp.ClientSession, body: dict[str, Any], message: str
) -> None:
    found = await generate(session, sglang, body, 400)
    assert message in found["error"]["message"]


async def test_an_unknown_adapter_is_refused(sglang: str, session: aiohttp.ClientSession) -> None:
    await generate(session, sglang, {"text": "a", "lora_path": "nobody"}, 404)


async def test_its_metrics_are_what_pickers_and_gates_read(sglang: str, session: aiohttp.ClientSession) -> None:
    for _ in range(3):
        await generate(session, sglang, {"text": "once", "sampling_params": {"max_new_tokens": 5}})
    async with session.get(f"{sglang}/metrics") as answer:
        page = await answer.read()
    reader = RowsReader()
    reader.feed(page)
    rows = reader.end()
    counted = server_counters(rows)
    assert counted.ttft is not None and counted.ttft.count >= 3
    assert counted.tpot is not None and counted.tpot.count >= 12
    assert in_flight_at_server(rows) == 0
    engine = ENGINES["sglang"]
    wanted = {series.name for series in engine.series} | {engine.cache_config}
    labels = {sample.name: dict(read_labels(sample.labels)) for sample in PageReader(wanted).feed(page)}
    assert labels.keys() == wanted
    assert int(labels[engine.cache_config][engine.block_size_label]) > 0
    assert b"vllm:" not in page


async def test_the_openai_api_is_there_too(sglang: str, session: aiohttp.ClientSession) -> None:
    async with session.post(f"{sglang}/v1/completions", json={"prompt": "a", "max_tokens": 2}) as answer:
        assert (await answer.json())["usage"]["completion_tokens"] == 2
    async with session.get(f"{sglang}/version") as answer:
        assert (await answer.json())["simulates"] == "sglang 0.5"


async def test_the_other_engine_has_no_generate(server: str, session: aiohttp.ClientSession) -> None:
    await generate(session, server, {"text": "a"}, 404)
