"""A picker and a gateway controller with Pods' memory, what they talk to, and ordinary requests beside hostile ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import zmq
import zmq.asyncio
from aiohttp import web

from headrace.xds.envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from tests.component.epp.picker import PickerProcess, start_picker
from tests.component.ext_proc import METHOD, begin, channel, converse
from tests.hang import HANG_SECONDS
from tests.hostile.relatives import MIB, Body, Lines, Messages, Names, Page, Relative, Thing, Uploads, Watch
from tests.list_watch import ListWatchServer
from tests.malformed import pod
from tests.memory import MemoryGroup

# The limits that roles inference_pool and envoy_gateway give them.
PICKER_BYTES, GATEWAY_BYTES = 1024 * MIB, 512 * MIB
GOOD, BAD, ODD = "127.0.0.1", "127.0.0.3", "127.0.0.9"
GOOD_PAGE = b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n"
CONFIG = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: precise-prefix-cache-producer
  parameters: {kvEventsConfig: {topicFilter: "kv@", podDiscoveryConfig: {socketPort: KV_PORT}}}
- type: prefix-cache-scorer
- type: queue-scorer
- type: max-score-picker
schedulingProfiles:
- name: default
  plugins: [{pluginRef: prefix-cache-scorer}, {pluginRef: queue-scorer}, {pluginRef: max-score-picker}]
"""
_V1, _EXTENSION = "/apis/inference.networking.k8s.io/v1", "/apis/inference.networking.x-k8s.io/v1alpha2"
PATHS = {
    "pods": "/api/v1/namespaces/n/pods",
    "inferencepools": f"{_V1}/namespaces/n/inferencepools",
    "inferenceobjectives": f"{_EXTENSION}/namespaces/n/inferenceobjectives",
    "inferencemodelrewrites": f"{_EXTENSION}/namespaces/n/inferencemodelrewrites",
}
FLAGS = (
    "--insecure",
    "--bind-address=127.0.0.1",
    "--hook-port=0",
    "--eds-port=0",
    "--health-port=0",
    "--metrics-port=0",
)


