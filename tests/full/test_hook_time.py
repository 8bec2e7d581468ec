"""How long Envoy Gateway waits for the hook: 200 pools and 1,000 routes, over gRPC with mutual TLS."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import grpc.aio
from benchmarks.translation import cluster_state, hook_call

from headrace.gateway.hook import Hook
from headrace.gateway.metrics import Metrics
from headrace.gateway.snapshot import Snapshot
from headrace.serving.tls import mutual_credentials

from ..certificates import Authority

CALLS = 20
BOUND_SECONDS = 0.2
_UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


async def test_a_call_takes_less_than_200_ms(tmp_path: Path) -> None:
    authority = Authority("hook")
    own, asking = authority.issue("localhost"), authority.issue("envoy-gateway", client=True)
    own.write(tmp_path, authority.certificate)
    state, call = cluster_state(), hook_call()

    async def snapshot(_: object) -> Snapshot:
        return state

    server = grpc.aio.server(options=_UNLIMITED)
    hook = Hook(snapshot, Metrics())
    server.add_generic_rpc_handlers((hook.handler(),))
    port = server.add_secure_port("localhost:0", mutual_credentials(tmp_path, tmp_path / "ca.crt"))
    await server.start()
    credentials = grpc.ssl_channel_credentials(authority.certificate, asking.key, asking.certificate)
    wall, processor = [], []
    try:
        async with grpc.aio.secure_channel(f"localhost:{port}", credentials, options=_UNLIMITED) as channel:
            ask = channel.unary_unary("/envoygateway.extension.EnvoyGatewayExtension/PostTranslateModify")
            for _ in range(CALLS):
                started, used = time.perf_counter(), time.process_time()
                assert len(await ask(call)) > len(call)
                wall.append(time.perf_counter() - started)
                processor.append(time.process_time() - used)
    finally:
        await server.stop(0)
    text = ", ".join(
        f"{what}: median {statistics.median(found) * 1000:.0f} ms, worst {max(found) * 1000:.0f} ms"
        for what, found in (("time", wall), ("CPU of both ends", processor))
    )
    print(text)
    assert statistics.median(processor) < BOUND_SECONDS, text
