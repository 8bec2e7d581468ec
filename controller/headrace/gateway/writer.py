"""Writes the status of pools, see `status`, to the API server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime
from typing import Any

from headrace.gateway.metrics import Metrics
from headrace.gateway.names import PoolKey
from headrace.gateway.snapshot import GatewayKey, Object, Snapshot
from headrace.gateway.status import Condition, conditions_of, filter_problems, parents_of_pools, wanted_status
from headrace.gateway.watch import Watch
from headrace.kube.client import ApiError, Resource
from headrace.kube.objects import POOLS, patch_status

logger = logging.getLogger(__name__)

# Changes that come together are written together.
_SETTLE_SECONDS = 0.1
_RETRY_SECONDS = 1.0
# Two replicas that disagree, as two versions may while they replace each other, write no oftener than this.
_DISAGREEMENT_SECONDS = 10.0
_WRITTEN_SECONDS = 5.0


@dataclass(eq=False)
class StatusWriter:
    """Keeps the pools' status. Call `changed` after changes; `run` writes.

    `translated` gives the condition of a pool and a Gateway that says which routes are translated, or None;
    `untrusted` why a picker's certificate is not trusted. `on_written` is told of each status that was written."""

    client: Any
    watch: Watch
    metrics: Metrics
    _: KW_ONLY
    translated: Callable[[PoolKey, GatewayKey], Condition | None] = lambda key, gateway: None
    untrusted: Callable[[PoolKey], str] = lambda key: ""
    on_written: Callable[[PoolKey, Mapping[str, Any]], None] = lambda key, status: None
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._due = asyncio.Event()
        self._wanted_passes, self._passes = 0, 0
        self._passed = asyncio.Event()
        # What the API server answered to our own writes: the informer hears of them later.
        self._answers: dict[PoolKey, Object] = {}
        self._last: dict[PoolKey, tuple[object, float]] = {}
        self._written: dict[PoolKey, frozenset[GatewayKey]] = {}

    def changed(self) -> None:
        """Something that status depends on may have changed."""
        self._due.set()

    async def written(self) -> None:
        """Until everything is written as it should be now, or some seconds have passed."""
        self._wanted_passes += 1
        wanted = self._wanted_passes
        self._due.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_WRITTEN_SECONDS):
                while self._passes < wanted:
                    self._passed.clear()
                    await self._passed.wait()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._due.wait()
            await asyncio.sleep(_SETTLE_SECONDS)
            self._due.clear()
            begun = self._wanted_passes
            if await self._write_all():
                self._passes = begun
                self._passed.set()
            else:
                # The object changed meanwhile, or the API server is away: decide again from what is new.
                asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._due.set)

    def pools(self) -> dict[PoolKey, tuple[Resource, Object]]:
        """The newest pool objects: the informers', or what our own last writes made of them."""
        found = {
            (resource.group, namespace, name): (resource, pool)
            for resource in POOLS.values()
            for (namespace, name), pool in self.watch.objects(resource).items()
        }
        for key in list(self._answers):
            known = found.get(key)
            if known is None or not _is_newer(self._answers[key], known[1]):
                del self._answers[key]
            else:
                found[key] = (known[0], self._answers[key])
        return found

    async def _write_all(self) -> bool:
        """Write every status that is not as it should be. False: something has to be tried again."""
        snapshot = self.watch.snapshot
        parents = parents_of_pools(snapshot)
        problems = filter_problems(snapshot)
        all_done = True
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for key, (resource, pool) in self.pools().items():
            own = parents.get(key, {})
            try:
                conditions = {
                    gateway: self._conditions(snapshot, key, gateway, accepted, problems.get(key, {}).get(gateway, ()))
                    for gateway, accepted in own.items()
                }
                status = wanted_status(pool, key, snapshot, conditions, now, self._written.get(key, frozenset()))
            except (ValueError, TypeError, KeyError, AttributeError, IndexError):
                # An object that nobody foresaw is no reason to leave the others without a status.
                logger.exception("no status for InferencePool %s", "/".join(key))
                continue
            done = status is None or self._is_disputed(key, status) or await self._write(resource, pool, key, status)
            all_done = all_done and done
            self._written[key] = frozenset(own) if done else self._written.get(key, frozenset()) | frozenset(own)
        return all_done

    def _conditions(
        self, snapshot: Snapshot, key: PoolKey, gateway: GatewayKey, accepted: bool, problems: Sequence[str]
    ) -> list[Condition]:
        untrusted, translated = self.untrusted(key), self.translated(key, gateway)
        found = conditions_of(snapshot, key, route_accepted=accepted, untrusted=untrusted, filter_problems=problems)
        return [*found, translated] if translated is not None else [*found]

    def _is_disputed(self, key: PoolKey, status: Mapping[str, Any]) -> bool:
        """Whether somebody has just replaced the very status that is wanted. It is written later."""
        content, until = self._last.get(key, (None, 0.0))
        pause = until - self.clock()
        if content != _without_times(status) or pause <= 0:
            return False
        asyncio.get_running_loop().call_later(pause, self._due.set)
        return True

    async def _write(self, resource: Resource, pool: Object, key: PoolKey, status: dict[str, Any]) -> bool:
        try:
            self._answers[key] = await patch_status(self.client, resource, pool, status)
        except ApiError as error:
            if error.status == 404:  # The pool is gone.
                return True
            result = "conflict" if error.status == 409 else "failed"
            self.metrics.status_writes.labels(result).inc()
            if error.status != 409:
                logger.warning("the status of %s %s is not written: %s", resource, pool["metadata"].get("name"), error)
            return False
        self._last[key] = (_without_times(status), self.clock() + _DISAGREEMENT_SECONDS)
        self.metrics.status_writes.labels("ok").inc()
        self.on_written(key, status)
        return True


def _is_newer(one: Object, other: Object) -> bool:
    """Whether an object is a newer version than another of the same uid."""
    first, second = one["metadata"], other["metadata"]
    try:
        return first["uid"] == second["uid"] and int(first["resourceVersion"]) > int(second["resourceVersion"])
    except (KeyError, TypeError, ValueError):
        return False


def _without_times(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_times(entry) for key, entry in value.items() if key != "lastTransitionTime"}
    return [_without_times(entry) for entry in value] if isinstance(value, list) else value
