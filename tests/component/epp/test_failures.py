"""What fails must fail as promised: no answer cut, no request hung, nothing left in the in-flight account."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ...hang import HANG_SECONDS
from ..envoy import start_envoy
from .configs import BOTH_WAYS_DUPLEX, LISTENER, picking_mode, pool_config
from .conftest import BOTH_TRANSPORTS, RunStack, Stack
from .picker import start_picker
from .servers import expected_events, model_servers

pytestmark = BOTH_TRANSPORTS

STREAM = {"model": "base", "prompt": "tell me", "stream": True}


async def open_stream(stack: Stack) -> aiohttp.ClientResponse:
    """A streaming answer whose first event has arrived."""
    answer = await stack.client.post(stack.url + "/v1/completions", json=STREAM)
    assert answer.status == 200, await answer.text()
    first = await answer.content.readuntil(b"\n\n")
    assert first == b"data: 0\n\n"
    return answer


def go_on(stack: Stack) -> None:
    for server in stack.servers:
        server.go_on.set()


ALL_MODES = [
    pytest.param({"mode": picking_mode(), "observe": True}, id="two filters"),
    pytest.param({"mode": picking_mode("BUFFERED"), "observe": True}, id="two filters, buffered"),
    pytest.param({"mode": BOTH_WAYS_DUPLEX, "observe": False}, id="one filter, duplex"),
]
TWO_FILTERS = [
    *ALL_MODES[:2],
    pytest.param({"mode": picking_mode("STREAMED"), "observe": True}, id="two filters, streamed"),
    pytest.param({"mode": picking_mode(), "observe": True, "say_observed": False}, id="two filters, not told so"),
]


@pytest.mark.parametrize("mode", ALL_MODES)
async def test_streams_pass_event_by_event_and_are_counted(run_stack: RunStack, mode: Any) -> None:
    async with run_stack(servers=2, **mode) as stack:
        answers = [await open_stream(stack) for _ in range(10)]
        assert await stack.picker.in_flight() == 10
        counted = sum(e["in_flight"] for e in (await stack.picker.endpoints()).values())
        assert counted == 10
        go_on(stack)
        for answer in answers:
            assert await answer.read() == expected_events().removeprefix(b"data: 0\n\n")
        await stack.picker.wait_in_flight(0)
        assert sum(e["in_flight"] for e in (await stack.picker.endpoints()).values()) == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM], ids=lambda s: s.name)
@pytest.mark.parametrize("fail_open", [False, True], ids=["FailClose", "FailOpen"])
@pytest.mark.parametrize("mode", TWO_FILTERS)
async def test_an_answer_that_streams_when_the_picker_dies_arrives_whole(
    run_stack: RunStack, mode: Any, fail_open: bool, how: signal.Signals
) -> None:
    async with run_stack(servers=2, fail_open=fail_open, flags=("--drain-timeout=100ms",), **mode) as stack:
        answers = [await open_stream(stack) for _ in range(5)]
        stack.picker.kill(how)
        if how is not signal.SIGSTOP:
            await stack.picker.process.wait()
        go_on(stack)
        for answer in answers:
            assert await answer.read() == expected_events().removeprefix(b"data: 0\n\n")


@pytest.mark.parametrize("mode", ALL_MODES)
async def test_fail_close_is_an_error_at_once(run_stack: RunStack, mode: Any) -> None:
    async with run_stack(servers=1, fail_open=False, **mode) as stack:
        stack.picker.kill()
        await stack.picker.process.wait()
        # Long before any time limit of Envoy's: those are longer than the client's.
        async with stack.client.post(stack.url + "/v1/completions", json={"model": "base", "prompt": "x"}) as answer:
            assert answer.status == 503
        assert stack.servers[0].requests == []


async def test_fail_open_serves_without_a_picker(run_stack: RunStack) -> None:
    async with run_stack(servers=1, fail_open=True, mode=picking_mode("BUFFERED")) as stack:
        stack.picker.kill()
        await stack.picker.process.wait()
        async with stack.client.post(stack.url + "/v1/completions", json={"model": "base", "prompt": "x"}) as answer:
            assert answer.status == 200


@pytest.mark.parametrize("mode", ALL_MODES)
async def test_clients_that_leave_are_not_counted(run_stack: RunStack, mode: Any) -> None:
    async with run_stack(servers=2, **mode) as stack:
        answers = [await open_stream(stack) for _ in range(6)]
        assert await stack.picker.in_flight() == 6
        for answer in answers:
            answer.close()
        await nothing_is_in_flight(stack)
        # Half a body, then gone: no pick was made.
        host, _, port = stack.url.removeprefix("http://").rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
        await writer.drain()
        writer.close()
        # Envoy has seen it go: the six before, and this one.
        await all_have_left(stack, 7)
        await nothing_is_in_flight(stack)


BODY = json.dumps(STREAM).encode()
LINE = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"
HEADERS = LINE + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(BODY)


@pytest.mark.parametrize("mode", ALL_MODES)
async def test_a_client_may_leave_in_any_phase(run_stack: RunStack, mode: Any) -> None:
    async with run_stack(servers=1, **mode) as stack:
        (server,) = stack.servers
        host, _, port = stack.url.removeprefix("http://").rpartition(":")
        opened = 0

        async def ask(content: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            nonlocal opened
            opened += 1
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(content)
            await writer.drain()
            return reader, writer

        async def nothing_is_left() -> None:
            nonlocal opened
            await all_have_left(stack, opened)
            opened += 1
            await nothing_is_in_flight(stack)

        # While it asks: within its headers, its body, and with all of it sent.
        for content in (LINE, HEADERS, HEADERS + BODY[:10], HEADERS + BODY):
            for _ in range(5):
                _, writer = await ask(content)
                writer.close()
        await nothing_is_left()
        # While the model server thinks.
        server.silent = True
        writers = [(await ask(HEADERS + BODY))[1] for _ in range(5)]
        await stack.picker.wait_in_flight(5)
        for writer in writers:
            writer.close()
        server.silent = False
        await nothing_is_left()
        # While the answer comes, and with one piece missing of it.
        for last in (b"data: 0\n\n", b"data: 19\n\n"):
            connections = [await ask(HEADERS + BODY) for _ in range(5)]
            if last != b"data: 0\n\n":
                server.go_on.set()
            for reader, writer in connections:
                await reader.readuntil(last)
                writer.close()
            await nothing_is_left()


async def all_have_left(stack: Stack, opened: int) -> None:
    """Until so many connections have come and gone, and the picker has heard of every request on them."""
    prefix = "http.pool.downstream_cx_"
    async with asyncio.timeout(HANG_SECONDS):
        while True:
            counted = await stack.envoy.counters(prefix)
            if (counted[f"{prefix}total"], counted[f"{prefix}active"]) == (opened, 0):
                break
            await asyncio.sleep(0.02)
    # On a connection of its own, but the picker is told of it after the others.
    async with stack.client.get(f"{stack.url}/v1/models", headers={"connection": "close"}) as answer:
        assert answer.status == 200


async def nothing_is_in_flight(stack: Stack) -> None:
    """Until no request is in flight in the picker's eyes, and no stream is open."""
    await stack.picker.wait_in_flight(0)
    assert sum(entry["in_flight"] for entry in (await stack.picker.endpoints()).values()) == 0
    for kind in ("pick", "observe"):
        name = f'headrace_epp_streams_inflight{{kind="{kind}"}}'
        async with asyncio.timeout(HANG_SECONDS):
            while await stack.picker.metric(name):  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.02)


