"""The picker's servers: ext_proc, gRPC health, the streams of other replicas, and the pages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

import grpc.aio
from aiohttp import web

from headrace.epp.http2_calls import Calls
from headrace.epp.http2_server import Http2Server
from headrace.epp.metrics import Metrics
from headrace.epp.options import Options
from headrace.epp.service import ExtProcService
from headrace.extproc.http2 import BufferBudget, Limits
from headrace.replicas.peering import KEEPALIVE, Peering
from headrace.serving.health import Health
from headrace.serving.servers import Servers
from headrace.serving.tls import server_context, server_credentials

# Beyond the largest body a message can carry: a body of max_body_bytes comes as one message where it is buffered.
_MESSAGE_OVERHEAD = 1 << 20


class Stoppable(Protocol):
    """A server that can be stopped."""

    def stop(self, grace: float | None) -> Awaitable[None]:
        """Take no new streams, and wait so many seconds for those that are open. Called again, it is the shorter of
        both times."""


Work = Callable[[], Coroutine[Any, Any, object]]


async def start_servers(
    servers: Servers,
    options: Options,
    service: ExtProcService,
    health: Health,
    pages: web.Application,
    peering: Peering | None,
) -> tuple[Stoppable, dict[str, Work]]:
    """Add the servers and start them. Gives that of ext_proc, and the work that it needs done while it serves, by name.

    Raises CannotServe, and InvalidCertificate."""
    work: dict[str, Work] = {}
    server: Stoppable
    if options.extproc_transport == "http2":
        calls = Calls(service, health)
        own = server = _http2_server(options, calls, service.metrics)
        await servers.add("grpc", "grpc-port", options.grpc_port, own)
        work = {"sweep connections": own.sweep, "watch for late bodies": calls.run}
    else:
        server = _grpc_server(servers, options, service, health)
    servers.add_grpc("health", "grpc-health-port", options.grpc_health_port, (health.handler(),))
    if peering is not None:
        handlers, peers = (peering.handler(),), peering.credentials()
        servers.add_grpc("peers", "peer-port", options.peers.port, handlers, credentials=peers, options=KEEPALIVE)
    await servers.add_http("metrics", "metrics-port", options.metrics_port, pages)
    await servers.start()
    return server, work


def _http2_server(options: Options, calls: Calls, metrics: Metrics) -> Http2Server:
    """Our own server. Raises InvalidCertificate."""
    return Http2Server(
        calls,
        Limits(max_message_bytes=options.conversation.max_body_bytes + _MESSAGE_OVERHEAD),
        BufferBudget(options.limits.messages),
        tls=server_context(options.cert_path, reload=options.enable_cert_reload) if options.secure_serving else None,
        on_fault=lambda name: metrics.closed_connections.labels(name).inc(),
        on_slow=metrics.slow_callbacks.inc,
    )


def _grpc_server(servers: Servers, options: Options, service: ExtProcService, health: Health) -> grpc.aio.Server:
    """gRPC's server. Raises CannotServe, and InvalidCertificate."""
    credentials = None
    if options.secure_serving:
        credentials = server_credentials(options.cert_path, reload=options.enable_cert_reload)
    message_bytes = options.conversation.max_body_bytes + _MESSAGE_OVERHEAD
    return servers.add_grpc(
        "grpc",
        "grpc-port",
        options.grpc_port,
        (service.handler(), health.handler()),
        credentials=credentials,
        options={
            "grpc.max_receive_message_length": message_bytes,
            "grpc.max_send_message_length": message_bytes,
            "grpc.max_concurrent_streams": 1 << 20,
            # Above 1,000 calls that wait for a handler gRPC drops some at random. A burst is what admission is for.
            "grpc.server.max_pending_requests": 1 << 20,
            "grpc.server.max_pending_requests_hard_limit": 1 << 20,
        },
    )
