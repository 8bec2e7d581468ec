"""What the engine does, seen from outside: queueing, LoRA slots, KV pressure, failures."""

from __future__ import annotations

import asyncio
import operator
from functools import partial

import aiohttp

from ...hang import HANG_SECONDS
from .client import Client
from .process import simulator


async def test_a_queue_builds_up_and_is_served_in_order(session: aiohttp.ClientSession) -> None:
    with simulator("--max-num-seqs", "1") as (_, url):
        client = Client(session, url)
        leave = [asyncio.Event() for _ in range(3)]
        served: asyncio.Queue[int] = asyncio.Queue()

        async def ask(number: int) -> None:
            async with client.endless():
                await served.put(number)
                await leave[number].wait()

        async with asyncio.TaskGroup() as tasks:
            async with client.endless():
                for number in range(3):
                    tasks.create_task(ask(number))
                    await client.wait_metric("num_requests_waiting", partial(operator.eq, number + 1))
                assert await client.metric("num_requests_running") == 1
                assert await client.metric("num_requests_waiting_by_reason", reason="capacity") == 3
                assert served.empty()
            # The next is served when the one before it has left, and no sooner.
            for number in range(3):
                assert await served.get() == number
                assert await client.metric("num_requests_waiting") == 2 - number
                leave[number].set()


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
        # One request of three prompts: they are in the engine at the same time.
        body = {"prompt": [[number] * 100 for number in (7, 8, 9)], "max_tokens": 200, "ignore_eos": True}
        usage = (await client.post("/v1/completions", body)).json()["usage"]
        assert usage["completion_tokens"] == 3 * 200
        assert await client.metric("num_preemptions_total") > 0
        await client.wait_metric("kv_cache_usage_perc", partial(operator.eq, 0))


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
        async with asyncio.timeout(HANG_SECONDS):
            while (await client.get("/load")).json() != {"server_load": 0}:  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.01)


async def test_adapters_fixed_at_start(session: aiohttp.ClientSession) -> None:
    load = {"lora_name": "x", "lora_path": "/nowhere/at/all"}
    with simulator(VLLM_ALLOW_RUNTIME_LORA_UPDATING="False") as (_, url):
        assert (await Client(session, url).post("/v1/load_lora_adapter", load)).status == 404
    with simulator("--check-lora-paths") as (_, url):
        reply = await Client(session, url).post("/v1/load_lora_adapter", load)
        assert reply.status == 404
        assert "/nowhere/at/all" in reply.json()["error"]["message"]
