"""Small model servers with real sockets, which say what they were sent and stream at the test's word."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from aiohttp import web

_PAGE = """\
vllm:num_requests_running{{engine="0",model_name="base"}} {running}
vllm:num_requests_waiting{{engine="0",model_name="base"}} {waiting}
vllm:kv_cache_usage_perc{{engine="0",model_name="base"}} {kv_usage}
"""


@dataclass
class ModelServer:
    """One server. Requests are answered with what was received, as JSON; with `"stream": true`, as events.

    A stream's events after the first wait for `go_on`, so that tests decide what happens in between; while `silent`,
    all of every answer waits."""

    key: str = ""
    waiting: int = 0
    running: int = 0
    kv_usage: float = 0.0
    metrics_status: int = 200
    requests: list[dict[str, object]] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    events: int = 20
    silent: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def metrics(self, _: web.Request) -> web.Response:
        page = _PAGE.format(running=self.running, waiting=self.waiting, kv_usage=self.kv_usage)
        return web.Response(text=page, status=self.metrics_status)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        seen: dict[str, object] = {
            "server": self.key,
            "path": request.path_qs,
            "headers": sorted((name.lower(), value) for name, value in request.headers.items()),
            "body_bytes": len(body),
            "body_sha256": hashlib.sha256(body).hexdigest(),
        }
        self.requests.append(seen)
        self.arrived.set()
        if self.silent:
            await self.go_on.wait()
        try:
            streaming = bool(json.loads(body).get("stream")) if body[:1] == b"{" and len(body) < 10_000 else False
        except ValueError:
            streaming = False
        if not streaming:
            return web.json_response(seen)
        answer = web.StreamResponse(headers={"content-type": "text/event-stream", "x-server": self.key})
        try:
            await answer.prepare(request)
            for number in range(self.events):
                await answer.write(f"data: {number}\n\n".encode())
                if number == 0:
                    await self.go_on.wait()
            await answer.write(b"data: [DONE]\n\n")
            await answer.write_eof()
        except (ConnectionError, asyncio.CancelledError):
            self.gone.set()
            raise
        return answer


def expected_events(count: int = 20) -> bytes:
    """The whole of a stream."""
    return b"".join(f"data: {number}\n\n".encode() for number in range(count)) + b"data: [DONE]\n\n"


@contextlib.asynccontextmanager
async def model_servers(count: int) -> AsyncIterator[list[ModelServer]]:
    """That many servers on loopback."""
    async with contextlib.AsyncExitStack() as stack:
        servers = []
        for _ in range(count):
            server = ModelServer()
            app = web.Application(client_max_size=1 << 30, handler_args={"handler_cancellation": True})
            app.router.add_get("/metrics", server.metrics)
            app.router.add_route("*", "/{path:.*}", server.serve)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            server.key = f"127.0.0.1:{runner.addresses[0][1]}"
            servers.append(server)
        yield servers
