"""A pool on its worst day: simulated servers that can be broken, a picker, a real Envoy as the gateway sets it up, and
clients that ask without a pause."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from headrace.protocol import http

from ...hang import HANG_SECONDS
from ...ports import free_port
from ..envoy import Envoy, start_envoy
from .configs import LISTENER, picking_mode, pool_config
from .picker import PickerProcess, start_picker

CLIENTS = 8


@dataclass
class Server:
    """A simulated server that can be broken, killed and started again."""

    name: str
    directory: Path
    number: int = 0
    port: int = field(default_factory=free_port)
    process: asyncio.subprocess.Process | None = None

    @property
    def key(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def killed(self) -> bool:
        """Whether it died as by SIGKILL."""
        return self.process is not None and self.process.returncode == -signal.SIGKILL

    async def start(self, session: aiohttp.ClientSession) -> None:
        with (self.directory / f"{self.name}-{self.number}.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "headrace.cli.main", "simulate", "--host=127.0.0.1", f"--port={self.port}"),
                *("--model=base", "--speedup=20", "--fault-control", "--enable-sleep-mode", "--shutdown-timeout=3600"),
                env={**os.environ, "POD_NAME": self.name},
                stderr=log,
                stdout=log,
            )
        async with asyncio.timeout(HANG_SECONDS):
            while True:
                assert self.process.returncode is None, f"{self.name}-{self.number}.log says why"
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

    servers: list[Server]
    picker: PickerProcess
    envoy: Envoy
    session: aiohttp.ClientSession
    url: str
    # What became of requests, by who answered and its status; and those of them that did not end well.
    answered: Counter[tuple[str, int]] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    clients: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def sick(self) -> Server:
        """The one that something happens to."""
        return self.servers[-1]

    async def _client(self, name: str) -> None:
        headers = {http.FAIRNESS_ID[1]: name}
        for turn in range(1 << 30):
            body = {"model": "base", "prompt": f"{name} asks {turn}", "max_tokens": 5, "stream": turn % 2 == 0}
            async with self.session.post(self.url, json=body, headers=headers) as answer:
                try:
                    text = await answer.text()
                except aiohttp.ClientPayloadError:
                    text = "cut"
                self.answered[answer.headers.get(http.SIMULATOR_POD, ""), answer.status] += 1
                ended = text.endswith("data: [DONE]\n\n") if body["stream"] else '"finish_reason":"length"' in text
                if answer.status != 200 or not ended or '"abort"' in text:
                    self.failed.append(f"{answer.status} {text[-200:]}")

    def ask(self, clients: int = CLIENTS) -> None:
        """Clients begin. Those that asked before are gone."""
        for client in self.clients:
            client.cancel()
        names = (f"client-{number}" for number in range(clients))
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


@contextlib.asynccontextmanager
async def world(directory: Path, *, servers: int = 2, retry: Mapping[str, Any] | None = None) -> AsyncIterator[World]:
    """A pool of that many servers, of which "sick" is the last. `retry` replaces the gateway's retry policy."""
    async with contextlib.AsyncExitStack() as stack:
        timeout = aiohttp.ClientTimeout(total=HANG_SECONDS)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)
        )
        started = [Server("well", directory, at) for at in range(servers - 1)] + [Server("sick", directory)]
        for server in started:
            stack.push_async_callback(server.end)
        await asyncio.gather(*(server.start(session) for server in started))
        keys = [server.key for server in started]
        picker = await stack.enter_async_context(start_picker(keys, directory))
        config = pool_config(epp_port=picker.grpc_port, endpoints=keys, mode=picking_mode(), observe=True, retry=retry)
        envoy = await stack.enter_async_context(start_envoy(config, directory))
        url = f"http://127.0.0.1:{await envoy.listener_port(LISTENER)}/v1/completions"
        made = World(started, picker, envoy, session, url)
        try:
            yield made
        finally:
            for client in made.clients:
                client.cancel()
            await asyncio.gather(*made.clients, return_exceptions=True)
