"""Start, drain and end of a simulated server: as vLLM ends, and, with --drain-delay-seconds, in a kinder way."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest

from ...ports import free_port
from .client import Client
from .process import headrace, simulator

LONG = {"prompt": "x", "max_tokens": 500, "ignore_eos": True, "stream": True}


async def test_a_drain_fails_readiness_and_serves_on(session: aiohttp.ClientSession) -> None:
    with simulator("--drain-delay-seconds", "3600") as (process, url):
        client = Client(session, url)
        process.terminate()
        process.wait_log("draining")
        health = await client.get("/health")
        assert health.status == 503
        assert health.headers["connection"] == "close", "the next request must go to another server"
        assert (await client.post("/v1/completions", {"prompt": "x", "max_tokens": 1})).status == 200


async def test_a_drain_finishes_what_runs_and_refuses_what_comes_after_its_delay(
    session: aiohttp.ClientSession,
) -> None:
    with simulator("--drain-delay-seconds", "0.5") as (process, url):
        client = Client(session, url)
        # The one has an end, which comes after the delay's: 500 steps of 8 ms. The other keeps the server up meanwhile.
        async with client.endless(), session.post(url + "/v1/completions", json=LONG) as stream:
            await stream.content.readline()
            process.terminate()
            process.wait_log("draining")
            # Each of these takes a step of the engine, so the loop is no busy one; the test's client has a time limit.
            while (late := await client.post("/v1/completions", {"prompt": "x", "max_tokens": 1})).status == 200:
                pass
            assert late.status == 503
            assert "shutting down" in late.json()["error"]["message"]
            rest = await stream.content.read()
            assert rest.endswith(b"data: [DONE]\n\n")
            last = json.loads(rest.split(b"\n\n")[-3][6:])
            assert last["choices"][0]["finish_reason"] == "length"
        # In a thread: the event loop still closes the connection of who has just left.
        assert await asyncio.to_thread(process.wait_exit) == 0
        process.wait_log("drained")


async def test_an_idle_server_ends_at_once_without_a_delay() -> None:
    with simulator("--drain-delay-seconds", "0") as (process, _):
        process.terminate()
        assert process.wait_exit() == 0


@pytest.mark.parametrize("flags", [["--drain-delay-seconds", "100"], ["--drain-delay-seconds", "0"]])
async def test_a_second_signal_ends_a_drain(session: aiohttp.ClientSession, flags: list[str]) -> None:
    with simulator(*flags) as (process, url):
        async with Client(session, url).endless():
            process.terminate()
            process.wait_log("draining")
            process.terminate()
            assert process.wait_exit() == 0


async def test_a_drain_has_a_limit(session: aiohttp.ClientSession) -> None:
    with simulator("--drain-delay-seconds", "0", "--drain-timeout-seconds", "0.2") as (process, url):
        async with Client(session, url).endless():
            process.terminate()
            assert process.wait_log("stopped with unfinished requests")["unfinished"] == 1
            assert process.wait_exit() == 0


async def test_a_terminated_server_answers_what_runs_as_aborted(session: aiohttp.ClientSession) -> None:
    with simulator() as (process, url):
        whole = {"prompt": "x", "max_tokens": 100_000, "ignore_eos": True}
        waiting = asyncio.create_task(session.post(url + "/v1/completions", json=whole))
        async with Client(session, url).endless() as stream:
            await Client(session, url).wait_metric("num_requests_running", lambda value: value == 2)
            process.terminate()
            rest = await stream.content.read()
            assert rest.endswith(b"data: [DONE]\n\n")
            assert json.loads(rest.split(b"\n\n")[-3][6:])["choices"][0]["finish_reason"] == "abort"
            async with await waiting as answer:
                assert answer.status == 200
                assert (await answer.json())["choices"][0]["finish_reason"] == "abort"
        assert await asyncio.to_thread(process.wait_exit) == 0


async def test_with_a_shutdown_timeout_what_runs_ends_and_what_comes_is_answered_500(
    session: aiohttp.ClientSession,
) -> None:
    with simulator("--shutdown-timeout", "3600") as (process, url):
        client = Client(session, url)
        async with client.endless(), session.post(url + "/v1/completions", json=LONG) as stream:
            await stream.content.readline()
            process.terminate()
            process.wait_log("draining")
            late = await client.post("/v1/completions", {"prompt": "x", "max_tokens": 1})
            assert (late.status, late.json()["error"]["type"]) == (500, "InternalServerError")
            assert late.json()["error"]["message"] == "cannot schedule new futures after shutdown"
            assert (await client.get("/health")).status == 200
            rest = await stream.content.read()
            assert json.loads(rest.split(b"\n\n")[-3][6:])["choices"][0]["finish_reason"] == "length"
        assert await asyncio.to_thread(process.wait_exit) == 0


async def test_a_shutdown_timeout_ends(session: aiohttp.ClientSession) -> None:
    with simulator("--shutdown-timeout", "0.2") as (process, url):
        async with Client(session, url).endless() as stream:
            process.terminate()
            rest = await stream.content.read()
            assert json.loads(rest.split(b"\n\n")[-3][6:])["choices"][0]["finish_reason"] == "abort"
        assert await asyncio.to_thread(process.wait_exit) == 0


async def test_nothing_listens_while_the_model_is_loaded(session: aiohttp.ClientSession) -> None:
    port = free_port()
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--startup-seconds"]
    client = Client(session, f"http://127.0.0.1:{port}")
    with headrace("simulate", *arguments, "3600") as process:
        process.wait_log("starting")
        with pytest.raises(aiohttp.ClientConnectorError):
            await client.get("/health")
    with headrace("simulate", *arguments, "0.1") as process:
        process.wait_log("starting")
        process.wait_log("serving")
        assert (await client.get("/health")).status == 200


async def test_a_server_that_starts_can_be_stopped() -> None:
    with headrace("simulate", "--startup-seconds", "1000") as process:
        process.wait_log("starting")
        process.terminate()
        assert process.wait_exit() == 0


async def test_a_port_that_is_taken_is_named(server: str) -> None:
    port = server.rsplit(":", 1)[1]
    with headrace("simulate", "--host", "127.0.0.1", "--port", port) as process:
        entry = process.wait_log("cannot listen")
        assert port in entry["message"]
        assert "--port" in entry["message"]
        assert process.wait_exit() == 1


async def test_memory_stays_small(session: aiohttp.ClientSession) -> None:
    """A whole local stack with several of these has a budget; a full KV cache and many streams are included."""
    with simulator("--speedup", "200") as (process, url):
        client = Client(session, url)
        prompts = [
            {"prompt": f"{number:04}" + "x" * 4 * 1500, "max_tokens": 20, "stream": True} for number in range(400)
        ]
        replies = await asyncio.gather(*(client.post("/v1/completions", prompt) for prompt in prompts))
        assert all(len(reply.events()) == 20 for reply in replies)
        assert process.resident_bytes() < 100e6
