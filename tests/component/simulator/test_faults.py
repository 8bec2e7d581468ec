"""The faults of a simulated server: by flag, at run time, and by vLLM's own routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from operator import eq
from typing import Any

import aiohttp
import pytest

from ...hang import HANG_SECONDS
from .client import Client
from .process import Headrace, headrace, simulator

ONE = {"prompt": "x", "max_tokens": 1}
MANY = {**ONE, "max_tokens": 100_000, "ignore_eos": True}


@asynccontextmanager
async def faulty(session: aiohttp.ClientSession, *flags: str) -> AsyncIterator[tuple[Headrace, Client]]:
    with simulator("--fault-control", "--enable-sleep-mode", *flags) as (process, url):
        yield process, Client(session, url)


async def change(client: Client, **faults: Any) -> dict[str, Any]:
    reply = await client.post("/faults", faults)
    assert reply.status == 200, reply.body
    return dict(reply.json())


async def still_waiting(client: Client, *requests: asyncio.Task[Any]) -> None:
    """They were sent before this one, which is answered by the same event loop."""
    for _ in range(3):
        assert (await client.get("/health")).status == 200
    assert not any(request.done() for request in requests)


@pytest.mark.parametrize("status", [500, 503])
async def test_a_server_that_only_fails(session: aiohttp.ClientSession, status: int) -> None:
    async with faulty(session, "--fault", str(status)) as (_, client):
        reply = await client.post("/v1/completions", ONE)
        assert (reply.status, reply.json()["error"]["code"]) == (status, status)
        assert (await client.get("/health")).status == 200
        await change(client, **{str(status): False})
        assert (await client.post("/v1/completions", ONE)).status == 200


async def test_an_engine_that_hangs_answers_nothing_and_its_page_stands_still(session: aiohttp.ClientSession) -> None:
    async with faulty(session) as (_, client), client.endless() as stream:
        await change(client, hang=True)
        tokens = await client.metric("generation_tokens_total")
        # The headers of a stream come all the same.
        async with client.session.post(client.url + "/v1/completions", json={**ONE, "stream": True}) as streamed:
            assert streamed.status == 200
            request = asyncio.create_task(client.post("/v1/completions", ONE))
            await still_waiting(client, request)
            assert await client.metric("num_requests_running") == 1
            assert await client.metric("generation_tokens_total") == tokens
            await change(client, hang=False)
            assert (await streamed.content.read()).endswith(b"data: [DONE]\n\n")
        assert (await request).status == 200
        assert await stream.content.readuntil(b"\n\n")
        assert await client.metric("generation_tokens_total") > tokens


async def test_a_sleeper_counts_nothing_of_what_it_is_sent(session: aiohttp.ClientSession) -> None:
    async with faulty(session) as (_, client):
        running = asyncio.create_task(client.post("/v1/completions", MANY))
        await client.wait_metric("num_requests_running", partial(eq, 1))
        reply = await client.post("/sleep?level=2", b"")
        assert reply.json() == {"status": "sleeping", "level": 2}
        assert (await running).json()["choices"][0]["finish_reason"] == "abort"
        request = asyncio.create_task(client.post("/v1/completions", ONE))
        await still_waiting(client, request)
        assert (await client.get("/is_sleeping")).json() == {"is_sleeping": True}
        states = [
            await client.metric("engine_sleep_state", sleep_state=name)
            for name in ("awake", "weights_offloaded", "discard_all")
        ]
        assert states == [0, 0, 1]
        assert await client.metric("num_requests_running") == 0
        assert await client.metric("num_requests_waiting") == 0
        assert (await client.post("/sleep?level=3", b"")).status == 400
        assert (await client.post("/wake_up", b"")).status == 200
        assert (await request).status == 200
        assert await client.metric("engine_sleep_state", sleep_state="awake") == 1


async def test_a_drain_at_run_time_ends_nothing(session: aiohttp.ClientSession) -> None:
    async with faulty(session) as (_, client), client.endless() as stream:
        await change(client, drain=True)
        assert (await client.post("/v1/completions", ONE)).status == 500
        assert (await client.get("/health")).status == 200
        assert await stream.content.readuntil(b"\n\n")
        await change(client, drain=False)
        assert (await client.post("/v1/completions", ONE)).status == 200


async def test_a_slow_server_takes_longer_for_each_step(session: aiohttp.ClientSession) -> None:
    async with faulty(session, "--fault", "slow=5") as (_, client):
        ten = {**ONE, "max_tokens": 10}
        await client.post("/v1/completions", ten)
        # Ten steps of 8 ms, five times. A busy machine makes them longer, never shorter.
        assert await client.metric("e2e_request_latency_seconds_sum") >= 0.399
        assert (await change(client, slow=None))["slow"] == 1


async def test_one_kind_of_request_kills_the_server(session: aiohttp.ClientSession) -> None:
    async with faulty(session, "--fault", "die=magic words") as (process, client):
        assert (await client.post("/v1/completions", ONE)).status == 200
        async with client.endless() as stream:
            with pytest.raises(aiohttp.ClientError):
                await client.post("/v1/completions", {**ONE, "prompt": "some magic words here"})
            with pytest.raises(aiohttp.ClientError):
                async with asyncio.timeout(HANG_SECONDS):
                    await stream.content.read()
        assert await asyncio.to_thread(process.wait_exit) == -9


async def test_what_is_no_fault_is_named(session: aiohttp.ClientSession) -> None:
    async with faulty(session) as (_, client):
        before = (await client.get("/faults")).json()
        for body in ({"hnag": True}, {"hang": 1}, {"slow": -1}, {"die": 5}):
            reply = await client.post("/faults", body)
            assert (reply.status, reply.json()["error"]["param"]) == (400, next(iter(body)))
        assert (await client.get("/faults")).json() == before


@pytest.mark.parametrize("given", ["hnag", "slow", "slow=x", "slow=0", "hang=1", "die"])
async def test_a_flag_that_is_no_fault_is_named(given: str) -> None:
    with headrace("simulate", "--fault", given) as process:
        assert process.wait_exit() != 0


async def test_a_server_is_not_to_be_broken_unless_it_was_asked_for(client: Client) -> None:
    assert (await client.post("/faults", {"hang": True})).status == 404
    assert (await client.post("/sleep", b"")).status == 404
