"""Two pickers that both serve: one view of the load, wherever picks and observations land; none waits for the other."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import grpc
import grpc.aio
import pytest

from headrace.replicas import peers_pb2 as messages

from ...certificates import Authority
from ...hang import HANG_SECONDS
from ...ports import free_port
from ..envoy import Envoy, start_envoy
from .configs import LISTENER, picking_mode, pool_config
from .picker import PickerProcess, start_picker
from .servers import ModelServer, expected_events, model_servers

NAME = "replicas.test"
STREAM = {"model": "base", "prompt": "tell me", "stream": True}
FOLLOW = "/headrace.peers.Peers/Follow"


@dataclass
class Fleet:
    """Two pickers of one pool behind one Envoy, which asks either."""

    servers: list[ModelServer]
    pickers: list[PickerProcess]
    ports: list[int]
    url: str
    # The same pool behind an Envoy that asks the first picker alone.
    first_url: str
    client: aiohttp.ClientSession
    authority: Authority

    async def open_stream(self, url: str = "") -> aiohttp.ClientResponse:
        """A streaming answer whose first event has arrived."""
        answer = await self.client.post((url or self.url) + "/v1/completions", json=STREAM)
        assert answer.status == 200, await answer.text()
        assert await answer.content.readuntil(b"\n\n") == b"data: 0\n\n"
        return answer

    def go_on(self) -> None:
        for server in self.servers:
            server.go_on.set()


async def until(condition: Callable[[], Awaitable[bool]], seen: Callable[[], Awaitable[object]]) -> None:
    """Until it holds. Raises AssertionError with what was seen last."""
    try:
        async with asyncio.timeout(HANG_SECONDS):
            while not await condition():  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"never as wanted: {await seen()}") from None


async def until_loads(fleet: Fleet, total: int) -> None:
    """Until both pickers see so many requests in flight, at the same endpoints."""

    async def loads() -> list[dict[str, int]]:
        return [await picker.load() for picker in fleet.pickers]

    async def agreed() -> bool:
        one, other = await loads()
        return one == other and sum(one.values()) == total

    await until(agreed, loads)


async def until_owned(fleet: Fleet, total: int) -> list[int]:
    """How many requests each picker counts as its own, once each of `total` is one picker's alone: one that is observed
    elsewhere than it was picked is handed over, and both count it meanwhile."""
    owned: list[int] = []

    async def settled() -> bool:
        owned[:] = [await picker.in_flight() for picker in fleet.pickers]
        pages = [await picker.peers() for picker in fleet.pickers]
        return sum(owned) == total and [page["peers"][0]["in_flight"] for page in pages] == owned[::-1]

    async def seen() -> object:
        return owned, [await picker.peers() for picker in fleet.pickers]

    await until(settled, seen)
    return owned


async def until_metric(picker: PickerProcess, sample: str, value: float) -> None:
    """Until a sample of /metrics has this value."""

    async def has() -> bool:
        return await picker.metric(sample) == value

    async def seen() -> object:
        return await picker.metric(sample), await picker.peers()

    await until(has, seen)


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    authority = Authority("peers")
    certificates = authority.issue(NAME, peer=True).write(tmp_path / "peers", authority.certificate)
    ports = [free_port(), free_port()]
    async with contextlib.AsyncExitStack() as stack:
        servers = await stack.enter_async_context(model_servers(3))
        keys = [server.key for server in servers]

        def picker(number: int) -> AbstractAsyncContextManager[PickerProcess]:
            flags = (
                f"--peers=127.0.0.1:{ports[1 - number]}",
                f"--peer-port={ports[number]}",
                f"--peer-cert-path={certificates}",
                "--drain-timeout=100ms",
            )
            return start_picker(keys, tmp_path, *flags, name=f"epp-{number}")

        def envoy(name: str, *asked: PickerProcess) -> AbstractAsyncContextManager[Envoy]:
            grpc_ports = [picker.grpc_port for picker in asked]
            config = pool_config(epp_port=grpc_ports, endpoints=keys, mode=picking_mode(), observe=True)
            return start_envoy(config, tmp_path, name=name)

        enter = stack.enter_async_context
        pickers = list(await asyncio.gather(enter(picker(0)), enter(picker(1))))
        envoys = await asyncio.gather(enter(envoy("both", *pickers)), enter(envoy("first", pickers[0])))
        urls = [f"http://127.0.0.1:{await started.listener_port(LISTENER)}" for started in envoys]
        connector = aiohttp.TCPConnector(limit=0)
        client = await stack.enter_async_context(
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=HANG_SECONDS))
        )
        found = Fleet(servers, pickers, ports, urls[0], urls[1], client, authority)
        for started in pickers:
            await until_metric(started, "headrace_epp_peers", 1)
            await until_metric(started, "headrace_epp_peer_followers", 1)
        yield found


async def test_both_see_every_request_whoever_picked_or_observes_it(fleet: Fleet) -> None:
    count = 30
    answers = [await fleet.open_stream() for _ in range(count)]
    await until_loads(fleet, count)
    assert min(await until_owned(fleet, count)) > 0
    fleet.go_on()
    for answer in answers:
        assert await answer.read() == expected_events().removeprefix(b"data: 0\n\n")
    await until_loads(fleet, 0)
    for picker in fleet.pickers:
        # No pick was left to the clock.
        assert await picker.metric("headrace_epp_unobserved_requests_total") == 0
        await picker.wait_in_flight(0)


async def test_the_load_views_agree_whenever_a_load_that_comes_and_goes_is_held(fleet: Fleet) -> None:
    clients, rounds, done = 40, 5, False

    async def client() -> None:
        while not done:
            async with fleet.client.post(fleet.url + "/v1/completions", json=STREAM) as answer:
                assert answer.status == 200
                await answer.read()

    def served() -> int:
        return sum(len(server.requests) for server in fleet.servers)

    async def came_and_went(wanted: int) -> bool:
        return served() >= wanted

    async def looked() -> object:
        return served(), [await picker.load() for picker in fleet.pickers]

    async with asyncio.TaskGroup() as tasks:
        for _ in range(clients):
            tasks.create_task(client())
        for number in range(1, rounds + 1):
            # Every answer stops after its first event: each client has one request on its way.
            await until_loads(fleet, clients)
            fleet.go_on()
            if number == rounds:
                done = True
                break
            wanted = served() + 5 * clients
            await until(lambda wanted=wanted: came_and_went(wanted), looked)
            for server in fleet.servers:
                server.go_on.clear()
    await until_loads(fleet, 0)


async def test_a_killed_picker_cuts_no_stream_of_the_other_and_its_counts_go(fleet: Fleet) -> None:
    answers = [await fleet.open_stream() for _ in range(20)]
    await until_loads(fleet, 20)
    first, second = fleet.pickers
    own, _ = await until_owned(fleet, 20)
    assert 0 < own < 20
    second.kill()
    await second.process.wait()

    async def only_its_own() -> bool:
        return sum((await first.load()).values()) == own

    await until(only_its_own, first.peers)
    await until_metric(first, "headrace_epp_peers", 0)
    fleet.go_on()
    for answer in answers:
        assert await answer.read() == expected_events().removeprefix(b"data: 0\n\n")
    await first.wait_in_flight(0)
    async with fleet.client.post(fleet.first_url + "/v1/completions", json={"model": "base"}) as answer:
        assert answer.status == 200


async def test_no_pick_waits_for_a_stopped_picker_and_it_catches_up(fleet: Fleet) -> None:
    first, second = fleet.pickers
    second.kill(signal.SIGSTOP)
    answers = [await fleet.open_stream(fleet.first_url) for _ in range(12)]
    for _ in range(50):
        async with fleet.client.post(fleet.first_url + "/v1/completions", json={"model": "base"}) as answer:
            assert answer.status == 200
    assert await first.metric('headrace_epp_failure_mode_answers_total{mode="FailClose",cause="deadline"}') == 0
    await until_metric(first, "headrace_epp_peers", 0)
    async with fleet.client.post(fleet.first_url + "/v1/completions", json={"model": "base"}) as answer:
        assert answer.status == 200
    second.kill(signal.SIGCONT)
    for picker in fleet.pickers:
        await until_metric(picker, "headrace_epp_peers", 1)
    await until_loads(fleet, 12)
    fleet.go_on()
    for answer in answers:
        await answer.read()
    await until_loads(fleet, 0)


async def test_only_replicas_of_the_same_pool_are_told_anything(fleet: Fleet) -> None:
    stranger = Authority("strangers")
    pool = messages.FollowRequest(replica="x", pool="default/static")
    cases = [
        (fleet.authority.issue(NAME, peer=True), pool, None),
        (fleet.authority.issue("another.test", peer=True), pool, grpc.StatusCode.PERMISSION_DENIED),
        (stranger.issue(NAME, peer=True), pool, grpc.StatusCode.UNAVAILABLE),
        (None, pool, grpc.StatusCode.UNAVAILABLE),
        (
            fleet.authority.issue(NAME, peer=True),
            messages.FollowRequest(replica="x", pool="default/other"),
            grpc.StatusCode.FAILED_PRECONDITION,
        ),
    ]
    for pair, request, refused in cases:
        credentials = grpc.ssl_channel_credentials(
            fleet.authority.certificate, pair.key if pair else None, pair.certificate if pair else None
        )
        options = [("grpc.ssl_target_name_override", NAME)]
        address = f"127.0.0.1:{fleet.ports[0]}"
        async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
            call = channel.unary_stream(FOLLOW)(request.SerializeToString(), timeout=HANG_SECONDS)
            if refused is None:
                assert messages.Update.FromString(await call.read()).reset
                call.cancel()
                continue
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is refused


async def test_replicas_are_found_by_name_and_nobody_follows_itself(tmp_path: Path) -> None:
    authority = Authority("peers")
    certificates = authority.issue(NAME, peer=True).write(tmp_path / "peers", authority.certificate)
    # A name that leads to ourselves alone, as a headless Service does at first.
    flags = ("--peer-service=127.0.0.1", f"--peer-port={free_port()}", f"--peer-cert-path={certificates}")
    async with start_picker(["127.0.0.1:1"], tmp_path, *flags) as picker:

        async def met() -> bool:
            return any(peer["ourselves"] for peer in (await picker.peers())["peers"])

        await until(met, picker.peers)
        assert await picker.metric("headrace_epp_peers") == 0
        await until_metric(picker, "headrace_epp_peer_followers", 0)
