"""What the engine does, seen from outside: queueing, LoRA slots, KV pressure, failures."""

from __future__ import annotations

import asyncio
import operator
from functools import partial

import aiohttp

from .client import Client
from .process import simulator


async def test_a_queue_builds_up_and_is_served_in_order(session: aiohttp.ClientSession) -> None:
    with simulator("--max-num-seqs", "1") as (_, url):
        client = Client(session, url)
        order: list[int] = []

        async def ask(number: int) -> None:
            await client.post("/v1/completions", {"prompt": "x", "max_tokens": 10})
            order.append(number)

        async with asyncio.TaskGroup() as tasks, client.endless():
            for number in range(3):
                tasks.create_task(ask(number))
                await client.wait_metric("num_requests_waiting", partial(operator.eq, number + 1))
            assert await client.metric("num_requests_running") == 1
            assert await client.metric("num_requests_waiting_by_reason", reason="capacity") == 3
            assert order == []
        assert order == [0, 1, 2]


async def test_an_adapter_waits_for_a_slot(session: aiohttp.ClientSession) -> None:
    with simulator("--max-loras", "1", "--lora-adapter", "a", "b") as (_, url):
        client = Client(session, url)
        body = {"model": "b", "prompt": "x", "max_tokens": 1}
        async with asyncio.TaskGroup() as tasks:
            async with client.endless("a"):
                second = tasks.create_task(client.post("/v1/completions", body))
                await client.wait_metric("num_requests_waiting_by_reason", partial(operator.eq, 1), reason="deferred")
                assert (await client.post("/v1/completions", {**body, "model": "a"})).status == 200
                assert await client.metric("lora_requests_info", running_lora_adapters="a", max_lora="1") > 0
                assert not second.done()
            assert (await second).status == 200


async def test_kv_pressure_shows_and_preempts(session: aiohttp.ClientSession) -> None:
    with simulator("--num-gpu-blocks", "21", "--speedup", "10") as (_, url):
        client = Client(session, url)
        body = {"prompt": [7] * 100, "max_tokens": 200}
        replies = await asyncio.gather(*(client.post("/v1/completions", {**body, "seed": n}) for n in range(3)))
        assert all(reply.json()["usage"]["completion_tokens"] == 200 for reply in replies)
        assert await client.metric("num_preemptions_total") > 0
        assert await client.metric("kv_cache_usage_perc") == 0


async def test_a_slow_replica_is_slower(session: aiohttp.ClientSession) -> None:
    async def seconds(*arguments: str) -> float:
        with simulator(*arguments) as (_, url):
            client = Client(session, url)
            await client.post("/v1/completions", {"prompt": "x", "max_tokens": 10})
            return await client.metric("e2e_request_latency_seconds_sum")

    # Ten steps of 8 ms. A busy machine makes them longer, never shorter.
    assert await seconds() >= 0.079
    assert await seconds("--slowdown", "5") >= 0.399


async def test_failures_are_injected_by_the_seed(session: aiohttp.ClientSession) -> None:
    async def statuses(*arguments: str) -> list[int]:
        with simulator("--error-rate", "0.5", *arguments) as (_, url):
            client = Client(session, url)
            body = {"prompt": "x", "max_tokens": 1}
            found = [(await client.post("/v1/completions", body)).status for _ in range(30)]
            assert (await client.get("/health")).status == 200
            return found

    first = await statuses("--seed", "1")
    assert set(first) == {200, 500}
    assert first == await statuses("--seed", "1")
    assert first != await statuses("--seed", "2")


async def test_load_is_tracked_when_asked_for(session: aiohttp.ClientSession) -> None:
    with simulator("--enable-server-load-tracking") as (_, url):
        client = Client(session, url)
        async with client.endless():
            assert (await client.get("/load")).json() == {"server_load": 1}
        await client.wait_metric("num_requests_running", partial(operator.eq, 0))
        assert (await client.get("/load")).json() == {"server_load": 0}


async def test_adapters_fixed_at_start(session: aiohttp.ClientSession) -> None:
    load = {"lora_name": "x", "lora_path": "/nowhere/at/all"}
    with simulator(VLLM_ALLOW_RUNTIME_LORA_UPDATING="False") as (_, url):
        assert (await Client(session, url).post("/v1/load_lora_adapter", load)).status == 404
    with simulator("--check-lora-paths") as (_, url):
        reply = await Client(session, url).post("/v1/load_lora_adapter", load)
        assert reply.status == 404
        assert "/nowhere/at/all" in reply.json()["error"]["message"]
