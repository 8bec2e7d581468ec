"""The picker with simulated vLLM servers, whose metrics, adapters and prefix caches behave as the real ones do."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp

from ...hang import HANG_SECONDS
from ...ports import free_port
from ..envoy import start_envoy
from .configs import LISTENER, picking_mode, pool_config
from .picker import start_picker

SERVERS = 3
ADAPTERS = ("a1", "a2", "a3")


@contextlib.asynccontextmanager
async def simulators(
    directory: Path, *flags: str, hosts: Sequence[str] = ("127.0.0.1",) * SERVERS
) -> AsyncIterator[list[str]]:
    """Simulated servers on free ports; yields their keys once they are healthy."""
    processes = []
    keys = []
    try:
        async with aiohttp.ClientSession() as session:
            for number, host in enumerate(hosts):
                port = free_port()
                log = (directory / f"simulator-{number}.log").open("wb")
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "headrace.cli.main", "simulate", f"--host={host}", f"--port={port}"),
                    *("--model=base", "--speedup=20", f"--seed={number}", *flags),
                    stderr=log,
                    stdout=log,
                )
                log.close()
                processes.append(process)
                keys.append(f"{host}:{port}")
            async with asyncio.timeout(HANG_SECONDS):
                for key in keys:
                    while not await _healthy(session, key):  # noqa: ASYNC110 (another process)
                        await asyncio.sleep(0.05)
        yield keys
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _healthy(session: aiohttp.ClientSession, key: str) -> bool:
    try:
        async with session.get(f"http://{key}/health") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


async def test_adapters_stay_where_they_are_and_answers_stream(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        flags = ("--lora-adapter", "a1", "a2", "a3", "--max-loras=1")
        keys = await stack.enter_async_context(simulators(tmp_path, *flags))
        picker = await stack.enter_async_context(start_picker(keys, tmp_path))
        config = pool_config(epp_port=picker.grpc_port, endpoints=keys, mode=picking_mode(), observe=True)
        envoy = await stack.enter_async_context(start_envoy(config, tmp_path))
        url = f"http://127.0.0.1:{await envoy.listener_port(LISTENER)}/v1/completions"
        session = await stack.enter_async_context(aiohttp.ClientSession())

        async def complete(model: str, number: int) -> None:
            body = {"model": model, "prompt": f"{number} is a number", "max_tokens": 20, "stream": number % 2 == 0}
            async with session.post(url, json=body, headers={"x-request-id": f"{model}-{number}"}) as answer:
                text = await answer.text()
                assert answer.status == 200, text
                if body["stream"]:
                    assert text.endswith("data: [DONE]\n\n")
                else:
                    assert json.loads(text)["model"] == model

        # Until a server has reported an adapter, nobody can tell its name from a base model's.
        for model in ADAPTERS:
            await complete(model, 0)
        async with asyncio.timeout(HANG_SECONDS):
            while json.loads((await picker.get("/debug/endpoints"))[1])["adapters"] != sorted(ADAPTERS):
                await asyncio.gather(*(complete(model, 1) for model in ADAPTERS))

        async def homes(number: int) -> dict[str, str]:
            """Where each adapter's request went, when all of them and a base model's came at once."""
            await asyncio.gather(*(complete(model, number) for model in (*ADAPTERS, "base")))
            found = {}
            for model in ADAPTERS:
                (decision,) = await picker.decisions(f"?request_id={model}-{number}")
                found[model] = decision["winner"]
            return found

        # One adapter fits on each server: once each has found its own, it stays there.
        async with asyncio.timeout(HANG_SECONDS):
            for number in itertools.count(10):
                settled = await homes(number)
                if set(settled.values()) == set(keys):
                    break
        for number in range(1000, 1008):
            assert await homes(number) == settled
        await picker.wait_in_flight(0)
        endpoints = await picker.endpoints()
        assert all(entry["metrics_fresh"] for entry in endpoints.values())
        assert {model for entry in endpoints.values() for model in entry["models"]} == {"base"}
