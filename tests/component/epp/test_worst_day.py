"""Eight clients, two simulated servers, a real Envoy with the gateway's retries, and one fault after the other.

From when the picker takes the server for what it is, no request fails; when the fault is over, traffic returns by
itself. How long either takes is not measured here."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from google.protobuf.json_format import MessageToDict

from headrace.gateway import translate
from headrace.gateway.clusters import number, retry_elsewhere
from headrace.protocol import http
from headrace.xds.envoy.config.route.v3 import route_components_pb2

from ...hang import HANG_SECONDS
from ...ports import free_port
from ..envoy import start_envoy
from .configs import LISTENER, picking_mode, pool_config
from .picker import PickerProcess, start_picker

CLIENTS = 8


@dataclass
class Server:
    """A simulated server that can be broken, killed and started again."""

    name: str
    directory: Path
    port: int = field(default_factory=free_port)
    process: asyncio.subprocess.Process | None = None

    @property
    def key(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self, session: aiohttp.ClientSession) -> None:
        with (self.directory / f"{self.name}.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "headrace.cli.main", "simulate", "--host=127.0.0.1", f"--port={self.port}"),
                *("--model=base", "--speedup=20", "--fault-control", "--enable-sleep-mode", "--shutdown-timeout=3600"),
                env={**os.environ, "POD_NAME": self.name},
                stderr=log,
                stdout=log,
            )
        async with asyncio.timeout(HANG_SECONDS):
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"http://{self.key}/health") as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.05)

    async def post(self, session: aiohttp.ClientSession, path: str, body: dict[str, Any] | None = None) -> None:
        async with session.post(f"http://{self.key}{path}", json=body or {}) as answer:
            assert answer.status == 200, await answer.text()

    def send(self, signal_number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(signal_number)

    async def end(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        if self.process is not None:
            await self.process.wait()


@dataclass
class World:
    """A pool under load: each client asks again as soon as it is answered."""

    sick: Server
    picker: PickerProcess
    session: aiohttp.ClientSession
    url: str
    # What became of requests, by who answered and its status; and those of them that did not end well.
    answered: Counter[tuple[str, int]] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    clients: list[asyncio.Task[None]] = field(default_factory=list)

    async def _client(self, name: str) -> None:
        headers = {http.FAIRNESS_ID[1]: name}
        for turn in range(1 << 30):
            body = {"model": "base", "prompt": f"{name} asks {turn}", "max_tokens": 5, "stream": turn % 2 == 0}
            async with self.session.post(self.url, json=body, headers=headers) as answer:
                text = await answer.text()
                self.answered[answer.headers.get(http.SIMULATOR_POD, ""), answer.status] += 1
                ended = text.endswith("data: [DONE]\n\n") if body["stream"] else '"finish_reason":"length"' in text
                if answer.status != 200 or not ended or '"abort"' in text:
                    self.failed.append(f"{answer.status} {text[-200:]}")

    def ask(self) -> None:
        """Clients begin. Those that asked before are gone."""
        for client in self.clients:
            client.cancel()
        names = (f"client-{number}" for number in range(CLIENTS))
        self.clients = [asyncio.create_task(self._client(name)) for name in names]

    async def wait(self, holds: Callable[[], bool]) -> None:
        """Until something holds; clients that break end the wait."""
        async with asyncio.timeout(HANG_SECONDS):
            while not holds():
                for client in self.clients:
                    if client.done():
                        client.result()
                await asyncio.sleep(0.02)

    async def health(self) -> str:
        return str((await self.picker.endpoints())[self.sick.key]["health"])

    async def wait_health(self, *wanted: str) -> None:
        try:
            async with asyncio.timeout(HANG_SECONDS):
                while await self.health() not in wanted:  # noqa: ASYNC110 (another process)
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"still {await self.health()}, {self.answered}") from None

    async def serves(self, count: int) -> None:
        """Until so many more requests were answered."""
        before = self.answered.total()
        await self.wait(lambda: self.answered.total() >= before + count)


def gateways_retries() -> dict[str, Any]:
    """The route's retry policy, as the gateway makes it."""
    policy = route_components_pb2.RetryPolicy(retry_on=translate._RETRY_ON, num_retries=number(translate._RETRIES))
    policy.retriable_status_codes.append(503)
    retry_elsewhere(policy)
    return dict(MessageToDict(policy, preserving_proto_field_name=True))


