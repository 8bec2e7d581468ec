"""What role envoy_gateway adds to Envoy's overload manager: uploads that together do not fit into Envoy's memory limit
are ended, and Envoy goes on serving."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest
import yaml
from ansible.plugins.loader import init_plugin_loader

from ..hang import HANG_SECONDS
from ..memory import memory_group
from ..templates import render
from .envoy import Envoy, start_envoy

MIB = 1 << 20
LIMIT = 160 * MIB
UPLOADS, ROUNDS, ROUND_BYTES = 16, 20, MIB
PIECE = b"x" * (1 << 16)
HEAP = "envoy.resource_monitors.fixed_heap"
TYPES = "type.googleapis.com/envoy.extensions"


def from_role(repository: Path, **variables: Any) -> dict[str, Any] | None:
    """The overload manager in the EnvoyProxy's bootstrap."""
    init_plugin_loader()
    known = {"envoy_gateway_namespace": "n", "__envoy_gateway_ca": "", **variables}
    (proxy,) = render(repository, "envoy_gateway/envoy_proxy.yaml.j2", known, "")
    found: dict[str, Any] | None = yaml.safe_load(proxy["spec"]["bootstrap"]["value"]).get("overload_manager")
    return found


def merged(added: dict[str, Any]) -> dict[str, Any]:
    """As Envoy Gateway merges it: messages by field, lists one behind the other. Its own is that of v1.9.1."""
    own = {
        "refresh_interval": "0.25s",
        "resource_monitors": [
            {
                "name": HEAP,
                "typed_config": {
                    "@type": f"{TYPES}.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                    "max_heap_size_bytes": LIMIT * 4 // 5,
                },
            }
        ],
        "actions": [
            {
                "name": f"envoy.overload_actions.{name}",
                "triggers": [{"name": HEAP, "threshold": {"value": value}}],
            }
            for name, value in (("shrink_heap", 0.95), ("stop_accepting_requests", 0.98))
        ],
    }
    return {**own, **added, "actions": own["actions"] + added.get("actions", [])}


def bootstrap(overload: dict[str, Any]) -> dict[str, Any]:
    """A listener that keeps whole bodies, as it does for a pool whose picker takes them in one piece, and answers."""
    manager = {
        "@type": f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"prefix": "/"},
                            "request_body_buffer_limit": 64 * MIB,
                            "direct_response": {"status": 200},
                        }
                    ],
                }
            ]
        },
        "http_filters": [
            {
                "name": "whole",
                "typed_config": {"@type": f"{TYPES}.filters.http.buffer.v3.Buffer", "max_request_bytes": 64 * MIB},
            },
            {"name": "router", "typed_config": {"@type": f"{TYPES}.filters.http.router.v3.Router"}},
        ],
    }
    listener = {
        "name": "in",
        "per_connection_buffer_limit_bytes": 32768,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return {"static_resources": {"listeners": [listener]}, "overload_manager": overload}


async def upload_http1(port: int, turn: Callable[[], Any]) -> bool:
    """A body that never ends, some of it each turn. Whether Envoy ended it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 67000000\r\n\r\n")
        for _ in range(ROUNDS):
            for _ in range(ROUND_BYTES // len(PIECE)):
                writer.write(PIECE)
                await writer.drain()
            await turn()
            if reader.at_eof() or writer.is_closing():
                return True
    except ConnectionError:
        return True
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return False


async def upload_http2(port: int, turn: Callable[[], Any]) -> bool:
    """The same by HTTP/2: a call of gRPC that sends and sends."""
    async with grpc.aio.insecure_channel(
        f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        call: Any = channel.stream_stream("/a/b")()
        try:
            for _ in range(ROUNDS):
                for _ in range(ROUND_BYTES // len(PIECE)):
                    await call.write(PIECE)
                await turn()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return True
        finally:
            call.cancel()
    return False


async def ordinary(envoy: Envoy, port: int) -> None:
    """Once Envoy has seen that its heap is free again, every request is answered."""
    async with asyncio.timeout(HANG_SECONDS):
        while (await envoy.counters())[f"overload.{HEAP}.pressure"] >= 75:  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.05)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        for _ in range(20):
            async with session.post("/", data=b"hi") as answer:
                assert answer.status == 200
    assert envoy.process.returncode is None


@pytest.mark.parametrize(
    ("upload", "shed"),
    [
        (upload_http1, "overload.envoy.load_shed_points.http1_server_abort_dispatch.shed_load_count"),
        (upload_http2, "envoy.overload_actions.reset_high_memory_stream.count"),
    ],
)
async def test_uploads_beyond_the_memory_limit_are_ended(
    repository: Path, tmp_path: Path, upload: Any, shed: str
) -> None:
    added = from_role(repository)
    assert added is not None
    with memory_group(LIMIT) as memory:
        async with start_envoy(bootstrap(merged(added)), tmp_path, prefix=memory.prefix) as envoy:
            port = await envoy.listener_port("in")
            pressures: list[int] = []

            async def turn() -> None:
                # The bodies are slow: Envoy looks at its heap before the next piece. The thread that does so answers
                # its admin page.
                await asyncio.sleep(0.3)
                pressures.append((await envoy.counters())[f"overload.{HEAP}.pressure"])

            assert UPLOADS * ROUNDS * ROUND_BYTES > LIMIT
            async with asyncio.timeout(HANG_SECONDS):
                ended = await asyncio.gather(*(upload(port, turn) for _ in range(UPLOADS)))
            assert any(ended)
            await ordinary(envoy, port)
            assert (await envoy.counters())[shed] > 0
            peak = memory.peak() / MIB
            print(f"{sum(ended)} of {UPLOADS} ended, pressure up to {max(pressures)} %, peak {peak:.0f} MiB")


@pytest.mark.parametrize(
    ("variables", "there"),
    [
        ({}, True),
        ({"envoy_gateway_proxy_shed_percent": 0}, False),
        # Without a limit Envoy Gateway measures no heap, and Envoy refuses actions that hang on what is not measured.
        ({"envoy_gateway_proxy_resources": {"requests": {"memory": "1Gi"}}}, False),
        (
            {
                "envoy_gateway_proxy_resources": {},
                "envoy_gateway_proxy_spec": {
                    "provider": {
                        "kubernetes": {"envoyDeployment": {"container": {"resources": {"limits": {"memory": "2Gi"}}}}}
                    }
                },
            },
            True,
        ),
    ],
)
def test_there_is_one_where_there_is_a_memory_limit(repository: Path, variables: dict[str, Any], there: bool) -> None:
    assert (from_role(repository, **variables) is not None) == there