@dataclass
class World:
    """The processes, and what a hostile relative needs to reach them."""

    api: ListWatchServer
    picker: PickerProcess
    picker_memory: MemoryGroup
    gateway: asyncio.subprocess.Process
    gateway_port: int
    publisher: zmq.asyncio.Socket
    pages: list[Page]

    async def act(self, one: Relative) -> None:
        """Do one hostile thing, to its end. What comes back is not looked at: that others are served is what counts."""
        async with asyncio.timeout(HANG_SECONDS):
            match one:
                case Body():
                    await asyncio.gather(
                        self._body(self.picker.grpc_port, one), self._body(self.gateway_port, one, whole=True)
                    )
                case Names():
                    await self._name_models(one)
                case Page():
                    self.pages[:] = [one]
                    # As long as it takes to be asked for twice, or refused for longer and longer.
                    await asyncio.sleep(1.0)
                    self.pages.clear()
                case Messages():
                    await self._publish(one)
                case Uploads():
                    await self._upload(one)
                case Thing():
                    await self._change(one)
                case Lines():
                    self.api.send(PATHS["pods"], *one.lines)
                    await asyncio.sleep(0.2)
                case Watch():
                    for path in PATHS.values():
                        self.api.manners.setdefault(path, []).append(one.manner)
                    await asyncio.sleep(0.2)

    async def _body(self, port: int, one: Body, *, whole: bool = False) -> None:
        body = one.make()
        if whole and len(body) > 20 * MIB:
            return
        async with channel(port) as connection:
            with contextlib.suppress(AssertionError, grpc.aio.AioRpcError):
                await converse(connection, one.path, body, len(body) if whole else one.piece, headers=one.headers)

    async def _name_models(self, one: Names) -> None:
        async with channel(self.picker.grpc_port) as connection:
            for model in one.models:
                body = json.dumps({"model": model, "prompt": "x"}).encode()
                with contextlib.suppress(AssertionError, grpc.aio.AioRpcError):
                    await converse(connection, "/v1/completions", body, 0)
        status, text = await self.picker.get("/metrics")
        assert status == 200
        print(f"/metrics: {len(text) / MIB:.1f} MiB")

    async def _publish(self, one: Messages) -> None:
        frames = one.frames()
        for _ in range(min(one.times, 1 + 200 * MIB // max(1, sum(map(len, frames))))):
            await self.publisher.send_multipart(frames or [b""])
            await asyncio.sleep(0)
        await asyncio.sleep(0.2)

    async def _upload(self, one: Uploads) -> None:
        async with channel(self.picker.grpc_port) as connection:
            calls = [connection.stream_stream(METHOD)() for _ in range(one.count)]
            message = pb.ProcessingRequest(request_body=pb.HttpBody(body=b"x" * one.piece)).SerializeToString()

            async def upload(call: Any) -> None:
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await call.write(begin("/v1/completions"))
                    for _ in range(one.size // one.piece):
                        await call.write(message)

            # One that is refused is not read any more: its writes may wait for ever.
            await asyncio.wait([asyncio.create_task(upload(call)) for call in calls], timeout=5.0)
            await asyncio.sleep(0.5)
            for call in calls:
                call.cancel()

    async def _change(self, one: Thing) -> None:
        path = PATHS[one.kind]
        known = self.api.objects.get(path)
        self.api.send(path, self.api.change(path, "ADDED", one.found))
        await asyncio.sleep(0.2)
        if known is not None and isinstance(one.found.get("metadata"), dict):
            self.api.send(path, self.api.change(path, "DELETED", one.found))


@contextlib.asynccontextmanager
async def model_servers(pages: list[Page]) -> AsyncIterator[int]:
    """Metrics pages on one port of several addresses; at BAD the first of `pages` while there is one."""

    async def page(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        if request.transport.get_extra_info("sockname")[0] != BAD or not pages:
            return web.Response(body=GOOD_PAGE)
        one = pages[0]
        answer = web.StreamResponse(status=one.status, headers=dict(one.headers))
        with contextlib.suppress(ConnectionError):
            await answer.prepare(request)
            for piece in one.pieces():
                await asyncio.sleep(one.pause)
                await answer.write(piece)
        return answer

    app = web.Application()
    app.router.add_get("/metrics", page)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, GOOD, 0).start()
        port = int(runner.addresses[0][1])
        for address in (BAD, ODD):
            await web.TCPSite(runner, address, port).start()
        yield port
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def _gateway(kubeconfig: Path, memory: MemoryGroup) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    command = (
        *memory.prefix,
        sys.executable,
        "-m",
        "headrace.cli.main",
        "gateway",
        *FLAGS,
        f"--kubeconfig={kubeconfig}",
    )
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    draining: asyncio.Task[bytes] | None = None
    try:
        port = 0
        while not port:
            port = json.loads(await process.stderr.readline()).get("ports", {}).get("eds", 0)
        draining = asyncio.create_task(process.stderr.read())
        yield process, port
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        if draining is not None:
            await draining


@contextlib.asynccontextmanager
async def running(directory: Path, picker_memory: MemoryGroup, gateway_memory: MemoryGroup) -> AsyncIterator[World]:
    """All of it, ready."""
    pages: list[Page] = []
    context = zmq.asyncio.Context()
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(context.destroy, linger=0)
        port = await stack.enter_async_context(model_servers(pages))
        publisher = context.socket(zmq.PUB)
        kv_port = publisher.bind_to_random_port(f"tcp://{BAD}")
        config = CONFIG.replace("KV_PORT", str(kv_port))
        api = ListWatchServer()
        kubeconfig = await api.start(directory)
        stack.push_async_callback(api.close)
        pool = {
            "metadata": {"name": "p", "namespace": "n", "uid": "p", "resourceVersion": "1"},
            "spec": {"selector": {"matchLabels": {"app": "m"}}, "targetPorts": [{"number": port}]},
        }
        api.objects = {path: [] for path in PATHS.values()}
        api.objects[PATHS["inferencepools"]] = [pool]
        api.objects[PATHS["pods"]] = [pod("good", GOOD), pod("bad", BAD)]
        gateway, gateway_port = await stack.enter_async_context(_gateway(kubeconfig, gateway_memory))
        source = ("--pool-name=p", "--pool-namespace=n", f"--kubeconfig={kubeconfig}", f"--config-text={config}")
        picker = await stack.enter_async_context(
            start_picker((), directory, source=source, prefix=picker_memory.prefix)
        )
        async with asyncio.timeout(HANG_SECONDS):
            while (await picker.get("/readyz"))[0] != 200:  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.05)
        yield World(api, picker, picker_memory, gateway, gateway_port, publisher, pages)
