"""A kubelet device plugin for GPUs that do not exist: their number and health, over the device plugin API v1beta1.

Source: https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/. The plugin serves
on a unix socket in the kubelet's folder and tells the kubelet so through the kubelet's own socket there. A kubelet that
starts removes every socket in the folder: the plugin then serves and registers again.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from headrace.simulator.device_plugin_pb2 import (
    AllocateRequest,
    AllocateResponse,
    ContainerAllocateResponse,
    Device,
    DevicePluginOptions,
    Empty,
    ListAndWatchResponse,
    RegisterRequest,
)

_logger = logging.getLogger(__name__)

API_VERSION = "v1beta1"
DEFAULT_FOLDER = Path("/var/lib/kubelet/device-plugins")
KUBELET_SOCKET = "kubelet.sock"
# A unix socket's path has 108 bytes with its final zero.
_MAX_SOCKET_PATH = 107
_REGISTER_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class Health:
    """Which devices there are, and which of them are unhealthy."""

    devices: tuple[str, ...]
    unhealthy: frozenset[str] = frozenset()

    def with_unhealthy(self, names: Collection[str]) -> Health:
        """The same devices; of them, those named (all for "*") unhealthy. Unknown names mean nothing."""
        chosen = self.devices if "*" in names else [device for device in self.devices if device in names]
        return Health(self.devices, frozenset(chosen))


class SimulatedDevices:
    """The devices of one resource on this node. Watchers are woken when a device's health changes."""

    def __init__(self, count: int) -> None:
        self._health = Health(tuple(f"simulated-gpu-{number}" for number in range(count)))
        self._changed = asyncio.Event()

    @property
    def health(self) -> Health:
        """What is so now."""
        return self._health

    def set_unhealthy(self, names: Collection[str]) -> bool:
        """Make exactly these devices unhealthy ("*": all); returns whether that changed anything."""
        health = self._health.with_unhealthy(names)
        if health == self._health:
            return False
        self._health = health
        self._changed.set()
        self._changed = asyncio.Event()
        return True

    async def watch(self) -> AsyncIterator[Health]:
        """The health now, and again after each change. Changes in quick succession may come as one."""
        while True:
            changed, health = self._changed, self._health
            yield health
            await changed.wait()


class DevicePluginService:
    """The plugin's side of the API, for one resource."""

    def __init__(self, devices: SimulatedDevices) -> None:
        self._devices = devices

    def handler(self) -> grpc.GenericRpcHandler:
        """The service as grpc.aio takes it."""
        methods: Mapping[str, grpc.RpcMethodHandler[Any, Any]] = {
            "GetDevicePluginOptions": _unary(self._options, Empty, DevicePluginOptions),
            "ListAndWatch": grpc.unary_stream_rpc_method_handler(
                self._list_and_watch,
                request_deserializer=Empty.FromString,
                response_serializer=ListAndWatchResponse.SerializeToString,
            ),
            "Allocate": _unary(self._allocate, AllocateRequest, AllocateResponse),
        }
        return grpc.method_handlers_generic_handler(f"{API_VERSION}.DevicePlugin", dict(methods))

    async def _options(self, _request: Empty, _context: Any) -> DevicePluginOptions:
        return DevicePluginOptions()

    async def _list_and_watch(self, _request: Empty, _context: Any) -> AsyncIterator[ListAndWatchResponse]:
        async for health in self._devices.watch():
            _logger.info("devices", extra={"count": len(health.devices), "unhealthy": sorted(health.unhealthy)})
            yield ListAndWatchResponse(
                devices=[
                    Device(ID=device, health="Unhealthy" if device in health.unhealthy else "Healthy")
                    for device in health.devices
                ]
            )

    async def _allocate(self, request: AllocateRequest, context: Any) -> AllocateResponse:
        known = set(self._devices.health.devices)
        answers = []
        for container in request.container_requests:
            unknown = [device for device in container.devices_ids if device not in known]
            if unknown:
                await context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"unknown devices {', '.join(unknown)}; this node has {len(known)}",
                )
            # What NVIDIA's plugin sets, so that a container sees the devices it was given; and that they are not real.
            environment = {
                "NVIDIA_VISIBLE_DEVICES": ",".join(container.devices_ids),
                "HEADRACE_SIMULATED_GPU": "true",
            }
            answers.append(ContainerAllocateResponse(envs=environment))
        return AllocateResponse(container_responses=answers)


