"""Writes what `status` says to the API server, and a warning event where a picker is not verified."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from headrace.core import GA_GROUP
from headrace.gateway.metrics import Metrics
from headrace.gateway.names import PoolKey
from headrace.gateway.snapshot import Object
from headrace.gateway.status import GatewayKey, parents_of_pools, wanted_status
from headrace.gateway.watch import EXTENSION_POOLS, GA_POOLS, POOLS, Watch
from headrace.kube.client import ApiError, Resource, request
from headrace.kube.patch import patch_status

logger = logging.getLogger(__name__)

# Changes that come together are written together.
_SETTLE_SECONDS = 0.1
_RETRY_SECONDS = 1.0
_EVENTS = Resource("", "v1", "events", True)


class StatusWriter:
    """Keeps the pools' status. Call `changed` after changes; `run` writes."""

    def __init__(
        self, client: Any, watch: Watch, metrics: Metrics, controller_name: str, *, verify_by_default: bool
    ) -> None:
        self._client = client
        self._watch = watch
        self._metrics = metrics
        self._controller_name = controller_name
        self._verify_by_default = verify_by_default
        self._due = asyncio.Event()
        self._written: dict[PoolKey, frozenset[GatewayKey]] = {}
        self._warned: set[PoolKey] = set()
        self._warnings: asyncio.Queue[PoolKey] = asyncio.Queue()

    def changed(self) -> None:
        """Something that status depends on may have changed."""
        self._due.set()

    def unverified(self, keys: Iterable[PoolKey]) -> None:
        """These pools' pickers are used without verification: one warning event for each."""
        for key in keys:
            if key not in self._warned:
                self._warned.add(key)
                self._warnings.put_nowait(key)

    async def run(self) -> None:
        """Write until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._warn(), name="warning events")
            while True:
                await self._due.wait()
                await asyncio.sleep(_SETTLE_SECONDS)
                self._due.clear()
                if not await self._write_all():
                    # The object changed meanwhile, or the API server is away: decide again from what is new.
                    asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._due.set)

    async def _write_all(self) -> bool:
        """Write every status that is not as it should be. False: something has to be tried again."""
        snapshot = self._watch.snapshot
        parents = parents_of_pools(snapshot, self._controller_name)
        all_done = True
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for resource in POOLS:
            for (namespace, name), pool in self._watch.objects(resource).items():
                key = (resource.group, namespace, name)
                own = parents.get(key, {})
                try:
                    status = wanted_status(
                        pool,
                        key,
                        snapshot,
                        own,
                        self._controller_name,
                        now,
                        self._written.get(key, frozenset()),
                        verify_by_default=self._verify_by_default,
                    )
                except (ValueError, TypeError, KeyError, AttributeError, IndexError):
                    # An object that nobody foresaw is no reason to leave the others without a status.
                    logger.exception("no status for InferencePool %s", "/".join(key))
                    continue
                done = status is None or await self._write(resource, pool, status)
                all_done = all_done and done
                self._written[key] = frozenset(own) if done else self._written.get(key, frozenset()) | frozenset(own)
        return all_done

    async def _write(self, resource: Resource, pool: Object, status: dict[str, Any]) -> bool:
        try:
            await patch_status(self._client, resource, pool, status)
        except ApiError as error:
            if error.status == 404:  # The pool is gone.
                return True
            result = "conflict" if error.status == 409 else "failed"
            self._metrics.status_writes.labels(result).inc()
            if error.status != 409:
                logger.warning("the status of %s %s is not written: %s", resource, pool["metadata"].get("name"), error)
            return False
        self._metrics.status_writes.labels("ok").inc()
        return True

    async def _warn(self) -> None:
        while True:
            key = await self._warnings.get()
            group, namespace, name = key
            resource = GA_POOLS if group == GA_GROUP else EXTENSION_POOLS
            pool = self._watch.objects(resource).get((namespace, name))
            if pool is None:
                continue
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
                    "uid": pool["metadata"].get("uid", ""),
                },
                "type": "Warning",
                "reason": "EndpointPickerUnverified",
                "message": "TLS to the endpoint picker is not verified: write a BackendTLSPolicy for its Service",
                "source": {"component": "headrace-gateway"},
                "firstTimestamp": now,
                "lastTimestamp": now,
                "count": 1,
            }
            try:
                await request(
                    self._client,
                    "POST",
                    _EVENTS.path(namespace),
                    body=event,
                    content_type="application/json",
                )
            except ApiError as error:
                logger.warning("no warning event for InferencePool %s/%s: %s", namespace, name, error)
