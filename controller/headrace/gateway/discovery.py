"""Endpoint and secret discovery (EDS, SDS; state of the world) for the Envoys: pushed on change, to those who asked.

Source: Envoy, xDS REST and gRPC protocol. Resources that a stream asked for and that do not exist are answered empty,
so that Envoy does not wait for them; nothing is answered before the informers have settled, so that a restarted
controller never empties a cluster."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from headrace.gateway import names
from headrace.gateway.clusters import pack
from headrace.gateway.endpoints import assignment, picker_addresses, pool_addresses
from headrace.gateway.metrics import Metrics
from headrace.gateway.snapshot import Snapshot
from headrace.gateway.trust import Trust, pool_trust, trust_secret
from headrace.protocol import rpc
from headrace.xds.envoy.service.discovery.v3 import discovery_pb2

logger = logging.getLogger(__name__)


# Changes that come together, as those of a rollout do, go out together.
_SETTLE_SECONDS = 0.01


@dataclass(eq=False)
class SnapshotSource:
    """Resources made from the newest snapshot."""

    snapshot: Callable[[], Snapshot]
    nothing: str

    def resource(self, type_url: str, name: str) -> Message:
        """The resource of that type and name: one that leads nowhere has no endpoints, and trusts nobody."""
        snapshot = self.snapshot()
        found = names.split_resource_name(name)
        pool = snapshot.pools.get(found[0]) if found is not None else None
        if type_url == rpc.SDS_TYPE:
            trust = Trust(hostname="") if pool is None else pool_trust(snapshot, pool)
            return trust_secret(name, trust, self.nothing)
        if pool is None or found is None:
            return assignment(name, ())
        addresses = picker_addresses(snapshot, pool) if found[1] else pool_addresses(snapshot, pool)
        return assignment(name, addresses)


@dataclass(eq=False)
class Discovery:
    """The streams. `resource` makes the resource of a type and a name; call `changed` when it may be another one."""

    resource: Callable[[str, str], Message]
    metrics: Metrics
    ready: asyncio.Event

    def __post_init__(self) -> None:
        self._waiting: set[asyncio.Event] = set()
        self._cache: dict[tuple[str, str], bytes] = {}
        self._closing = False

    def changed(self) -> None:
        """Wake every stream."""
        self._cache.clear()
        for event in self._waiting:
            event.set()

    def close(self) -> None:
        """End every stream: the Envoys connect to another replica and keep what they know."""
        self._closing = True
        for event in self._waiting:
            event.set()

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """What a gRPC server registers."""

        def handler(service: str, method: str, type_url: str) -> grpc.GenericRpcHandler:
            # gRPC takes only an asynchronous generator function for a stream of answers.
            async def stream(requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
                async for response in self._stream(requests, type_url):
                    yield response

            made: Any = grpc.stream_stream_rpc_method_handler(stream)
            return grpc.method_handlers_generic_handler(service, {method: made})

        return (
            handler(rpc.EDS_SERVICE, "StreamEndpoints", rpc.EDS_TYPE),
            handler(rpc.SDS_SERVICE, "StreamSecrets", rpc.SDS_TYPE),
        )

    def _serialized(self, type_url: str, name: str) -> bytes:
        # Many Envoys, and many streams of each, ask for the same: made once for each change.
        key = (type_url, name)
        found = self._cache.get(key)
        if found is None:
            found = self._cache[key] = pack(self.resource(type_url, name)).SerializeToString(deterministic=True)
        return found

    async def _stream(self, requests: AsyncIterator[bytes], type_url: str) -> AsyncIterator[bytes]:
        await self.ready.wait()
        wake = asyncio.Event()
        wanted: dict[str, bytes | None] = {}  # name -> what was sent last
        reading = asyncio.create_task(self._read(requests, wanted, wake, type_url))
        reading.add_done_callback(lambda _: wake.set())
        self._waiting.add(wake)
        self.metrics.discovery_streams.labels(_kind(type_url)).inc()
        version = 0
        try:
            while True:
                await wake.wait()
                if reading.done() or self._closing:
                    return
                wake.clear()
                changed = {}
                for name, sent in wanted.items():
                    content = self._serialized(type_url, name)
                    if content != sent:
                        changed[name] = content
                if not changed:
                    continue
                wanted.update(changed)
                version += 1
                self.metrics.discovery_pushes.labels(_kind(type_url)).inc(len(changed))
                response = discovery_pb2.DiscoveryResponse(
                    version_info=str(version), nonce=str(version), type_url=type_url
                )
                for content in changed.values():
                    response.resources.add().ParseFromString(content)
                yield bytes(response.SerializeToString())
                await asyncio.sleep(_SETTLE_SECONDS)
        finally:
            self._waiting.discard(wake)
            self.metrics.discovery_streams.labels(_kind(type_url)).dec()
            reading.cancel()

    async def _read(
        self, requests: AsyncIterator[bytes], wanted: dict[str, bytes | None], wake: asyncio.Event, type_url: str
    ) -> None:
        """Take requests: names to follow, acknowledgements, refusals. Ends with the stream."""
        async for content in requests:
            try:
                request = discovery_pb2.DiscoveryRequest.FromString(content)
            except DecodeError as error:
                logger.warning("a discovery request cannot be read, its stream ends: %s", error)
                return
            if request.error_detail.message:
                self.metrics.discovery_refusals.labels(_kind(type_url)).inc()
                logger.error("Envoy refuses %s: %s", ", ".join(wanted), request.error_detail.message)
            asked = set(request.resource_names)
            for name in wanted.keys() - asked:
                del wanted[name]
            new = asked - wanted.keys()
            wanted.update(dict.fromkeys(new))
            if new:
                wake.set()


def _kind(type_url: str) -> str:
    return "sds" if type_url == rpc.SDS_TYPE else "eds"
