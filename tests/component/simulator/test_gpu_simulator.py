"""The device plugin against a registration server like the kubelet's, on real unix sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from headrace.simulator.device_plugin import DevicePlugin, SimulatedDevices
from headrace.simulator.device_plugin_pb2 import (
    AllocateRequest,
    AllocateResponse,
    ContainerAllocateRequest,
    DevicePluginOptions,
    Empty,
    ListAndWatchResponse,
    RegisterRequest,
)

from .process import TIMEOUT, Headrace, headrace


class Kubelet:
    """The kubelet's side: a Registration server, and a client of the plugins that register."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "kubelet.sock"
        self.registered: asyncio.Queue[RegisterRequest] = asyncio.Queue()
        self.refuse = False
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """As the kubelet does: remove every socket in the folder, then serve."""
        for left in self.folder.glob("*.sock"):
            left.unlink()
        handler = grpc.unary_unary_rpc_method_handler(
            self._register,
            request_deserializer=RegisterRequest.FromString,
            response_serializer=Empty.SerializeToString,
        )
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("v1beta1.Registration", {"Register": handler})]
        )
        self._server.add_insecure_port(f"unix:{self.socket}")
        await self._server.start()

    async def stop(self) -> None:
        assert self._server is not None
        await self._server.stop(grace=None)

    async def _register(self, request: RegisterRequest, context: Any) -> Empty:
        if self.refuse:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now")
        self.registered.put_nowait(request)
        return Empty()

    async def wait_registered(self) -> RegisterRequest:
        async with asyncio.timeout(TIMEOUT):
            return await self.registered.get()

    @asynccontextmanager
    async def plugin(self, request: RegisterRequest) -> AsyncIterator[Plugin]:
        async with grpc.aio.insecure_channel(f"unix:{self.folder / request.endpoint}") as channel:
            yield Plugin(channel)


class Plugin:
    """Calls to a plugin, as the kubelet makes them."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        prefix = "/v1beta1.DevicePlugin/"
        self.options = channel.unary_unary(
            prefix + "GetDevicePluginOptions",
            request_serializer=Empty.SerializeToString,
            response_deserializer=DevicePluginOptions.FromString,
        )
        self.list_and_watch = channel.unary_stream(
            prefix + "ListAndWatch",
            request_serializer=Empty.SerializeToString,
            response_deserializer=ListAndWatchResponse.FromString,
        )
        self.allocate = channel.unary_unary(
            prefix + "Allocate",
            request_serializer=AllocateRequest.SerializeToString,
            response_deserializer=AllocateResponse.FromString,
        )


def health(response: ListAndWatchResponse) -> dict[str, str]:
    return {device.ID: device.health for device in response.devices}


@pytest.fixture
async def kubelet(tmp_path: Path) -> AsyncIterator[Kubelet]:
    made = Kubelet(tmp_path)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def plugin(tmp_path: Path) -> AsyncIterator[DevicePlugin]:
    made = DevicePlugin(resource="nvidia.com/gpu", devices=SimulatedDevices(3), folder=tmp_path)
    yield made
    await made.close()


async def wait_log(process: Headrace, message: str) -> None:
    """The process's log is read in a thread: this event loop serves the kubelet meanwhile."""
    await asyncio.to_thread(process.wait_log, message)


async def test_a_plugin_registers_and_lists_its_devices(kubelet: Kubelet, plugin: DevicePlugin) -> None:
    assert await plugin.step() is True
    request = await kubelet.wait_registered()
    assert (request.version, request.resource_name) == ("v1beta1", "nvidia.com/gpu")
    assert "/" not in request.endpoint, "a file name in the kubelet's folder"
    async with kubelet.plugin(request) as calls:
        options = await calls.options(Empty())
        assert (options.pre_start_required, options.get_preferred_allocation_available) == (False, False)
        devices = calls.list_and_watch(Empty())
        first = await devices.read()
        assert list(health(first).values()) == ["Healthy"] * 3