def _unary(method: Callable[..., Awaitable[Any]], request: Any, response: Any) -> grpc.RpcMethodHandler[Any, Any]:
    return grpc.unary_unary_rpc_method_handler(
        method,
        request_deserializer=request.FromString,
        response_serializer=response.SerializeToString,
    )


class DevicePlugin:
    """Keeps one resource registered with the kubelet of this node."""

    def __init__(self, *, resource: str, devices: SimulatedDevices, folder: Path) -> None:
        """Raises ValueError when the socket's path would be too long for the system."""
        self._resource = resource
        self._devices = devices
        self._kubelet_socket = folder / KUBELET_SOCKET
        self._socket = folder / f"headrace-{resource.replace('/', '-')}.sock"
        if len(os.fsencode(self._socket)) > _MAX_SOCKET_PATH:
            raise ValueError(
                f"--plugin-dir {folder}: the socket's path {self._socket} is longer than {_MAX_SOCKET_PATH} bytes; "
                "give a shorter folder"
            )
        self._server: grpc.aio.Server | None = None
        self._registered: tuple[tuple[int, int], ...] | None = None
        self._complaint = ""

    async def step(self) -> bool:
        """Compare what is with what should be, and serve and register again where needed.

        Returns whether the plugin is registered now. Cheap when nothing has changed: call it every second.
        """
        now = self._sockets()
        if now is not None and now == self._registered:
            return True
        self._registered = None
        try:
            await self._serve()
            await self._register()
        except (OSError, RuntimeError) as error:
            self._complain(f"cannot serve on {self._socket}: {error}; it must be the kubelet's folder, and writable")
            return False
        except grpc.aio.AioRpcError as error:
            reason = f"{error.code().name}: {error.details()}"
            self._complain(
                f"the kubelet at {self._kubelet_socket} does not register the plugin ({reason}); trying again"
            )
            return False
        self._registered = self._sockets()
        self._complaint = ""
        _logger.info(
            "registered",
            extra={"resource": self._resource, "count": len(self._devices.health.devices), "socket": str(self._socket)},
        )
        return self._registered is not None

    async def close(self) -> None:
        """Stop serving and remove the socket: the kubelet then counts the devices as gone."""
        self._registered = None
        if self._server is not None:
            await self._server.stop(grace=None)
            self._server = None
        self._socket.unlink(missing_ok=True)

    def _sockets(self) -> tuple[tuple[int, int], ...] | None:
        """What tells one kubelet and one socket of ours from the next; None while either is missing."""
        try:
            found = (self._kubelet_socket.stat(), self._socket.stat())
        except OSError:
            return None
        # The number alone may be used again for the next file at once.
        return tuple((status.st_ino, status.st_ctime_ns) for status in found)

    async def _serve(self) -> None:
        if not self._kubelet_socket.exists():
            raise FileNotFoundError(f"no {KUBELET_SOCKET} there: the kubelet is not running")
        await self.close()
        server = grpc.aio.server()
        server.add_generic_rpc_handlers([DevicePluginService(self._devices).handler()])
        server.add_insecure_port(f"unix:{self._socket}")
        await server.start()
        self._server = server

    async def _register(self) -> None:
        async with grpc.aio.insecure_channel(f"unix:{self._kubelet_socket}") as channel:
            register = channel.unary_unary(
                f"/{API_VERSION}.Registration/Register",
                request_serializer=RegisterRequest.SerializeToString,
                response_deserializer=Empty.FromString,
            )
            request = RegisterRequest(
                version=API_VERSION,
                endpoint=self._socket.name,
                resource_name=self._resource,
                options=DevicePluginOptions(),
            )
            await register(request, timeout=_REGISTER_TIMEOUT_SECONDS)

    def _complain(self, complaint: str) -> None:
        """Log a trouble once, not every second."""
        if complaint != self._complaint:
            self._complaint = complaint
            _logger.warning(complaint)
