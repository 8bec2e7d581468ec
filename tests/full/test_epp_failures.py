"""The endpoint picker behind a real Envoy under load, and what becomes of answers when it dies, stops or drains."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ..component.envoy import start_envoy
from ..component.epp.configs import BOTH_WAYS_DUPLEX, LISTENER, picking_mode, pool_config
from ..component.epp.picker import PickerProcess, start_picker
from ..component.epp.servers import ModelServer, expected_events, model_servers
from ..ports import free_port
from .files import all_open_files

MANY = 1_200
RUNNING = 100
STREAM = {"model": "base", "prompt": "tell me", "stream": True}
FIRST = b"data: 0\n\n"
# Two seconds of Envoy's keepalive until a stopped picker is noticed, and what a loaded machine adds.
NOTICED_SECONDS = 5.0

# A stopped picker is noticed in the time that NOTICED_SECONDS says.
NOTICING = {"keepalive_timeout": "1s"}

TWO_FILTERS = {"mode": picking_mode(), "observe": True}
BUFFERED = {"mode": picking_mode("BUFFERED"), "observe": True}
ONE_FILTER = {"mode": BOTH_WAYS_DUPLEX, "observe": False}


@pytest.fixture(autouse=True)
def many_files() -> Iterator[None]:
    """A connection is two files here: as many as the machine lets us have."""
    with all_open_files():
        yield


@dataclass
class Pool:
    """Model servers, Envoy, and a picker that can be started again on its port."""

    servers: list[ModelServer]
    url: str
    client: aiohttp.ClientSession
    directory: Path
    grpc_port: int
    flags: tuple[str, ...]
    starts: int = 0
    pickers: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    async def start_picker(self) -> PickerProcess:
        """A picker, on the port that Envoy asks."""
        self.starts += 1
        keys = [server.key for server in self.servers]
        flags = (f"--grpc-port={self.grpc_port}", *self.flags)
        started = start_picker(keys, self.directory, *flags, name=f"epp-{self.starts}")
        return await self.pickers.enter_async_context(started)

    def go_on(self) -> None:
        """Every stream goes on to its end."""
        for server in self.servers:
            server.go_on.set()

    async def stream(self, begun: asyncio.Semaphore | None = None) -> bytes:
        """A streamed answer, whole; its status where that is not 200, its error where it was cut."""
        try:
            async with self.client.post(f"{self.url}/v1/completions", json=STREAM) as answer:
                if answer.status != 200:
                    return str(answer.status).encode()
                first = await answer.content.readuntil(b"\n\n")
                if begun is not None:
                    begun.release()
                return first + await answer.read()
        except (aiohttp.ClientError, asyncio.IncompleteReadError) as error:
            return f"cut: {type(error).__name__} {error}".encode()

    async def streams(self, count: int) -> list[asyncio.Task[bytes]]:
        """That many streams, all of which have begun; not more than fifty arrive at a time."""
        begun, arriving = asyncio.Semaphore(0), asyncio.Semaphore(50)
        tasks: list[asyncio.Task[bytes]] = []
        for _ in range(count):
            await arriving.acquire()
            task = asyncio.create_task(self.stream(begun))
            tasks.append(task)
            asyncio.create_task(_release_when_begun(begun, arriving, task))  # noqa: RUF006 (ends with the stream's start)
        async with asyncio.timeout(120):
            for _ in range(50):
                await arriving.acquire()
        return tasks


async def _release_when_begun(begun: asyncio.Semaphore, arriving: asyncio.Semaphore, task: asyncio.Task[bytes]) -> None:
    waiting = asyncio.create_task(begun.acquire())
    await asyncio.wait((waiting, task), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    arriving.release()


@contextlib.asynccontextmanager
async def running_pool(directory: Path, *flags: str, fail_open: bool, **mode: Any) -> AsyncIterator[Pool]:
    """A pool of two servers whose picker is yet to be started."""
    async with contextlib.AsyncExitStack() as stack:
        servers = await stack.enter_async_context(model_servers(2))
        port = free_port()
        keys = [server.key for server in servers]
        config = pool_config(epp_port=port, endpoints=keys, fail_open=fail_open, **{**NOTICING, **mode})
        envoy = await stack.enter_async_context(start_envoy(config, directory))
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=300)
        client = await stack.enter_async_context(aiohttp.ClientSession(connector=connector, timeout=timeout))
        pool = Pool(servers, f"http://127.0.0.1:{await envoy.listener_port(LISTENER)}", client, directory, port, flags)
        await stack.enter_async_context(pool.pickers)
        yield pool


@pytest.mark.parametrize("mode", [TWO_FILTERS, BUFFERED, ONE_FILTER], ids=["duplex", "buffered", "one filter"])
async def test_twelve_hundred_streams_at_once(tmp_path: Path, mode: dict[str, Any]) -> None:
    async with running_pool(tmp_path, fail_open=False, **mode) as pool:
        picker = await pool.start_picker()
        tasks = await pool.streams(MANY)
        await picker.wait_in_flight(MANY)
        counts = [entry["in_flight"] for entry in (await picker.endpoints()).values()]
        assert sum(counts) == MANY
        assert max(counts) - min(counts) < MANY / 10
        pool.go_on()
        assert Counter(await asyncio.gather(*tasks)) == {expected_events(): MANY}
        await picker.wait_in_flight(0)


@pytest.mark.parametrize("fail_open", [False, True], ids=["FailClose", "FailOpen"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP], ids=lambda s: s.name)
@pytest.mark.parametrize("mode", [TWO_FILTERS, BUFFERED], ids=["duplex", "buffered"])
async def test_a_hundred_streams_outlive_their_picker(
    tmp_path: Path, mode: dict[str, Any], how: signal.Signals, fail_open: bool
) -> None:
    drain = ("--drain-delay=500ms", "--drain-timeout=1s")
    async with running_pool(tmp_path, *drain, fail_open=fail_open, **mode) as pool:
        picker = await pool.start_picker()
        tasks = await pool.streams(RUNNING)
        picker.kill(how)
        if how is signal.SIGSTOP:
            await asyncio.sleep(NOTICED_SECONDS)
        else:
            async with asyncio.timeout(30):
                code = await picker.process.wait()
            assert code == (0 if how is signal.SIGTERM else -signal.SIGKILL)
        assert [task for task in tasks if task.done()] == []
        pool.go_on()
        assert Counter(await asyncio.gather(*tasks)) == {expected_events(): RUNNING}


@dataclass
class Answers:
    """What became of requests under steady load."""

    counts: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0

    async def ask(self, pool: Pool) -> None:
        """One request; every second one is a stream."""
        started = time.monotonic()
        answer = await pool.stream() if self.counts.total() % 2 else await self._plain(pool)
        self.counts["whole" if answer in (b"200", expected_events()) else answer.decode()] += 1
        self.slowest = max(self.slowest, time.monotonic() - started)

    async def _plain(self, pool: Pool) -> bytes:
        body = {"model": "base", "prompt": "x"}
        try:
            async with pool.client.post(f"{pool.url}/v1/completions", json=body) as answer:
                await answer.read()
                return str(answer.status).encode()
        except aiohttp.ClientError as error:
            return f"cut: {type(error).__name__} {error}".encode()


@contextlib.asynccontextmanager
async def load(pool: Pool, rate: float) -> AsyncIterator[Answers]:
    """Requests at a steady rate, until the block ends."""
    answers = Answers()
    over = asyncio.Event()

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            while not over.is_set():
                tasks.create_task(answers.ask(pool))
                await asyncio.sleep(1 / rate)

    running = asyncio.create_task(run())
    try:
        yield answers
    finally:
        over.set()
        await running


@pytest.mark.parametrize("fail_open", [False, True], ids=["FailClose", "FailOpen"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=lambda s: s.name)
async def test_a_picker_that_is_killed_and_started_again_under_load(
    tmp_path: Path, how: signal.Signals, fail_open: bool
) -> None:
    # What FailOpen promises it can keep where the gateway still has the body: our own gateway buffers it there.
    mode = BUFFERED if fail_open else TWO_FILTERS
    async with running_pool(tmp_path, "--drain-timeout=1s", fail_open=fail_open, **mode) as pool:
        pool.go_on()
        picker = await pool.start_picker()
        async with load(pool, rate=40) as answers:
            for _ in range(5):
                await asyncio.sleep(2)
                picker.kill(how)
                async with asyncio.timeout(30):
                    await picker.process.wait()
                await asyncio.sleep(1)
                picker = await pool.start_picker()
        print(f"{how.name}: {dict(answers.counts)}, the slowest took {answers.slowest:.1f} s")
        # Whole, or refused as FailClose says: none is cut, none hangs.
        assert set(answers.counts) <= ({"whole"} if fail_open else {"whole", "503"}), answers.counts
        assert answers.counts["whole"] > 100
        await picker.wait_in_flight(0)
        assert await pool.stream() == expected_events()


@pytest.mark.parametrize("fail_open", [False, True], ids=["FailClose", "FailOpen"])
async def test_a_picker_that_is_stopped_and_goes_on_under_load(tmp_path: Path, fail_open: bool) -> None:
    mode = BUFFERED if fail_open else TWO_FILTERS
    async with running_pool(tmp_path, fail_open=fail_open, message_timeout="2s", **mode) as pool:
        pool.go_on()
        picker = await pool.start_picker()
        async with load(pool, rate=40) as answers:
            await asyncio.sleep(2)
            picker.kill(signal.SIGSTOP)
            await asyncio.sleep(NOTICED_SECONDS)
            picker.kill(signal.SIGCONT)
            await asyncio.sleep(2)
        print(f"SIGSTOP: {dict(answers.counts)}, the slowest took {answers.slowest:.1f} s")
        assert set(answers.counts) <= ({"whole"} if fail_open else {"whole", "503", "504"}), answers.counts
        assert answers.counts["whole"] > 50
        await picker.wait_in_flight(0)
        assert await pool.stream() == expected_events()
