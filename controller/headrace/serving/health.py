"""gRPC health checking (grpc.health.v1), with its two one-field messages read and written by hand.

Source: grpc/doc/health-checking.md."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import grpc
import grpc.aio

from headrace.protocol import rpc

_SERVING = b"\x08\x01"
_NOT_SERVING = b"\x08\x02"
_SERVICE_UNKNOWN = b"\x08\x03"


class Health:
    """Answers health checks of the services named in `services`, by whether they serve now. Call `changed` when an
    answer may have changed."""

    def __init__(self, services: Mapping[str, Callable[[], bool]]) -> None:
        self._services = services
        self._news = asyncio.Event()
        self._watchers: dict[object, Callable[[], None]] = {}

    def handler(self) -> grpc.GenericRpcHandler:
        """What a gRPC server registers."""
        return grpc.method_handlers_generic_handler(
            rpc.HEALTH_SERVICE,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self._check),
                "Watch": grpc.unary_stream_rpc_method_handler(self._watch),
            },
        )

    def changed(self) -> None:
        """Tell those who watch."""
        self._news.set()
        self._news = asyncio.Event()
        for tell in list(self._watchers.values()):
            tell()

    def watch(self, watcher: object, tell: Callable[[], None]) -> None:
        """Call `tell` at each change, until `unwatch`."""
        self._watchers[watcher] = tell

    def unwatch(self, watcher: object) -> None:
        """The watcher is gone."""
        self._watchers.pop(watcher, None)

    def check(self, request: bytes) -> bytes | str:
        """The serialized answer to a HealthCheckRequest; a text where there is no such service."""
        service = _service_of(request)
        status = self._status(service)
        if status == _SERVICE_UNKNOWN:
            return f"unknown service {service[:100]!r}; known: {', '.join(map(repr, self._services))}"
        return status

    def watched(self, request: bytes) -> bytes:
        """The serialized answer to who watches: a service that is not known may come to be."""
        return self._status(_service_of(request))

    def _status(self, service: str) -> bytes:
        """The serialized answer for a service."""
        serves = self._services.get(service)
        if serves is None:
            return _SERVICE_UNKNOWN
        return _SERVING if serves() else _NOT_SERVING

    async def _check(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        answer = self.check(request)
        if isinstance(answer, str):
            await context.abort(grpc.StatusCode.NOT_FOUND, answer)
            raise AssertionError
        return answer

    async def _watch(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
        last = b""
        while True:
            news, status = self._news, self.watched(request)
            if status != last:
                last = status
                yield status
            else:
                await news.wait()


def _service_of(request: bytes) -> str:
    """HealthCheckRequest.service; what is not such a message names no service."""
    if not request:
        return ""
    if len(request) > 2 and request[0] == 0x0A and request[1] < 128 and len(request) == 2 + request[1]:
        return request[2:].decode("utf-8", "replace")
    return "" if request == b"\x0a\x00" else "?"
