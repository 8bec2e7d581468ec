"""The picker's servers: ext_proc, gRPC health, the streams of other replicas, and the pages."""

from __future__ import annotations

import grpc.aio
from aiohttp import web

from headrace.epp.options import Options
from headrace.epp.service import ExtProcService
from headrace.replicas.peering import KEEPALIVE, Peering
from headrace.serving.health import Health
from headrace.serving.servers import Servers
from headrace.serving.tls import server_credentials

# Beyond the largest body a message can carry: a body of max_body_bytes comes as one message where it is buffered.
_MESSAGE_OVERHEAD = 1 << 20


async def start_servers(
    servers: Servers,
    options: Options,
    service: ExtProcService,
    health: Health,
    pages: web.Application,
    peering: Peering | None,
) -> grpc.aio.Server:
    """Add the servers and start them. Gives that of ext_proc. Raises CannotServe, and InvalidCertificate."""
    credentials = None
    if options.secure_serving:
        credentials = server_credentials(options.cert_path, reload=options.enable_cert_reload)
    message_bytes = options.conversation.max_body_bytes + _MESSAGE_OVERHEAD
    server = servers.add_grpc(
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
    servers.add_grpc("health", "grpc-health-port", options.grpc_health_port, (health.handler(),))
    if peering is not None:
        handlers, peers = (peering.handler(),), peering.credentials()
        servers.add_grpc("peers", "peer-port", options.peers.port, handlers, credentials=peers, options=KEEPALIVE)
    await servers.add_http("metrics", "metrics-port", options.metrics_port, pages)
    await servers.start()
    return server
