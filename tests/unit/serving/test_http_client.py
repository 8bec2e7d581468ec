"""The HTTP client's bounds, against a real server on loopback."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from headrace.config.limits import STEP_BYTES
from headrace.serving.http_client import HttpClient, HttpError, pieces

from ...hang import HANG_SECONDS


@asynccontextmanager
async def server(handler: object) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/", handler)  # type: ignore[arg-type]
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


async def test_an_answer_and_what_was_asked() -> None:
    async def handler(request: web.Request) -> web.Response:
        assert request.headers["accept-encoding"] == "identity"
        return web.Response(status=400, body=await request.read() + request.headers["x-a"].encode())

    async with server(handler) as url, HttpClient() as http:
        asked = http.read("POST", url, max_bytes=10, seconds=HANG_SECONDS, data=b"body", headers={"x-a": "1"})
        assert await asked == (400, b"body1")


async def test_no_more_than_so_many_bytes_are_taken() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=b"x" * 11)

    async with server(handler) as url, HttpClient() as http:
        with pytest.raises(HttpError, match="over 10 bytes"):
            await http.read("GET", url, max_bytes=10, seconds=HANG_SECONDS)
        assert await http.read("GET", url, max_bytes=11, seconds=HANG_SECONDS) == (200, b"x" * 11)


async def test_what_is_compressed_is_not_unpacked() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=gzip.compress(b"x" * (1 << 20)), headers={"content-encoding": "gzip"})

    async with server(handler) as url, HttpClient() as http:
        with pytest.raises(HttpError, match="compressed"):
            await http.read("GET", url, max_bytes=1 << 30, seconds=HANG_SECONDS)


@pytest.mark.parametrize("encoding", ["", "identity", "Identity"])
async def test_an_encoding_that_is_none_is_read(encoding: str) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=b"x", headers={"content-encoding": encoding})

    async with server(handler) as url, HttpClient() as http:
        assert await http.read("GET", url, max_bytes=1, seconds=HANG_SECONDS) == (200, b"x")


async def test_a_long_answer_comes_in_steps() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=b"x" * (1 << 20))

    async with server(handler) as url, HttpClient() as http, http.open("GET", url, seconds=HANG_SECONDS) as answer:
        sizes = [len(piece) async for piece in pieces(answer)]
    assert sum(sizes) == 1 << 20
    assert max(sizes) <= STEP_BYTES


async def test_redirects_are_not_followed() -> None:
    asked = 0

    async def handler(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(status=302, headers={"location": "/"})

    async with server(handler) as url, HttpClient() as http:
        assert (await http.read("GET", url, max_bytes=10, seconds=HANG_SECONDS))[0] == 302
    assert asked == 1


async def test_an_answer_that_never_ends_is_over_in_time() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b"x")
        await asyncio.sleep(HANG_SECONDS)
        return answer

    async with server(handler) as url, HttpClient() as http:
        with pytest.raises(HttpError, match="timed out"):
            await http.read("GET", url, max_bytes=10, seconds=0.2)


async def test_nobody_answers() -> None:
    async with HttpClient() as http:
        with pytest.raises(HttpError, match="ClientConnectorError"):
            await http.read("GET", "http://127.0.0.1:1/", max_bytes=10, seconds=HANG_SECONDS)
        with pytest.raises(HttpError):
            await http.read("GET", "no url", max_bytes=10, seconds=HANG_SECONDS)


async def test_a_connection_with_an_unread_answer_is_not_used_again() -> None:
    peers: list[object] = []

    async def handler(request: web.Request) -> web.Response:
        assert request.transport is not None
        peers.append(request.transport.get_extra_info("peername"))
        return web.Response(body=b"x" * (1 << 20))

    async with server(handler) as url, HttpClient(per_host=1) as http:
        for enough in (True, False, False):
            async with http.open("GET", url, seconds=HANG_SECONDS) as answer:
                async for _ in pieces(answer):
                    if enough:
                        break
    assert peers[0] != peers[1]
    assert peers[1] == peers[2]
