"""What becomes of requests while a picker is gone, dead, stopped, unreachable or refuses TLS: with the real Envoy
Gateway's routes and policies around it, for pickers of ours (two filters) and for others (one filter, both ways)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from ..epp.servers import ModelServer, expected_events
from .network import blackhole, ipv4
from .objects import Object, backend, endpoint_slice, pool, route
from .patient import FAILING
from .world import Client, PodPicker, World, client, cluster_name, model_servers, picker, until

_PICKER_HOSTS = itertools.count(200)
KEYS = (f"{ipv4(51)}:8000", f"{ipv4(52)}:8000")
SMALL = b'{"model":"base","prompt":"hi"}'
LARGE = b'{"model":"base","prompt":"%s"}' % (b"x" * 5_000_000)
STREAM = b'{"model":"base","prompt":"hi","stream":true}'


@dataclass
class Failing:
    """A pool whose picker the test does away with."""

    world: World
    pool: Object
    picker: PodPicker
    servers: dict[str, ModelServer]
    client: Client
    ours: bool

    @property
    def name(self) -> str:
        """Of the pool and its route."""
        return str(self.pool["metadata"]["name"])

    def served(self) -> int:
        """How many requests any model server has seen."""
        return sum(len(server.requests) for server in self.servers.values())

    def place_picker(self, *addresses: str, ending: Collection[str] = ()) -> None:
        """Let the picker's Service lead there."""
        self.world.api.apply(endpoint_slice(f"{self.name}-epp", 9002, *addresses, ending=ending))

    async def wait_noticed(self) -> None:
        """Until Envoy finds no healthy picker."""
        await asyncio.to_thread(self.world.wait_endpoints, f"{cluster_name(self.pool)}/picker")

    async def stream(self) -> bytes:
        """A streamed answer, whole."""
        headers = {"host": f"{self.name}.example", "content-type": "application/json"}
        url = f"http://127.0.0.1:{self.client.port}/v1/completions"
        async with self.client.session.post(url, data=STREAM, headers=headers) as answer:
            return await answer.read() if answer.status == 200 else str(answer.status).encode()


@pytest.fixture(params=["FailClose", "FailOpen"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def failing(world: World, mode: str, *flags: str, ours: bool = True) -> AsyncIterator[Failing]:
    """A pool that serves, with two Pods. `flags` are the picker's."""
    name = f"{FAILING}{mode.removeprefix('Fail').lower()}-{'ours' if ours else 'other'}"
    wanted = pool(name, failure_mode=mode)
    world.api.apply(wanted)
    for number, key in enumerate(KEYS):
        world.add_pod(f"{name}-{number}", name, key.rpartition(":")[0])
    address = ipv4(next(_PICKER_HOSTS))
    world.add_picker_service(wanted, address, ours=ours)
    world.api.apply(route(name, {"backendRefs": [backend(wanted)]}))
    async with contextlib.AsyncExitStack() as stack:
        servers = await stack.enter_async_context(model_servers(ipv4(51), ipv4(52)))
        for server in servers.values():
            server.go_on.set()
        process = await stack.enter_async_context(picker(world, wanted, address, *flags))
        asking = await stack.enter_async_context(client())
        await asking.wait_served(name)
        await asyncio.to_thread(world.wait_pool, wanted, *KEYS, picker=f"{address}:9002")
        try:
            yield Failing(world, wanted, process, servers, asking, ours)
        finally:
            world.api.delete(route(name), wanted)


async def assert_mode_holds(failing: Failing, mode: str) -> None:
    """Every kind of request is answered as the failure mode says."""
    before = failing.served()
    kinds = {"GET": None, "small": SMALL, "large": LARGE}
    answers = await asyncio.gather(*(failing.client.ask(failing.name, body=body) for body in kinds.values()))
    events = await failing.stream()
    statuses = {kind: status for kind, (status, _, _) in zip(kinds, answers, strict=True)}
    if mode == "FailOpen":
        assert statuses == dict.fromkeys(kinds, 200), statuses
        assert {seen["server"] for _, seen, _ in answers} <= set(KEYS)
        assert events == expected_events()
    else:
        assert set(statuses.values()) <= {503, 504}, statuses
        assert events in (b"503", b"504")
        assert failing.served() == before


async def assert_recovers(failing: Failing) -> None:
    """Requests are picked for again."""
    started = time.monotonic()
    await failing.client.wait_served(failing.name)
    await until(lambda: bool(failing.world.endpoints(f"{cluster_name(failing.pool)}/picker")), "the picker is back")
    print(f"recovered after {time.monotonic() - started:.2f} s")


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "other"])
async def test_no_picker_at_all(world: World, mode: str, ours: bool) -> None:
    async with failing(world, mode, ours=ours) as pool_of:
        epp = f"{cluster_name(pool_of.pool)}/picker"
        pool_of.place_picker()
        await asyncio.to_thread(world.wait_endpoints, epp)
        await assert_mode_holds(pool_of, mode)
        pool_of.place_picker(pool_of.picker.address)
        await assert_recovers(pool_of)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_a_dead_picker_that_is_still_listed(world: World, mode: str, number: signal.Signals) -> None:
    async with failing(world, mode) as pool_of:
        pool_of.picker.kill(number)
        # The window until Envoy notices: whatever comes, it comes, and never from a Pod in FailClose.
        before = pool_of.served()
        started = time.monotonic()
        status, _, _ = await pool_of.client.ask(pool_of.name)
        print(f"{mode} {number.name}: the first request: {status} after {time.monotonic() - started:.2f} s")
        assert status == 200 if mode == "FailOpen" else status in (503, 504)
        if mode == "FailClose":
            assert pool_of.served() == before
        await pool_of.wait_noticed()
        print(f"noticed after {time.monotonic() - started:.2f} s")
        await assert_mode_holds(pool_of, mode)
        if number is signal.SIGSTOP:
            pool_of.picker.kill(signal.SIGCONT)
            await assert_recovers(pool_of)


