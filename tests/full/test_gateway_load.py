"""The gateway under more than a component test gives it: many streams at once, and a cluster that never rests."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from ..component.envoy import Envoy
from ..component.epp.picker import start_picker
from ..component.epp.servers import expected_events, model_servers
from ..component.gateway import objects
from ..component.gateway.network import ipv4
from ..component.gateway.objects import backend, pool, route
from ..component.gateway.pools import running_pools
from ..component.gateway.stack import Cluster, pods, ports, run_stack
from ..component.gateway.test_changes import failures, load
from ..component.gateway.world import World, running_world
from ..component.gateway.world import model_servers as pod_servers
from ..unit.gateway import objects as o
from .files import all_open_files

STREAMS = 5000
CHANGES = 500
CHURN_SECONDS = 60.0
RATE = 200


@pytest.fixture(scope="module")
def world(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world of the module's own."""
    with running_world(repository, tmp_path_factory.mktemp("world")) as running:
        yield running


@pytest.fixture
def many_files() -> Iterator[None]:
    """A connection is two files here: as many as the machine lets us have."""
    with all_open_files() as allowed:
        if allowed < 3 * STREAMS:
            pytest.skip(f"the machine allows {allowed} open files, {3 * STREAMS} are needed")
        yield


@pytest.mark.parametrize("failure_mode", ["FailClose", "FailOpen"])
async def test_five_thousand_streams_at_once(tmp_path: Path, many_files: None, failure_mode: str) -> None:
    async with model_servers(2) as servers, start_picker([server.key for server in servers], tmp_path) as picker:
        keys = [server.key for server in servers]
        cluster = Cluster(verify=True)
        cluster.update(
            [o.pool("a", picker="epp-a", ports=ports(keys), failure_mode=failure_mode)],
            http_routes=[o.route("r", [o.pool_ref("a")])],
            services=[o.service("epp-a", appProtocol="kubernetes.io/h2c")],
            endpoint_slices=[o.slice_of("epp-a", {"127.0.0.1": {"ready": True}}, port=picker.grpc_port)],
            pods=pods(keys, "a"),
        )
        async with run_stack(cluster, [o.xds_route("httproute/default/r/rule/0/match/0/*")], tmp_path) as stack:
            body = b'{"model":"m","prompt":"hello","stream":true}'
            unlimited = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(connector=unlimited, timeout=aiohttp.ClientTimeout(total=300)) as session:
                first = asyncio.Semaphore(50)  # arriving, at a time

                async def stream() -> bytes:
                    await first.acquire()
                    waiting = True
                    try:
                        headers = {"content-type": "application/json"}
                        async with session.post(f"{stack.url}/v1/completions", data=body, headers=headers) as answer:
                            if answer.status != 200:
                                return str(answer.status).encode()
                            begun = await answer.content.readany()
                            first.release()
                            waiting = False
                            return begun + await answer.read()
                    finally:
                        if waiting:
                            first.release()

                running = [asyncio.create_task(stream()) for _ in range(STREAMS)]
                started = time.monotonic()
                while sum(len(server.requests) for server in servers) < STREAMS:
                    assert time.monotonic() - started < 240
                    early = Counter(_outcome(task) for task in running if task.done())
                    assert not early, f"{early} {await _counted(stack.envoy)}"
                    await asyncio.sleep(0.2)
                print(f"{STREAMS} streams at once after {time.monotonic() - started:.0f} s")
                for server in servers:
                    server.go_on.set()
                await asyncio.wait(running)
                answers = Counter(_outcome(task) for task in running)
            assert answers == {expected_events(): STREAMS}, str(await _counted(stack.envoy))
            counters = await stack.envoy.counters("cluster.inferencepool/")
            assert not {name: value for name, value in counters.items() if "overflow" in name and value}


def _outcome(task: asyncio.Task[bytes]) -> bytes:
    """What a stream came to: the whole answer, or how it failed, in few words."""
    error = task.exception()
    return task.result() if error is None else f"{type(error).__name__}: {error}"[:80].encode()


async def _counted(envoy: Envoy) -> dict[str, int]:
    """Envoy's counters of what can go wrong."""
    counters = await envoy.counters("")
    words = ("reset", "timeout", "fail", "error", "overflow", "destroy", "unhealthy", "ext_proc", "_5xx", "goaway")
    return {name: value for name, value in counters.items() if value and any(word in name for word in words)}


async def test_churn_of_everything_costs_no_request(world: World) -> None:
    """500 changes of Pods, routes and pools in 60 s, under 200 requests a second."""
    async with running_pools(world) as pools:
        await pools.apply_route("storm", {"backendRefs": [backend(pools.a, 70), backend(pools.b, 30)]})
        changes = 0
        started = time.monotonic()

        async def change(action: object, *arguments: object, **more: object) -> None:
            nonlocal changes
            await asyncio.to_thread(action, *arguments, **more)  # type: ignore[arg-type]
            changes += 1
            due = started + changes * CHURN_SECONDS / CHANGES
            await asyncio.sleep(max(0.0, due - time.monotonic()))

        async with (
            pod_servers(*(ipv4(host) for host in range(100, 106))),
            load(pools.client, "storm", per_second=RATE, at_once=5 * RATE) as seen,
        ):
            started = time.monotonic()
            turn = 0
            while changes < CHANGES:
                pod = objects.pod(f"storm-{turn % 6}", "a" if turn % 2 else "b")
                address = ipv4(100 + turn % 6)
                extra = pool(f"storm-{turn % 4}", app="a")
                await change(world.api.apply, pod)
                await change(world.set_pod, pod, address, ready=True)
                weights = (70 + turn % 3, 30 - turn % 3)
                refs = [backend(pools.a, weights[0]), backend(pools.b, weights[1])]
                await change(world.api.apply, route("storm", {"backendRefs": refs}))
                await change(world.api.apply, extra)
                await change(world.api.apply, route(f"storm-{turn % 5}", {"backendRefs": [backend(extra)]}))
                labelled = {**pools.b, "metadata": {**pools.b["metadata"], "annotations": {"turn": str(turn)}}}
                await change(world.api.apply, labelled)
                await change(world.api.delete, route(f"storm-{(turn + 2) % 5}", {"backendRefs": [backend(extra)]}))
                await change(world.api.delete, pool(f"storm-{(turn + 1) % 4}"))
                # As a cluster does it: first not ready, then gone.
                await change(world.set_pod, pod, address, ready=False)
                await change(world.api.delete, pod)
                turn += 1
            seconds = time.monotonic() - started
            await asyncio.sleep(1)
        print(f"{changes} changes in {seconds:.0f} s, answers: {dict(seen)}")
        assert failures(seen) == {}, world.picker_counters(pools.a)
        assert seen["storm 200"] > 0.8 * RATE * CHURN_SECONDS
        assert seconds < 1.5 * CHURN_SECONDS
