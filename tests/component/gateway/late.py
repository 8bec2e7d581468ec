"""A proxy to the API server whose watch events come late: informers that are behind, as those of a busy node are."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

_HOP_HEADERS = ("Transfer-Encoding", "Content-Length", "Content-Encoding", "Connection")


class LateApi:
    """Listens at `port` of 127.0.0.1. What is read of a watch is passed on `seconds` later; all else at once."""

    def __init__(self, kubeconfig: Path) -> None:
        self.seconds = 0.0
        self.port = 0
        self._config = json.loads(kubeconfig.read_text())
        self._server = self._config["clusters"][0]["cluster"]["server"]
        self._listening = threading.Event()
        self._stop: asyncio.Event
        self._loop: asyncio.AbstractEventLoop

    def kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig that leads through the proxy."""
        cluster = {**self._config["clusters"][0], "cluster": {"server": f"http://127.0.0.1:{self.port}"}}
        path.write_text(json.dumps({**self._config, "clusters": [cluster]}))
        return path

    @contextmanager
    def running(self) -> Iterator[LateApi]:
        """In a thread of its own: tests block theirs."""
        thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="late API")
        thread.start()
        assert self._listening.wait(10)
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._stop.set)
            thread.join(20)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        timeout = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(ssl=False, limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
            self._session = session
            app = web.Application(client_max_size=1 << 26)
            app.router.add_route("*", "/{path:.*}", self._forward)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.port = int(runner.addresses[0][1])
            self._listening.set()
            await self._stop.wait()
            await runner.cleanup()

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name not in ("Host", *_HOP_HEADERS)}
        url, body = f"{self._server}{request.raw_path}", await request.read()
        async with self._session.request(request.method, url, data=body, headers=headers) as answer:
            kept = {name: value for name, value in answer.headers.items() if name not in _HOP_HEADERS}
            if request.query.get("watch") != "true":
                return web.Response(status=answer.status, body=await answer.read(), headers=kept)
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
            passing = asyncio.create_task(self._pass_on(held, response))
            try:
                async for chunk in answer.content.iter_any():
                    held.put_nowait((self._loop.time() + self.seconds, chunk))
                await held.join()
            finally:
                passing.cancel()
                with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                    await passing
            return response

    async def _pass_on(self, held: asyncio.Queue[tuple[float, bytes]], response: web.StreamResponse) -> None:
        while True:
            due, chunk = await held.get()
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            await response.write(chunk)
            held.task_done()
