"""A picker without CPU for a second is not a dead one; a stopped one is noticed within two. The picker's cluster is the
one that the gateway controller makes, and both run in this process's scheduling group: give it cores of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest
from google.protobuf.json_format import MessageToDict

from headrace.core import GA_GROUP, Pool
from headrace.gateway.clusters import picker_cluster
from headrace.gateway.filters import MESSAGE_TIMEOUT_SECONDS
from headrace.gateway.snapshot import PickerService

from ..component.envoy import start_envoy
from ..component.epp.configs import LISTENER, picking_mode, pool_config
from ..component.epp.picker import PickerProcess, start_picker
from ..component.epp.servers import model_servers

STALLS, STALL_SECONDS = 100, 1.0
REQUESTS_A_SECOND = 20
ASKED = {"model": "base", "prompt": "tell me"}


@dataclass
class Running:
    """The picker, and where Envoy listens."""

    picker: PickerProcess
    url: str
    client: aiohttp.ClientSession

    async def post(self, body: Any) -> int:
        async with self.client.post(f"{self.url}/v1/completions", json=body) as answer:
            await answer.read()
            return answer.status


def cluster(port: int) -> dict[str, Any]:
    """The cluster of a picker on this port, as the gateway controller makes it, without its discovery and TLS."""
    pool = Pool(GA_GROUP, "n", "pool", {"app": "m"}, (8000,))
    service = PickerService("epp", "n", 9002, "grpc", is_ours=True, cleartext=True)
    made = MessageToDict(picker_cluster(pool, service, "epp.n.svc"), preserving_proto_field_name=True)
    del made["eds_cluster_config"]
    address = {"address": "127.0.0.1", "port_value": port}
    endpoint = {"endpoint": {"address": {"socket_address": address}}}
    assignment = {"cluster_name": "epp", "endpoints": [{"lb_endpoints": [endpoint]}]}
    return made | {"name": "epp", "type": "STATIC", "load_assignment": assignment}


@contextlib.asynccontextmanager
async def running(directory: Path, *, fail_open: bool, body: str = "FULL_DUPLEX_STREAMED") -> AsyncIterator[Running]:
    async with contextlib.AsyncExitStack() as stack:
        servers = await stack.enter_async_context(model_servers(2))
        for server in servers:
            server.go_on.set()
        keys = [server.key for server in servers]
        picker = await stack.enter_async_context(start_picker(keys, directory))
        config = pool_config(
            epp_port=picker.grpc_port,
            endpoints=keys,
            mode=picking_mode(body),
            observe=True,
            fail_open=fail_open,
            message_timeout=f"{MESSAGE_TIMEOUT_SECONDS}s",
        )
        clusters = config["static_resources"]["clusters"]
        clusters[:] = [one for one in clusters if one["name"] != "epp"] + [cluster(picker.grpc_port)]
        envoy = await stack.enter_async_context(start_envoy(config, directory))
        client = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        url = f"http://127.0.0.1:{await envoy.listener_port(LISTENER)}"
        found = Running(picker, url, client)
        async with asyncio.timeout(30):
            while await found.post(ASKED) != 200:  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.05)
        yield found


async def stalled(picker: PickerProcess, seconds: float) -> None:
    picker.kill(signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        picker.kill(signal.SIGCONT)


async def test_stalls_of_a_second_refuse_nothing(tmp_path: Path) -> None:
    rng = Random(1)
    async with running(tmp_path, fail_open=False) as run:
        over = asyncio.Event()

        async def stall() -> None:
            for _ in range(STALLS):
                await stalled(run.picker, STALL_SECONDS)
                # At any phase of keepalives and health checks.
                await asyncio.sleep(rng.uniform(0.3, 1.7))
            over.set()

        asked: list[asyncio.Task[int]] = []
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(stall())
            while not over.is_set():
                asked.append(tasks.create_task(run.post(ASKED)))
                await asyncio.sleep(1 / REQUESTS_A_SECOND)
        assert Counter(task.result() for task in asked) == {200: len(asked)}


@pytest.mark.parametrize("attempt", range(5))
async def test_a_stopped_picker_is_noticed_within_two_seconds(tmp_path: Path, attempt: int) -> None:
    async with running(tmp_path, fail_open=False) as run:
        await asyncio.sleep(0.2 * attempt)
        run.picker.kill(signal.SIGSTOP)
        began = time.monotonic()
        # Asked at once, it waits for the picker until Envoy has noticed.
        assert await run.post(ASKED) == 503
        assert time.monotonic() - began < 2.0
        run.picker.kill(signal.SIGCONT)


@pytest.mark.parametrize("mode", ["BUFFERED", "FULL_DUPLEX_STREAMED"])
async def test_a_large_body_is_answered_where_the_pool_fails_open(tmp_path: Path, mode: str) -> None:
    """However the picker gets it: buffered is what the gateway has such pools do, unless they say otherwise."""
    body = ASKED | {"prompt": "word " * 1_000_000}
    assert len(json.dumps(body)) > 5_000_000
    async with running(tmp_path, fail_open=True, body=mode) as run:
        for _ in range(5):
            stall = asyncio.create_task(stalled(run.picker, STALL_SECONDS))
            await asyncio.sleep(0.05)
            assert await run.post(body) == 200
            await stall
