"""The snapshot that a hook call is translated from: the informers' state, and a list of each kind that misses objects.

Envoy Gateway calls the hook once for a change, and not again when our informers have caught up with it. The informers
hear of a change when Envoy Gateway does, and its way to the hook is longer. Four things make up for the rest:

- what has arrived is read before the answer, and a call that no news has preceded waits a moment for its news;
- a kind with no open watch is listed, and so is one that lacks an object which the call names;
- where a list fails, a route and its pools keep what their last translation had;
- what was translated from an older state all the same is translated again: see `in_effect` and `nudge`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import KW_ONLY, dataclass

from headrace.gateway.lacking import Missing, Recollection, lacking
from headrace.gateway.metrics import Metrics
from headrace.gateway.snapshot import Object, Snapshot
from headrace.gateway.watch import Watch
from headrace.gateway.xds_names import RuleName
from headrace.kube.client import ApiError, Resource

logger = logging.getLogger(__name__)

# For what lies in our sockets already.
_DRAIN_SECONDS = 0.005
# For the news of a call that came before its news did: a part of the 200 ms that a call may take.
_NEWS_SECONDS = 0.05
_LIST_SECONDS = 1.0
# What a list did not hold is not looked for again before this: a route may name a pool that is not there for days.
_ABSENCE_BELIEVED_SECONDS = 1.0


@dataclass(eq=False)
class Knowledge:
    """Gives each hook call its snapshot. `listed` lists a kind in the whole cluster, or raises ApiError."""

    informers: Watch
    listed: Callable[[Resource], Awaitable[list[Object]]]
    metrics: Metrics
    _: KW_ONLY
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._recollection = Recollection()
        self._seen = -1
        self._absent_until: dict[Missing, float] = {}

    async def snapshot_for(self, named: frozenset[RuleName]) -> Snapshot:
        """The snapshot for a call that names these rules; what it holds of them is remembered."""
        await self._await_news()
        snapshot = self.informers.snapshot
        behind = self.informers.behind()
        missing = lacking(named, snapshot)
        now = self.clock()
        self._absent_until = {entry: until for entry, until in self._absent_until.items() if until > now}
        sought = {entry for entry in missing if entry not in self._absent_until}
        wanted = behind | {entry.resource for entry in sought}
        if wanted:
            fresh = await self._read(wanted)
            snapshot = self.informers.snapshot_with(fresh)
            missing = lacking(named, snapshot)
            until = self.clock() + _ABSENCE_BELIEVED_SECONDS
            self._absent_until |= {entry: until for entry in missing if entry.resource in fresh}
        if missing:
            snapshot = self._recollection.complete(snapshot, missing, frozenset(self._absent_until))
        self._recollection.keep(named, snapshot)
        return snapshot

    async def _await_news(self) -> None:
        await asyncio.sleep(_DRAIN_SECONDS)
        if self.informers.news == self._seen:
            try:
                async with asyncio.timeout(_NEWS_SECONDS):
                    await self.informers.wait_news(self._seen)
            except TimeoutError:
                pass  # the change was one of a kind that is not translated here
        self._seen = self.informers.news

    async def _read(self, wanted: Iterable[Resource]) -> dict[Resource, list[Object]]:
        """One list of each kind, all at once, bounded in time. A kind that cannot be listed is left out."""
        fresh: dict[Resource, list[Object]] = {}

        async def read(resource: Resource) -> None:
            self.metrics.translation_lists.labels(str(resource)).inc()
            try:
                async with asyncio.timeout(_LIST_SECONDS):
                    fresh[resource] = await self.listed(resource)
            except TimeoutError:
                logger.warning("%s: no list within %s s: the informer's are used", resource, _LIST_SECONDS)
            except ApiError as error:
                logger.warning("%s: no list, the informer's are used: %s", resource, error)

        await asyncio.gather(*(read(resource) for resource in sorted(wanted, key=str)))
        return fresh
