"""Has Envoy Gateway call the hook again when a translation is out of date and nothing else would make it call.

Envoy Gateway does not watch what picks for a pool: its picker's Service and policy; and of the pool it looks at changes
of the spec alone, not at annotations. It does take the whole pool, status included, into what it compares; so once the
pool's status says its new plan, any reconcile leads to a call. A ReferenceGrant of the controller's own, which permits
nothing that is there, is changed to cause one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from headrace.core import GA_GROUP
from headrace.gateway.metrics import Metrics
from headrace.gateway.names import PoolKey
from headrace.gateway.plans import pool_plan
from headrace.gateway.snapshot import GATEWAY_GROUP, POOL_KIND, Snapshot
from headrace.gateway.watch import REFERENCE_GRANTS
from headrace.kube.client import ApiError
from headrace.kube.patch import apply

logger = logging.getLogger(__name__)

GRANT_NAME = "headrace-gateway-retranslate"
# A call that comes by itself, and the write of the status, come first.
_PATIENCE_SECONDS = 1.0
# The Envoy Gateway that made a translation here may ask another replica by now: then a change is out of our sight.
_TRIES = 5


class Nudge:
    """Call `changed` after changes, `translated` after translations; `run` causes calls.

    `namespace` is where the grant is kept; "" causes none."""

    def __init__(
        self,
        client: Any,
        namespace: str,
        snapshot: Callable[[], Snapshot],
        metrics: Metrics,
        *,
        verify_by_default: bool,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._snapshot = snapshot
        self._metrics = metrics
        self._verify_by_default = verify_by_default
        self._in_effect: dict[PoolKey, str] | None = None
        self._asked = False
        self._due = asyncio.Event()

    def changed(self) -> None:
        """Something that a plan depends on may have changed. Not to be called before everything has been listed."""
        if self._in_effect is None:
            # What another replica translated, or this one before a restart, was as it is now.
            self._in_effect = self._plans()
        self._due.set()

    def translated(self, plans: Mapping[PoolKey, str]) -> None:
        """These plans are in effect now."""
        self._asked = True
        self._in_effect = {**(self._in_effect or {}), **plans}
        self._due.set()

    def stale(self) -> dict[PoolKey, str]:
        """The pools whose plan is another than the one in effect, with that other plan."""
        if self._in_effect is None:
            return {}
        now = self._plans()
        self._in_effect = {key: plan for key, plan in self._in_effect.items() if key in now}
        return {key: now[key] for key, plan in self._in_effect.items() if now[key] != plan}

    def _plans(self) -> dict[PoolKey, str]:
        snapshot = self._snapshot()
        verify = self._verify_by_default
        return {key: pool_plan(snapshot, pool, verify_by_default=verify) for key, pool in snapshot.pools.items()}

    async def run(self) -> None:
        """Watch over the plans until cancelled."""
        if not self._namespace:
            logger.warning("no --namespace: a change of a picker's Service waits for the next change of a route")
        tries = 0
        before: dict[PoolKey, str] = {}
        while True:
            await self._due.wait()
            await asyncio.sleep(_PATIENCE_SECONDS)
            self._due.clear()
            found = self.stale()
            if found != before:
                tries, before = 0, found
            if not found or not self._namespace:
                continue
            if tries == (_TRIES if self._asked else 1):
                logger.info("Envoy Gateway asks here for no translation of %s", sorted("/".join(key) for key in found))
                self._in_effect = {**(self._in_effect or {}), **found}
                continue
            tries += 1
            await self._cause_call()
            asyncio.get_running_loop().call_later(2.0**tries, self._due.set)

    async def _cause_call(self) -> None:
        grant = {
            "apiVersion": f"{REFERENCE_GRANTS.group}/{REFERENCE_GRANTS.version}",
            "kind": "ReferenceGrant",
            "metadata": {"name": GRANT_NAME, "namespace": self._namespace},
            "spec": {
                "from": [{"group": GATEWAY_GROUP, "kind": "HTTPRoute", "namespace": self._namespace}],
                "to": [{"group": GA_GROUP, "kind": POOL_KIND, "name": f"none-{time.time_ns():x}"}],
            },
        }
        try:
            await apply(self._client, REFERENCE_GRANTS, grant, force=True)
        except ApiError as error:
            logger.warning("ReferenceGrant %s/%s is not written: %s", self._namespace, GRANT_NAME, error)
        self._metrics.nudges.inc()
