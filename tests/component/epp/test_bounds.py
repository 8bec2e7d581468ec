"""A picker with a Pod's memory, and what strangers can send it: it lives, and nobody else's request is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from headrace.core.bounded_json import MAX_NODES, MAX_VALUES
from tests.hang import HANG_SECONDS
from tests.list_watch import ListWatchServer
from tests.malformed import DIGITS, pod
from tests.memory import memory_group

from ..ext_proc import DESTINATION, ask, channel
from .picker import start_picker

MIB = 1 << 20
# The limit that role inference_pool gives a picker.
LIMIT = 1024 * MIB
POOLS = "/apis/inference.networking.k8s.io/v1/namespaces/n/inferencepools"
PODS = "/api/v1/namespaces/n/pods"
GOOD_PAGE = b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n"
LONG_LINE = b'vllm:num_requests_running{model_name="' + b"x" * (8 * MIB) + b'"} 1\n'
CHAT, OTHER = "/v1/chat/completions", "/v1/completions"


def repeated(piece: bytes, size: int) -> bytes:
    return piece * (size // len(piece))


# What is sent, and the status of the answer.
BODIES: dict[str, tuple[Callable[[], bytes], str, int]] = {
    "nested messages": (lambda: b'{"messages":[' + repeated(b'{"content":[[],[]]},', 6 * MIB) + b"0]}", CHAT, 400),
    "objects": (lambda: b'{"x":[' + repeated(b'{"":0},', 60 * MIB) + b"0]}", CHAT, 200),
    "as many values as are read": (lambda: b'{"prompt":[' + b"1e9," * (MAX_VALUES - 9) + b"1]}", OTHER, 200),
    "as many strings as are read": (lambda: b'{"prompt":[' + '"ā",'.encode() * (MAX_NODES - 9) + b'"x"]}', OTHER, 200),
    "deep": (lambda: b'{"x":' + b"[" * MIB + b"]" * MIB + b"}", OTHER, 400),
    "more fields": (lambda: b"{" + b",".join(b'"%x":0' % n for n in range(600_000)) + b"}", OTHER, 400),
    "prose": (lambda: json.dumps({"prompt": 'and, "so" on, [{' * 350_000}).encode(), OTHER, 200),
}


@contextlib.asynccontextmanager
async def model_servers() -> AsyncIterator[int]:
    """Metrics pages on one port of three addresses: of 127.0.0.3 one long line."""

    async def page(request: web.Request) -> web.Response:
        assert request.transport is not None
        host = request.transport.get_extra_info("sockname")[0]
        return web.Response(body=LONG_LINE if host == "127.0.0.3" else GOOD_PAGE)

    app = web.Application()
    app.router.add_get("/metrics", page)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = int(runner.addresses[0][1])
        for address in ("127.0.0.2", "127.0.0.3"):
            await web.TCPSite(runner, address, port).start()
        yield port
    finally:
        await runner.cleanup()


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[tuple[ListWatchServer, Path]]:
    server = ListWatchServer()
    kubeconfig = await server.start(tmp_path)
    yield server, kubeconfig
    await server.close()


async def test_the_picker_outlives_what_strangers_send(api: tuple[ListWatchServer, Path], tmp_path: Path) -> None:
    server, kubeconfig = api
    source = ("--pool-name=p", "--pool-namespace=n", f"--kubeconfig={kubeconfig}")
    async with model_servers() as port:
        server.objects[POOLS] = [
            {
                "metadata": {"name": "p", "namespace": "n", "resourceVersion": "1"},
                "spec": {"selector": {"matchLabels": {"app": "m"}}, "targetPorts": [{"number": port}]},
            }
        ]
        server.objects[PODS] = [pod("a", "127.0.0.1"), pod("long", "127.0.0.3")]
        with memory_group(LIMIT) as group:
            async with start_picker((), tmp_path, source=source, prefix=group.prefix) as picker:
                async with asyncio.timeout(HANG_SECONDS):
                    await picked_ready(picker)
                    usual = group.peak()
                    async with channel(picker.grpc_port) as strangers, channel(picker.grpc_port) as users:
                        done = asyncio.Event()
                        ordinary = asyncio.create_task(ask_ordinarily(users, done))
                        try:
                            await server.watched(PODS)
                            broken = pod("digits", "127.0.0.9", **{"inference.networking.k8s.io/active-ports": DIGITS})
                            server.send(PODS, server.change(PODS, "ADDED", broken), b"null")
                            for make, path, status in BODIES.values():
                                body = make()
                                answers = await asyncio.gather(*(ask(strangers, path, body) for _ in range(2)))
                                assert [answer[0] for answer in answers] == [status] * 2
                            await server.watched(PODS, times=2)
                            server.send(PODS, server.change(PODS, "ADDED", pod("b", "127.0.0.2")))
                            while f"127.0.0.2:{port}" not in await picker.endpoints():  # noqa: ASYNC110
                                await asyncio.sleep(0.05)
                        finally:
                            done.set()
                            lost, answered = await ordinary
                    assert (lost, answered > 0) == ([], True)
                    assert picker.process.returncode is None
                    known = await picker.endpoints()
                    assert set(known) == {f"127.0.0.{number}:{port}" for number in (1, 2, 3)}
                    assert "65536" in known[f"127.0.0.3:{port}"]["metrics_error"]
                    assert await picker.metric('headrace_epp_malformed_objects_total{kind="pods"}') == 1
                    print(f"peak {group.peak() >> 20} MiB, {usual >> 20} MiB at the start")


async def picked_ready(picker: Any) -> None:
    while (await picker.get("/readyz"))[0] != 200:  # noqa: ASYNC110 (another process)
        await asyncio.sleep(0.05)


async def ask_ordinarily(connection: Any, done: asyncio.Event) -> tuple[list[object], int]:
    """20 requests a second until `done`; those that were not picked for, and how many were."""
    body = json.dumps({"model": "m", "prompt": "hello " * 100}).encode()
    asked: list[asyncio.Task[tuple[int, dict[str, str]]]] = []
    while not done.is_set():
        asked.append(asyncio.create_task(ask(connection, OTHER, body)))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await done.wait()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    lost = [answer for answer in answers if isinstance(answer, BaseException) or DESTINATION not in answer[1]]
    return lost, len(answers) - len(lost)


async def test_a_long_body_is_refused_where_it_could_have_to_be_rewritten(
    api: tuple[ListWatchServer, Path], tmp_path: Path
) -> None:
    server, kubeconfig = api
    server.objects[POOLS] = [
        {
            "metadata": {"name": "p", "namespace": "n", "resourceVersion": "1"},
            "spec": {"selector": {"matchLabels": {"app": "m"}}, "targetPorts": [{"number": 8000}]},
        }
    ]
    server.objects[PODS] = [pod("a", "127.0.0.1")]
    rewrites = "/apis/inference.networking.x-k8s.io/v1alpha2/namespaces/n/inferencemodelrewrites"
    server.objects[rewrites] = []
    source = ("--pool-name=p", "--pool-namespace=n", f"--kubeconfig={kubeconfig}", "--max-parsed-body-bytes=1000")
    async with start_picker((), tmp_path, source=source) as picker, asyncio.timeout(HANG_SECONDS):
        await picked_ready(picker)
        body = json.dumps({"model": "m", "prompt": "x" * 1000}).encode()
        async with channel(picker.grpc_port) as connection:
            assert (await ask(connection, OTHER, body))[0] == 200
            rewrite = {
                "metadata": {"name": "r", "namespace": "n"},
                "spec": {"poolRef": {"name": "p"}, "rules": [{"targets": [{"modelRewrite": "t"}]}]},
            }
            await server.watched(rewrites)
            server.send(rewrites, server.change(rewrites, "ADDED", rewrite))
            await eventually_refused(connection, body)
            assert (await ask(connection, OTHER, b'{"model":"m"}'))[0] == 200


async def eventually_refused(connection: Any, body: bytes) -> None:
    while (await ask(connection, OTHER, body))[0] != 413:  # noqa: ASYNC110 (another process)
        await asyncio.sleep(0.05)