async def test_a_pick_that_the_gateway_does_not_follow_is_counted_where_it_went(
    run_stack: RunStack, tmp_path: Path
) -> None:
    async with AsyncExitStack() as hold:
        # The picker knows a server that the gateway does not: override_host falls back without a word.
        strangers = await hold.enter_async_context(model_servers(1))
        known = await hold.enter_async_context(model_servers(1))
        strange, real = strangers[0].key, known[0].key
        picker = await hold.enter_async_context(start_picker([strange], tmp_path))
        config = pool_config(epp_port=picker.grpc_port, endpoints=[real], mode=picking_mode(), observe=True)
        envoy = await hold.enter_async_context(start_envoy(config, tmp_path))
        url = f"http://127.0.0.1:{await envoy.listener_port(LISTENER)}/v1/completions"
        client = await hold.enter_async_context(aiohttp.ClientSession())
        answer = await client.post(url, json=STREAM)
        await answer.content.readuntil(b"\n\n")
        # An observer is told a little later than the client.
        async with asyncio.timeout(HANG_SECONDS):
            while await picker.metric("headrace_epp_served_elsewhere_total") != 1:  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.02)
        assert await picker.in_flight() == 1
        assert (await picker.endpoints())[strange]["in_flight"] == 0
        known[0].go_on.set()
        await answer.read()
        await picker.wait_in_flight(0)


async def test_a_server_without_metrics_is_used_by_its_in_flight_count(run_stack: RunStack) -> None:
    async with run_stack(servers=3, flags=("--metrics-staleness-threshold=100ms",)) as stack:
        for server in stack.servers:
            server.metrics_status = 500
        async with asyncio.timeout(HANG_SECONDS):
            while any(e["metrics_fresh"] for e in (await stack.picker.endpoints()).values()):
                async with stack.client.post(stack.url + "/v1/completions", json={"model": "b"}) as answer:
                    assert answer.status == 200
        await stack.picker.wait_in_flight(0)
        answers = [await open_stream(stack) for _ in range(9)]
        counts = [e["in_flight"] for e in (await stack.picker.endpoints()).values()]
        assert counts == [3, 3, 3]
        assert {e["metrics_error"] for e in (await stack.picker.endpoints()).values()} == {"status 500"}
        go_on(stack)
        for answer in answers:
            await answer.read()


async def test_a_terminated_picker_serves_on_while_it_drains(run_stack: RunStack) -> None:
    async with run_stack(servers=1, flags=("--drain-delay=1h",)) as stack:
        assert (await stack.picker.get("/readyz"))[0] == 200
        stack.picker.kill(signal.SIGTERM)
        async with asyncio.timeout(HANG_SECONDS):
            while (await stack.picker.get("/readyz"))[0] == 200:
                pass
        async with stack.client.post(stack.url + "/v1/completions", json={"model": "base"}) as answer:
            assert answer.status == 200
        # A second signal ends the drain.
        stack.picker.kill(signal.SIGTERM)
        async with asyncio.timeout(HANG_SECONDS):
            assert await stack.picker.process.wait() == 0


async def test_many_streams_at_once(run_stack: RunStack) -> None:
    async with run_stack(servers=2) as stack:
        count = 200
        go_on(stack)

        async def one() -> bytes:
            async with stack.client.post(stack.url + "/v1/completions", json=STREAM) as answer:
                assert answer.status == 200
                return await answer.read()

        assert set(await asyncio.gather(*(one() for _ in range(count)))) == {expected_events()}
        await stack.picker.wait_in_flight(0)
        shares = [sum(json.dumps(r) != "" for r in server.requests) for server in stack.servers]
        assert sum(shares) == count
        assert min(shares) > count / 4
