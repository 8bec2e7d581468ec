"""The pool and its Pods, from the Kubernetes API.

Needs get, list and watch on Pods of the namespace and on the pool; what else it reads, it can do without."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from headrace.config.pools import parse_pool
from headrace.core import Endpoint, FailureMode, InvalidPool, PickerReference, Pool
from headrace.core.objective import PoolReference
from headrace.core.pool import VERSION_OF_GROUP
from headrace.datalayer.pods import PodEndpoints
from headrace.epp.options import Options
from headrace.epp.policies import Policies
from headrace.epp.policy_watch import follow_policies
from headrace.kube.reflector import OnMalformed, Reflector, Resource
from headrace.serving.tasks import Supervisor

logger = logging.getLogger(__name__)

# Changes that come together are applied together: a rollout of a large pool is many small changes.
_COALESCE_SECONDS = 0.02
_PODS = Resource(group="", version="v1", plural="pods", namespaced=True)


# Is told what the pool's endpoints and its failure mode are from now on.
OnPool = Callable[[tuple[Endpoint, ...], FailureMode], None]


async def watch_all(
    client: Any, options: Options, on_pool: OnPool, policies: Policies, on_malformed: OnMalformed
) -> None:
    """Follow the pool, or the Pods that flags select as if a pool did, and what speaks of the pool. Never returns.

    `client` is a kubernetes.aio ApiClient. A pool that is deleted, or that cannot be used, has no endpoints until that
    is put right. `on_malformed` is told, with the kind's plural, of what the API server says that cannot be used."""
    async with Supervisor() as tasks:
        if options.pool_name:
            pool = PoolReference(options.pool_name, options.pool_group)
            follow_policies(tasks, client, options.pool_namespace, pool, policies, on_malformed)
        await _PoolWatch(client, options, on_pool, on_malformed, tasks).run()


@dataclass(eq=False)
class _PoolWatch:
    """One iteration is `_apply`: compare what is watched with what the pool says, then tell the endpoints."""

    client: Any
    options: Options
    on_pool: OnPool
    on_malformed: OnMalformed
    tasks: Supervisor

    def __post_init__(self) -> None:
        self._changed = asyncio.Event()
        self._pool: Pool | None = None
        self._complaint = ""
        self._pods: Reflector | None = None
        self._pods_task: asyncio.Task[NoReturn] | None = None
        self._endpoints = PodEndpoints()

    async def run(self) -> None:
        options = self.options
        group, name = options.pool_group, options.pool_name
        pools = None
        if name:
            resource = Resource(group, VERSION_OF_GROUP[group], "inferencepools", namespaced=True)
            pools = self._reflector(resource, field_selector=f"metadata.name={name}")
            self.tasks.start(pools.run(), "watch inferencepools")
        else:
            self._changed.set()
        while True:
            await self._changed.wait()
            await asyncio.sleep(_COALESCE_SECONDS)
            self._changed.clear()
            if pools is None:
                self._apply(_pool_of(options))
            else:
                self._apply(self._read(pools.objects.get((options.pool_namespace, name))))

    def _reflector(
        self, resource: Resource, *, label_selector: str | None = None, field_selector: str | None = None
    ) -> Reflector:
        return Reflector(
            self.client,
            resource,
            namespace=self.options.pool_namespace,
            on_change=self._changed.set,
            on_malformed=self.on_malformed,
            label_selector=label_selector,
            field_selector=field_selector,
        )

    def _apply(self, pool: Pool | None) -> None:
        before, self._pool = self._pool, pool
        if before is not None and (pool is None or pool.label_selector != before.label_selector):
            assert self._pods_task is not None
            self._pods_task.cancel()
            self._pods = None
            if pool is None:
                self.on_pool((), before.failure_mode)
        if pool is None:
            return
        if self._pods is None:
            self._pods = self._reflector(_PODS, label_selector=pool.label_selector)
            self._pods_task = self.tasks.start(self._pods.run(), "watch pods")
        if self._pods.synced:
            self.on_pool(self._endpoints.of(self._pods.objects, pool), pool.failure_mode)

    def _read(self, found: Mapping[str, Any] | None) -> Pool | None:
        options = self.options
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


def _pool_of(options: Options) -> Pool:
    """What the flags select, as a pool."""
    return Pool(
        group=options.pool_group,
        namespace=options.pool_namespace,
        name=options.served_name,
        selector=options.endpoint_selector,
        target_ports=options.endpoint_target_ports,
        picker=PickerReference(options.served_name, failure_mode=options.static_failure_mode),
    )
