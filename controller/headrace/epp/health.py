"""gRPC health checking (grpc.health.v1), with its two one-field messages read and written by hand.

Source: grpc/doc/health-checking.md. The service names are those that gateways, charts and the conformance suite ask
for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
import grpc.aio

from headrace.protocol import rpc

LIVENESS = "liveness"
SERVING_WHEN_READY = ("", "readiness", "inference-extension")

_SERVING = b"\x08\x01"
_NOT_SERVING = b"\x08\x02"
_SERVICE_UNKNOWN = b"\x08\x03"


class Health:
    """Answers health checks: the kubelet's from `is_ready`, those of gateways, which ask for the ext_proc service,
    from `is_serving`. Call `changed` when an answer may have changed."""

    def __init__(self, is_ready: Callable[[], bool], is_serving: Callable[[], bool]) -> None:
        self._is_ready = is_ready
        self._is_serving = is_serving
        self._changed = asyncio.Condition()

    def handler(self) -> grpc.GenericRpcHandler:
        """What a gRPC server registers."""
        return grpc.method_handlers_generic_handler(
            rpc.HEALTH_SERVICE,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self._check),
                "Watch": grpc.unary_stream_rpc_method_handler(self._watch),
            },
        )

    async def changed(self) -> None:
        """Tell those who watch."""
        async with self._changed:
            self._changed.notify_all()

    def status(self, service: str) -> bytes | None:
        """The serialized answer for a service; None where the name is unknown."""
        if service == LIVENESS:
            return _SERVING
        if service == rpc.EXT_PROC_SERVICE:
            return _SERVING if self._is_serving() else _NOT_SERVING
        if service in SERVING_WHEN_READY:
            return _SERVING if self._is_ready() else _NOT_SERVING
        return None

    async def _check(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        service = _service_of(request)
        status = self.status(service)
        if status is None:
            known = ", ".join(repr(name) for name in (LIVENESS, rpc.EXT_PROC_SERVICE, *SERVING_WHEN_READY))
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {service[:100]!r}; known: {known}")
        return status if status is not None else b""

    async def _watch(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
        service = _service_of(request)
        last: bytes | None = None

        def differs() -> bool:
            return (self.status(service) or _SERVICE_UNKNOWN) != last

        while True:
            async with self._changed:
                await self._changed.wait_for(differs)
            last = self.status(service) or _SERVICE_UNKNOWN
            yield last


def _service_of(request: bytes) -> str:
    """HealthCheckRequest.service; what is not such a message names no service."""
    if not request:
        return ""
    if len(request) > 2 and request[0] == 0x0A and request[1] < 128 and len(request) == 2 + request[1]:
        return request[2:].decode("utf-8", "replace")
    return "" if request == b"\x0a\x00" else "?"
