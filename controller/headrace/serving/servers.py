"""The servers of a process: every port is bound before any of them serves, and all are stopped in the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, Self

import grpc
import grpc.aio
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry

from headrace.core import endpoint_key
from headrace.core.invalid import CannotServe
from headrace.protocol import http
from headrace.serving.exposition import page

_GRPC_OPTIONS: Mapping[str, int] = {
    # Two processes on one port would share its connections and each know half of what goes on.
    "grpc.so_reuseport": 0,
    # Envoy probes an idle connection every second (HTTP/2 keepalive); gRPC would close it as abuse.
    "grpc.http2.min_ping_interval_without_data_ms": 100,
    "grpc.http2.max_ping_strikes": 0,
    "grpc.keepalive_permit_without_calls": 1,
}


class PortServer(Protocol):
    """A server that takes a port, and serves from `start` to `stop`."""

    async def bind(self, address: str, port: int) -> int:
        """Take a port, 0 for a free one; gives its number. Raises OSError."""

    async def start(self) -> None:
        """Answer."""

    async def stop(self, grace: float | None) -> None:
        """Wait so many seconds for what is open, and end."""


class Servers:
    """The servers of one process, on one address. Enter it, add servers, then `start` them.

    `ports` has the port of each by its name. Adding raises CannotServe where the port is taken."""

    def __init__(self, address: str) -> None:
        self.ports: dict[str, int] = {}
        self._address = address
        self._starting: list[PortServer | grpc.aio.Server] = []
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def add_grpc(
        self,
        name: str,
        flag: str,
        port: int,
        handlers: Iterable[grpc.GenericRpcHandler],
        *,
        credentials: grpc.ServerCredentials | None = None,
        options: Mapping[str, int] | None = None,
    ) -> grpc.aio.Server:
        """A gRPC server on a port, 0 for a free one; `flag` is the one that names it. `options` are channel options."""
        server = grpc.aio.server(options=list({**_GRPC_OPTIONS, **(options or {})}.items()))
        server.add_generic_rpc_handlers(tuple(handlers))
        address = endpoint_key(self._address, port)
        try:
            if credentials is None:
                self.ports[name] = server.add_insecure_port(address)
            else:
                self.ports[name] = server.add_secure_port(address, credentials)
        except RuntimeError:  # all that gRPC says
            raise _taken(flag, port) from None
        self._stack.push_async_callback(server.stop, 0)
        self._starting.append(server)
        return server

    async def add(self, name: str, flag: str, port: int, server: PortServer) -> None:
        """Any other server on a port, 0 for a free one."""
        try:
            self.ports[name] = await server.bind(self._address, port)
        except OSError:
            raise _taken(flag, port) from None
        self._stack.push_async_callback(server.stop, 0)
        self._starting.append(server)

    async def add_http(self, name: str, flag: str, port: int, application: web.Application) -> None:
        """An HTTP server on a port, 0 for a free one. It answers at once."""
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        try:
            await web.TCPSite(runner, self._address, port).start()
        except OSError:
            raise _taken(flag, port) from None
        self.ports[name] = runner.addresses[0][1]

    async def start(self) -> None:
        """Let the servers answer that do not yet."""
        for server in self._starting:
            await server.start()


def _taken(flag: str, port: int) -> CannotServe:
    return CannotServe(f"--{flag}={port}: the port is taken; stop what listens there, or give another port")


def health_routes(why_not_ready: Callable[[], str]) -> list[web.RouteDef]:
    """/healthz, and /readyz by `why_not_ready`, "" for ready."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        why_not = why_not_ready()
        return web.Response(text=f"{why_not or 'ok'}\n", status=503 if why_not else 200)

    return [web.get("/healthz", healthz), web.get("/readyz", readyz)]


def metrics_route(registry: CollectorRegistry) -> web.RouteDef:
    """/metrics of a registry."""

    async def metrics(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={http.CONTENT_TYPE: CONTENT_TYPE_LATEST})
        await response.prepare(request)
        async for piece in page(registry):
            await response.write(piece)
        await response.write_eof()
        return response

    return web.get("/metrics", metrics)
