"""A pool behind a real Envoy: model servers, the picker, Envoy in front."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ...hang import HANG_SECONDS
from ..envoy import Envoy, start_envoy
from . import picker
from .configs import LISTENER, picking_mode, pool_config
from .picker import PickerProcess, start_picker
from .servers import ModelServer, model_servers

# For what both transports have to do alike: `pytestmark = BOTH_TRANSPORTS`.
BOTH_TRANSPORTS = [
    pytest.mark.usefixtures("transport"),
    pytest.mark.parametrize("transport", ["http2", "grpcio"], indirect=True),
]


@dataclass
class Stack:
    """All of it, and a client of it."""

    servers: list[ModelServer]
    picker: PickerProcess
    envoy: Envoy
    url: str
    client: aiohttp.ClientSession

    def server(self, key: str) -> ModelServer:
        """The server of `ip:port`."""
        return next(server for server in self.servers if server.key == key)


RunStack = Callable[..., AbstractAsyncContextManager[Stack]]


@pytest.fixture
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What serves ext_proc, by the test's parameter: see BOTH_TRANSPORTS."""
    monkeypatch.setattr(picker, "transport", request.param)
    return str(request.param)


@pytest.fixture
def run_stack(tmp_path: Path) -> RunStack:
    """Starts a stack: `async with run_stack(servers=2, mode=..., observe=True, flags=(...)) as stack`."""

    @contextlib.asynccontextmanager
    async def run(
        *,
        servers: int = 3,
        mode: Mapping[str, str] | None = None,
        observe: bool = True,
        flags: Sequence[str] = (),
        **config: Any,
    ) -> AsyncIterator[Stack]:
        async with contextlib.AsyncExitStack() as stack:
            started = await stack.enter_async_context(model_servers(servers))
            keys = [server.key for server in started]
            started_picker = await stack.enter_async_context(start_picker(keys, tmp_path, *flags))
            envoy = await stack.enter_async_context(
                start_envoy(
                    pool_config(
                        epp_port=started_picker.grpc_port,
                        endpoints=keys,
                        mode=mode or picking_mode(),
                        observe=observe,
                        **config,
                    ),
                    tmp_path,
                )
            )
            client = await stack.enter_async_context(
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=HANG_SECONDS)
                )
            )
            yield Stack(
                started, started_picker, envoy, f"http://127.0.0.1:{await envoy.listener_port(LISTENER)}", client
            )

    return run