async def test_a_picker_whose_successor_is_slow_to_answer(world: World) -> None:
    """As a rollout ends: one change has the old picker ending and the new one ready, which Envoy cannot reach yet."""
    async with failing(world, "FailClose", "--drain-delay=1h") as pool_of:
        old, address = pool_of.picker, ipv4(next(_PICKER_HOSTS))
        statuses: Counter[int] = Counter()

        async def serves(count: int = 20) -> None:
            for _ in range(count):
                statuses[(await pool_of.client.ask(pool_of.name))[0]] += 1
            assert set(statuses) == {200}, (statuses, world.picker_counters(pool_of.pool))

        async def knows(*addresses: str) -> None:
            wanted = [f"{known}:9002" for known in addresses]
            finding = asyncio.create_task(
                asyncio.to_thread(world.wait_endpoints, f"{cluster_name(pool_of.pool)}/picker", *wanted)
            )
            while not finding.done():
                await serves(1)
            await finding

        async with picker(world, pool_of.pool, address) as successor:
            successor.kill(signal.SIGSTOP)
            pool_of.place_picker(old.address, address, ending=[old.address])
            old.kill(signal.SIGTERM)
            await serves()
            successor.kill(signal.SIGCONT)
            await knows(old.address, address)
            await serves()
            pool_of.place_picker(address)
            await knows(address)
            # A second signal ends the drain.
            old.kill(signal.SIGTERM)
            assert await old.process.wait() == 0
            await serves()


async def test_a_picker_that_cannot_be_reached(world: World, mode: str) -> None:
    async with failing(world, mode) as pool_of:
        pool_of.place_picker(blackhole())
        await pool_of.wait_noticed()
        await assert_mode_holds(pool_of, mode)
        pool_of.place_picker(pool_of.picker.address)
        await assert_recovers(pool_of)


async def test_a_picker_that_refuses_tls(world: World, mode: str) -> None:
    async with failing(world, mode) as pool_of:
        # A listener that is no picker: it closes every connection.
        server = await asyncio.start_server(lambda _, writer: writer.close(), ipv4(8), 9002)
        async with server:
            pool_of.place_picker(ipv4(8))
            await pool_of.wait_noticed()
            await assert_mode_holds(pool_of, mode)
        pool_of.place_picker(pool_of.picker.address)
        await assert_recovers(pool_of)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_answers_that_stream_arrive_whole(world: World, mode: str, number: signal.Signals) -> None:
    async with failing(world, mode) as pool_of:
        for server in pool_of.servers.values():
            server.go_on.clear()
            server.arrived.clear()
        running = [asyncio.create_task(pool_of.stream()) for _ in range(8)]
        before = pool_of.served()
        await until(lambda: pool_of.served() >= before + 8 or all(task.done() for task in running), "all are streaming")
        pool_of.picker.kill(number)
        await pool_of.wait_noticed()
        for server in pool_of.servers.values():
            server.go_on.set()
        assert await asyncio.gather(*running) == [expected_events()] * 8
        if number is signal.SIGSTOP:
            pool_of.picker.kill(signal.SIGCONT)


async def test_a_pod_whose_server_died_is_passed_over(world: World) -> None:
    """The endpoint is listed and picked until the cluster notices: the request goes to another Pod."""
    async with failing(world, "FailClose") as pool_of:
        name = pool_of.name
        dead = world.add_pod(f"{name}-dead", name, ipv4(53))
        await asyncio.to_thread(world.wait_pool, pool_of.pool, *KEYS, f"{ipv4(53)}:8000")
        try:
            for _ in range(6):
                answers = await asyncio.gather(*(pool_of.client.ask(name) for _ in range(10)))
                assert Counter(status for status, _, _ in answers) == {200: 10}
        finally:
            world.api.delete(dead)


async def test_more_streams_than_envoys_own_limits(world: World) -> None:
    async with failing(world, "FailClose") as pool_of:
        count = 1300  # Envoy's own circuit breakers are at 1024
        for server in pool_of.servers.values():
            server.go_on.clear()
        before = pool_of.served()
        running: list[asyncio.Task[bytes]] = []

        def arrived() -> bool:
            return pool_of.served() >= before + len(running) or any(task.done() for task in running)

        # A few at a time: who asks for all at once measures how long the picks take.
        while len(running) < count:
            running += [asyncio.create_task(pool_of.stream()) for _ in range(50)]
            await until(arrived, "all are streaming")
        for server in pool_of.servers.values():
            server.go_on.set()
        answers = await asyncio.gather(*running)
        assert [answer for answer in answers if answer != expected_events()] == []
