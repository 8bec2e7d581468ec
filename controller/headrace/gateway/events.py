"""Warning events on pools, for `kubectl describe`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from headrace.core import GA_GROUP
from headrace.gateway.names import PoolKey
from headrace.gateway.snapshot import Object
from headrace.gateway.watch import EXTENSION_POOLS, GA_POOLS
from headrace.kube.client import ApiError, Resource, request

logger = logging.getLogger(__name__)

_EVENTS = Resource("", "v1", "events", True)
_MAX_MESSAGE = 1000


class Events:
    """Writes each warning once, until it is withdrawn. `pool` gives a pool's object; `run` writes."""

    def __init__(self, client: Any, pool: Callable[[PoolKey], Object | None]) -> None:
        self._client = client
        self._pool = pool
        self._said: set[tuple[PoolKey, str]] = set()
        self._waiting: asyncio.Queue[tuple[PoolKey, str, str]] = asyncio.Queue()

    def warn(self, key: PoolKey, reason: str, message: str) -> None:
        """Say something of a pool that is not said yet. `reason` is in CamelCase."""
        if (key, reason) not in self._said:
            self._said.add((key, reason))
            self._waiting.put_nowait((key, reason, message))

    def withdraw(self, key: PoolKey, reason: str) -> None:
        """It holds no longer: when it does again, that is said again."""
        self._said.discard((key, reason))

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            key, reason, message = await self._waiting.get()
            pool = self._pool(key)
            if pool is not None:
                await self._write(key, str(pool["metadata"].get("uid", "")), reason, message)

    async def _write(self, key: PoolKey, uid: str, reason: str, message: str) -> None:
        group, namespace, name = key
        resource = GA_POOLS if group == GA_GROUP else EXTENSION_POOLS
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{name[:200]}.", "namespace": namespace},
            "involvedObject": {
                "apiVersion": f"{resource.group}/{resource.version}",
                "kind": "InferencePool",
                "namespace": namespace,
                "name": name,
                "uid": uid,
            },
            "type": "Warning",
            "reason": reason,
            "message": message[:_MAX_MESSAGE],
            "source": {"component": "headrace-gateway"},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            path = _EVENTS.path(namespace)
            await request(self._client, "POST", path, body=event, content_type="application/json")
        except ApiError as error:
            logger.warning("no warning event for InferencePool %s/%s: %s", namespace, name, error)