@contextlib.asynccontextmanager
async def world(directory: Path) -> AsyncIterator[World]:
    async with contextlib.AsyncExitStack() as stack:
        timeout = aiohttp.ClientTimeout(total=HANG_SECONDS)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)
        )
        servers = [Server("well", directory), Server("sick", directory)]
        for server in servers:
            stack.push_async_callback(server.end)
            await server.start(session)
        keys = [server.key for server in servers]
        picker = await stack.enter_async_context(start_picker(keys, directory))
        retry = gateways_retries()
        config = pool_config(epp_port=picker.grpc_port, endpoints=keys, mode=picking_mode(), observe=True, retry=retry)
        envoy = await stack.enter_async_context(start_envoy(config, directory))
        url = f"http://127.0.0.1:{await envoy.listener_port(LISTENER)}/v1/completions"
        made = World(servers[1], picker, session, url)
        try:
            yield made
        finally:
            for client in made.clients:
                client.cancel()
            await asyncio.gather(*made.clients, return_exceptions=True)


async def _sleep(w: World) -> None:
    await w.sick.post(w.session, "/sleep")


async def _wake(w: World) -> None:
    await w.sick.post(w.session, "/wake_up")


def _fault(name: str, value: Any) -> Callable[[World], Any]:
    async def change(w: World) -> None:
        await w.sick.post(w.session, "/faults", {name: value})

    return change


def _signal(number: signal.Signals) -> Callable[[World], Any]:
    async def change(w: World) -> None:
        w.sick.send(number)

    return change


async def _restart(w: World) -> None:
    await w.sick.end()
    await w.sick.start(w.session)


FAULTS = {
    "asleep": (_sleep, _wake, "asleep"),
    "engine stopped": (_fault("hang", True), _fault("hang", False), "no-progress"),
    "process stopped": (_signal(signal.SIGSTOP), _signal(signal.SIGCONT), "no-progress"),
    "killed": (_signal(signal.SIGKILL), _restart, ""),
    "drained": (_fault("drain", True), _fault("drain", False), ""),
    "answers 500": (_fault("500", True), _fault("500", False), ""),
    # Envoy has three retries at once: what comes beside them reaches its client.
    "answers 503": (_fault("503", True), _fault("503", False), ""),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_sick_server_draws_no_traffic_and_gets_it_back(tmp_path: Path, fault: str) -> None:
    begin, end, reason = FAULTS[fault]
    async with world(tmp_path) as w:
        w.ask()
        await w.wait(lambda: w.answered["sick", 200] > 10 and w.answered["well", 200] > 10)
        assert w.failed == []
        assert await w.health() == "good"
        await begin(w)
        await w.wait_health("suspect", "out")
        # Those that were sent before may be stuck, and are not waited for.
        assert len(w.failed) <= CLIENTS, w.failed[:3]
        await w.wait_health("out")
        found = (await w.picker.endpoints())[w.sick.key]
        assert not reason or found["health_reason"] == reason, (found, w.failed, w.answered)
        w.ask()
        w.failed.clear()
        w.answered.clear()
        await w.serves(200)
        assert w.failed == []
        assert {name for name, _ in w.answered} == {"well"}
        await end(w)
        await w.wait_health("good")
        before = w.answered["sick", 200]
        await w.wait(lambda: w.answered["sick", 200] > before + 20)
        assert w.failed == []


async def test_a_slow_server_is_not_a_sick_one(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.ask()
        await w.serves(50)
        await w.sick.post(w.session, "/faults", {"slow": 10})
        before = w.answered["sick", 200]
        await w.wait(lambda: w.answered["sick", 200] > before + 50)
        assert w.failed == []
        for state in ("out", "trial"):
            name = f'headrace_epp_endpoints_by_health{{state="{state}"}}'
            assert await w.picker.metric(name) == 0
