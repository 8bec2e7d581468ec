"""Whether the gateway has translated what a replacement has changed of routes.

Headrace's gateway controller says in the pools' status which generation of each route it has translated. A gateway that
says nothing of a route is believed to follow it at once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from headrace.kube.objects import POOLS, find
from headrace.protocol.translated import RouteKey, published_routes, uid_of
from headrace.replace.ownership import Object
from headrace.replace.plan import PoolRef

logger = logging.getLogger(__name__)

# A gateway that takes longer has another trouble: the gates tell what became of the requests.
_PATIENCE_SECONDS = 60.0
# Between these looks nobody asks whether the replacement is to be taken back: not for long.
_LOOKS = 8
_LOOK_SECONDS = 0.25


@dataclass(eq=False)
class Translations:
    """Asks the status of `pools`. `note` takes routes as the API server has them after a change."""

    client: Any
    pools: Sequence[PoolRef]
    _: KW_ONLY
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _routes: dict[RouteKey, Object] = field(default_factory=dict, init=False)
    _since: float | None = field(default=None, init=False)

    def note(self, key: RouteKey, route: Object) -> None:
        """This is how a route is now. Another generation has its own time to be translated."""
        before = self._routes.get(key, {})
        if _generation(before) != _generation(route):
            self._since = None
        self._routes[key] = route

    async def complete(self) -> bool:
        """Whether every noted route is translated, or it took too long, which is logged. Waits a little for it.

        Raises ApiError."""
        for _ in range(_LOOKS):
            paths = [POOLS[ref.group].path(ref.namespace, ref.name) for ref in self.pools]
            old = behind(self._routes, [await find(self.client, path) or {} for path in paths])
            if not old or self._is_too_late(old):
                self._routes.clear()
                self._since = None
                return True
            await self.sleep(_LOOK_SECONDS)
        return False

    def _is_too_late(self, old: tuple[str, ...]) -> bool:
        now = self.clock()
        if self._since is None:
            self._since = now
        if now < self._since + _PATIENCE_SECONDS:
            return False
        logger.warning("going on, though the gateway has not translated %s yet", ", ".join(old))
        return True


def behind(routes: Mapping[RouteKey, Object], pools: Iterable[Object]) -> tuple[str, ...]:
    """The routes of which some gateway says in these pools' status that it has translated an older generation."""
    entries = [routes for pool in pools for _, routes in published_routes(pool)]
    found = set()
    for key, route in routes.items():
        metadata = route.get("metadata") or {}
        said = [entry[key] for entry in entries if key in entry and entry[key].uid == uid_of(metadata)]
        if any(one.generation < _generation(route) for one in said):
            found.add("{} {}/{}".format(*key))
    return tuple(sorted(found))


def _generation(route: Object) -> int:
    return int((route.get("metadata") or {}).get("generation") or 0)
