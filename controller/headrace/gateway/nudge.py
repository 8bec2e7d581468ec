"""Has Envoy Gateway call the hook again when a translation is out of date and nothing else would make it call.

Envoy Gateway does not watch what picks for a pool: its picker's Service and policy; and of the pool it looks at changes
of the spec alone, not at annotations. A change of a route or a grant it may tell of before our informers have heard of
it. It takes the pools that get requests, status included, into what it compares. So their status says that routes are
translated again (see `in_effect`), and a ReferenceGrant of the controller's own, which permits nothing that is there,
is changed to have Envoy Gateway compare."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from headrace.core import GA_GROUP
from headrace.gateway.in_effect import InEffect
from headrace.gateway.metrics import Metrics
from headrace.gateway.snapshot import POOL_KIND, GatewayKey, Snapshot
from headrace.gateway.xds_names import RuleName
from headrace.kube.client import ApiError
from headrace.kube.objects import REFERENCE_GRANTS, apply
from headrace.protocol.objects import GATEWAY_GROUP
from headrace.protocol.translated import RouteKey

logger = logging.getLogger(__name__)

GRANT_NAME = "headrace-gateway-retranslate"
# Changes that come together are looked at together.
_SETTLE_SECONDS = 0.1
# A call that comes by itself comes first.
_PATIENCE_SECONDS = 1.0
# Another replica is asked, and sees to it by itself.
_PATIENCE_FOR_OTHERS_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 60.0
# After so many attempts without a call, Envoy Gateway asks another replica. After as many more, a route that no pool's
# status names is one that no translation uses.
_ATTEMPTS = 5


@dataclass
class _Outdated:
    """A Gateway that is out of date: with which routes, since when, and when something is done about it next."""

    routes: Mapping[RouteKey, str]
    due: float
    attempts: int = 0


@dataclass(eq=False)
class Nudge:
    """Call `changed` after changes, `translated` after translations; `run` causes calls.

    `status_written` waits until the pools' status is written. `compare` makes Envoy Gateway compare, see
    `touch_grant`."""

    in_effect: InEffect
    status_written: Callable[[], Awaitable[None]]
    compare: Callable[[], Awaitable[None]]
    metrics: Metrics
    _: KW_ONLY
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._outdated: dict[GatewayKey, _Outdated] = {}
        self._due = asyncio.Event()

    def changed(self) -> None:
        """Something that a translation depends on may have changed. Not to be called before everything has been
        listed."""
        self.in_effect.start()
        self._due.set()

    def translated(self, named: Mapping[str, frozenset[RuleName]], snapshot: Snapshot) -> None:
        """A hook call about these rules of these route configurations was answered from this snapshot."""
        self.in_effect.translated(named, snapshot)
        self._due.set()

    async def run(self) -> None:
        """Watch over what is in effect until cancelled."""
        while True:
            await self._due.wait()
            await asyncio.sleep(_SETTLE_SECONDS)
            self._due.clear()
            pause = await self.step()
            if pause is not None:
                try:
                    async with asyncio.timeout(pause):
                        await self._due.wait()
                except TimeoutError:
                    self._due.set()

    async def step(self) -> float | None:
        """Do what is due now. The seconds until something is due next; None: nothing is."""
        stale, now = self.in_effect.stale(), self.clock()
        self._outdated = {gateway: outdated for gateway, outdated in self._outdated.items() if gateway in stale}
        for gateway, routes in stale.items():
            outdated = self._outdated.get(gateway)
            if outdated is None or outdated.routes != routes:
                asked = self.in_effect.is_asked(gateway)
                due = now + (_PATIENCE_SECONDS if asked else _PATIENCE_FOR_OTHERS_SECONDS)
                # Changes that go on must not put it off for ever.
                self._outdated[gateway] = _Outdated(routes, due if outdated is None else min(due, outdated.due))
        overdue = {gateway: outdated for gateway, outdated in self._outdated.items() if outdated.due <= now}
        if overdue:
            await self._retranslate(overdue)
        waiting = [outdated.due for outdated in self._outdated.values()]
        return max(0.01, min(waiting) - self.clock()) if waiting else None

    async def _retranslate(self, due: Mapping[GatewayKey, _Outdated]) -> None:
        tried: list[GatewayKey] = []
        for gateway, outdated in due.items():
            if outdated.attempts >= _ATTEMPTS:
                if self.in_effect.is_asked(gateway):
                    logger.info("Envoy Gateway asks here for no translation of Gateway %s", "/".join(gateway))
                    self.in_effect.forget(gateway)
                    outdated.attempts = 0
                elif unpublished := self.in_effect.unpublished(gateway, outdated.routes):
                    logger.info("taking %d routes of Gateway %s for translated", len(unpublished), "/".join(gateway))
                    self.in_effect.assume(gateway, unpublished)
                    continue
            tried.append(gateway)
            outdated.attempts += 1
            outdated.due = self.clock() + min(2.0**outdated.attempts, _LONGEST_PAUSE_SECONDS)
            if not self.in_effect.retranslate(gateway, outdated.routes, outdated.attempts):
                logger.warning("Gateway %s is out of date, and no pool gets requests by it", "/".join(gateway))
        if not tried:
            return
        await self.status_written()
        for gateway in tried:
            self.in_effect.retranslation_published(gateway)
        await self.compare()
        self.metrics.nudges.inc()


async def touch_grant(client: Any, namespace: str) -> None:
    """Change the controller's own ReferenceGrant, which is kept in `namespace`. A failure is logged."""
    grant = {
        "apiVersion": REFERENCE_GRANTS.api_version,
        "kind": "ReferenceGrant",
        "metadata": {"name": GRANT_NAME, "namespace": namespace},
        "spec": {
            "from": [{"group": GATEWAY_GROUP, "kind": "HTTPRoute", "namespace": namespace}],
            "to": [{"group": GA_GROUP, "kind": POOL_KIND, "name": f"none-{time.time_ns():x}"}],
        },
    }
    try:
        await apply(client, REFERENCE_GRANTS, grant, force=True)
    except ApiError as error:
        logger.warning("ReferenceGrant %s/%s is not written: %s", namespace, GRANT_NAME, error)
