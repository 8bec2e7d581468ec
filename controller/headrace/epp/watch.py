"""The pool and its Pods, from the Kubernetes API.

Needs get, list and watch on Pods of the namespace and on the pool; what else it reads, it can do without."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, NoReturn, Protocol

from headrace.config.pools import parse_pool
from headrace.core import Endpoint, InvalidPool, PickerReference, Pool
from headrace.core.objective import PoolReference
from headrace.core.pool import VERSION_OF_GROUP
from headrace.datalayer.pods import PodEndpoints
from headrace.epp.options import Options
from headrace.epp.policies import Policies
from headrace.epp.policy_watch import watch_policies
from headrace.kube.reflector import OnMalformed, Reflector, Resource
from headrace.serving.tasks import forever

logger = logging.getLogger(__name__)

# Changes that come together are applied together: a rollout of a large pool is many small changes.
_COALESCE_SECONDS = 0.02
_PODS = Resource(group="", version="v1", plural="pods", namespaced=True)


class PoolListener(Protocol):
    """Who wants to know what the pool is."""

    async def pool_changed(self, pool: Pool, endpoints: tuple[Endpoint, ...]) -> None:
        """The pool or its endpoints are this from now on."""


async def watch_all(
    client: Any, options: Options, listener: PoolListener, policies: Policies, on_malformed: OnMalformed
) -> None:
    """All that the picker follows: its pool (or the Pods that stand for one) and what speaks of it. Never returns.

    `on_malformed` is told, with the kind's plural, of what the API server says that cannot be used."""
    async with asyncio.TaskGroup() as tasks:
        if options.endpoint_selector:
            tasks.create_task(watch_selected_pods(client, options, listener, on_malformed), name="watch pods")
            return
        tasks.create_task(watch_pool(client, options, listener, on_malformed), name="watch the pool")
        pool = PoolReference(options.pool_name, options.pool_group)
        tasks.create_task(
            watch_policies(client, options.pool_namespace, pool, policies, on_malformed), name="watch policies"
        )


async def watch_selected_pods(client: Any, options: Options, listener: PoolListener, on_malformed: OnMalformed) -> None:
    """Tell `listener` of the Pods that flags select, as if a pool did. Never returns."""
    pool = Pool(
        group=options.pool_group,
        namespace=options.pool_namespace,
        name=options.served_name,
        selector=options.endpoint_selector,
        target_ports=options.endpoint_target_ports,
        picker=PickerReference(options.served_name, failure_mode=options.static_failure_mode),
    )
    changed = asyncio.Event()
    endpoints = PodEndpoints()
    pods = Reflector(
        client,
        _PODS,
        namespace=pool.namespace,
        label_selector=pool.label_selector,
        on_change=changed.set,
        on_malformed=on_malformed,
    )
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(forever(pods.run(), "follow pods"), name="follow pods")
        while True:
            await changed.wait()
            await asyncio.sleep(_COALESCE_SECONDS)
            changed.clear()
            await listener.pool_changed(pool, endpoints.of(pods.objects, pool))


async def watch_pool(client: Any, options: Options, listener: PoolListener, on_malformed: OnMalformed) -> None:
    """Tell `listener` of the pool and its endpoints whenever they change. Never returns.

    `client` is a kubernetes.aio ApiClient. A pool that is deleted, or that cannot be used, has no endpoints until that
    is put right."""
    await _Watch(client, options, listener, on_malformed).run()


class _Watch:
    """One iteration is `_apply`: compare what is watched with what the pool says, then tell the endpoints."""

    def __init__(self, client: Any, options: Options, listener: PoolListener, on_malformed: OnMalformed) -> None:
        self._client = client
        self._on_malformed = on_malformed
        self._options = options
        self._listener = listener
        self._changed = asyncio.Event()
        self._pool: Pool | None = None
        self._complaint = ""
        self._pods: Reflector | None = None
        self._pods_task: asyncio.Task[NoReturn] | None = None
        self._endpoints = PodEndpoints()

    async def run(self) -> None:
        options = self._options
        pools = Reflector(
            self._client,
            Resource(
                group=options.pool_group,
                version=VERSION_OF_GROUP[options.pool_group],
                plural="inferencepools",
                namespaced=True,
            ),
            namespace=options.pool_namespace,
            field_selector=f"metadata.name={options.pool_name}",
            on_change=self._changed.set,
            on_malformed=self._on_malformed,
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(forever(pools.run(), "watch inferencepools"), name="watch inferencepools")
            while True:
                await self._changed.wait()
                await asyncio.sleep(_COALESCE_SECONDS)
                self._changed.clear()
                found = pools.objects.get((options.pool_namespace, options.pool_name))
                await self._apply(found, tasks)

    async def _apply(self, found: Mapping[str, Any] | None, tasks: asyncio.TaskGroup) -> None:
        pool = self._read(found)
        selector = None if self._pool is None else self._pool.label_selector
        if pool is None:
            if self._pool is not None:
                await self._listener.pool_changed(self._pool, ())
            self._stop_pods()
            self._pool = None
            return
        self._pool = pool
        if self._pods is None or selector != pool.label_selector:
            self._stop_pods()
            self._pods = Reflector(
                self._client,
                _PODS,
                namespace=pool.namespace,
                label_selector=pool.label_selector,
                on_change=self._changed.set,
                on_malformed=self._on_malformed,
            )
            self._pods_task = tasks.create_task(forever(self._pods.run(), "watch pods"), name="watch pods")
        if self._pods.synced:
            await self._listener.pool_changed(pool, self._endpoints.of(self._pods.objects, pool))

    def _read(self, found: Mapping[str, Any] | None) -> Pool | None:
        options = self._options
        complaint = ""
        pool = None
        if found is None:
            complaint = (
                f"there is no InferencePool {options.pool_namespace}/{options.pool_name} in {options.pool_group}"
            )
        else:
            try:
                # Items of a list carry neither: the list does.
                api_version = f"{options.pool_group}/{VERSION_OF_GROUP[options.pool_group]}"
                pool = parse_pool({"apiVersion": api_version, "kind": "InferencePool", **found})
            except InvalidPool as error:
                complaint = f"the InferencePool cannot be used: {error}"
        if complaint and complaint != self._complaint:
            logger.warning("%s", complaint)
        self._complaint = complaint
        return pool

    def _stop_pods(self) -> None:
        if self._pods_task is not None:
            self._pods_task.cancel()
        self._pods = self._pods_task = None