async def test_a_container_gets_the_devices_it_was_given_and_knows_they_are_simulated(
    kubelet: Kubelet, plugin: DevicePlugin
) -> None:
    await plugin.step()
    async with kubelet.plugin(await kubelet.wait_registered()) as calls:
        request = AllocateRequest(
            container_requests=[
                ContainerAllocateRequest(devices_ids=["simulated-gpu-2", "simulated-gpu-0"]),
                ContainerAllocateRequest(devices_ids=["simulated-gpu-1"]),
            ]
        )
        answer = await calls.allocate(request)
        assert [dict(container.envs) for container in answer.container_responses] == [
            {"NVIDIA_VISIBLE_DEVICES": "simulated-gpu-2,simulated-gpu-0", "HEADRACE_SIMULATED_GPU": "true"},
            {"NVIDIA_VISIBLE_DEVICES": "simulated-gpu-1", "HEADRACE_SIMULATED_GPU": "true"},
        ]
        request.container_requests[0].devices_ids.append("gpu-of-another")
        with pytest.raises(grpc.aio.AioRpcError, match="gpu-of-another") as refused:
            await calls.allocate(request)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_health_changes_reach_the_kubelet(kubelet: Kubelet, tmp_path: Path) -> None:
    devices = SimulatedDevices(2)
    plugin = DevicePlugin(resource="nvidia.com/gpu", devices=devices, folder=tmp_path)
    await plugin.step()
    async with kubelet.plugin(await kubelet.wait_registered()) as calls:
        watch = calls.list_and_watch(Empty())
        assert set(health(await watch.read()).values()) == {"Healthy"}
        assert devices.set_unhealthy({"simulated-gpu-1", "unknown"}) is True
        assert health(await watch.read()) == {"simulated-gpu-0": "Healthy", "simulated-gpu-1": "Unhealthy"}
        assert devices.set_unhealthy({"simulated-gpu-1"}) is False
        assert devices.set_unhealthy({"*"}) is True
        assert set(health(await watch.read()).values()) == {"Unhealthy"}
        assert devices.set_unhealthy(()) is True
        assert set(health(await watch.read()).values()) == {"Healthy"}
    await plugin.close()


async def test_a_step_without_a_change_does_not_register_again(kubelet: Kubelet, plugin: DevicePlugin) -> None:
    assert await plugin.step() is True
    await kubelet.wait_registered()
    assert await plugin.step() is True
    assert kubelet.registered.empty()


async def test_a_restarted_kubelet_is_told_again(kubelet: Kubelet, plugin: DevicePlugin, tmp_path: Path) -> None:
    await plugin.step()
    first = await kubelet.wait_registered()
    await kubelet.stop()
    await kubelet.start()
    assert not (tmp_path / first.endpoint).exists(), "the kubelet removed the plugin's socket"
    assert await plugin.step() is True
    async with kubelet.plugin(await kubelet.wait_registered()) as calls:
        assert len(health(await calls.list_and_watch(Empty()).read())) == 3


async def test_without_a_kubelet_the_plugin_waits_for_one(plugin: DevicePlugin, tmp_path: Path) -> None:
    assert await plugin.step() is False
    kubelet = Kubelet(tmp_path)
    await kubelet.start()
    kubelet.refuse = True
    assert await plugin.step() is False
    kubelet.refuse = False
    assert await plugin.step() is True
    await kubelet.wait_registered()
    await kubelet.stop()


async def test_the_command_lives_through_a_kubelets_restart_and_cleans_up(kubelet: Kubelet, tmp_path: Path) -> None:
    unhealthy = tmp_path / "unhealthy"
    arguments = ["--count", "2", "--plugin-dir", str(tmp_path), "--unhealthy-file", str(unhealthy)]
    with headrace("gpu-simulator", *arguments) as process:
        request = await kubelet.wait_registered()
        await wait_log(process, "registered")
        async with kubelet.plugin(request) as calls:
            watch = calls.list_and_watch(Empty())
            assert set(health(await watch.read()).values()) == {"Healthy"}
            unhealthy.write_text("simulated-gpu-0\n")
            async with asyncio.timeout(TIMEOUT):
                assert health(await watch.read()) == {"simulated-gpu-0": "Unhealthy", "simulated-gpu-1": "Healthy"}
        await kubelet.stop()
        await kubelet.start()
        assert (await kubelet.wait_registered()).endpoint == request.endpoint
        await wait_log(process, "registered")
        assert process.resident_bytes() < 100e6
        process.terminate()
        assert await asyncio.to_thread(process.wait_exit) == 0
    assert not (tmp_path / request.endpoint).exists()


async def test_the_command_says_once_that_there_is_no_kubelet(tmp_path: Path) -> None:
    with headrace("gpu-simulator", "--plugin-dir", str(tmp_path)) as process:
        await wait_log(process, "cannot serve")
        kubelet = Kubelet(tmp_path)
        await kubelet.start()
        await kubelet.wait_registered()
        await wait_log(process, "registered")
        assert [entry["level"] for entry in process.seen] == ["warning", "info"]
        process.terminate()
        assert await asyncio.to_thread(process.wait_exit) == 0
        await kubelet.stop()
