"""The task that looks at the servers' health, and tells where none is good."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from headrace.core.pool import VERSION_OF_GROUP
from headrace.datalayer.health_watch import TURN_SECONDS, HealthWatch
from headrace.datalayer.scraper import Scraper
from headrace.epp.options import Options

logger = logging.getLogger(__name__)

# An Event that is told again and again tells nothing.
_QUIET_SECONDS = 300.0

Tell = Callable[[str], Awaitable[None]]


async def watch_health(health: HealthWatch, scraper: Scraper, tell: Tell) -> NoReturn:
    """Look at the servers, time and again. `tell` is given a text when none has become good."""
    told_at, before = float("-inf"), ""
    telling: asyncio.Future[None] | None = None
    while True:
        await asyncio.sleep(TURN_SECONDS)
        for key in health.turn():
            scraper.hasten(key)
        alarm = health.alarm()
        if alarm and not before:
            logger.error("%s", alarm)
        if alarm and not before and health.clock() - told_at >= _QUIET_SECONDS and (telling is None or telling.done()):
            told_at = health.clock()
            telling = asyncio.ensure_future(tell(alarm))
        before = alarm


def tell_by_event(client: Callable[[], Any], options: Options) -> Tell:
    """Write an Event on the pool, where there is one. `client` gives a kubernetes.aio ApiClient, None for none."""

    async def tell(text: str) -> None:
        connected = client()
        if connected is None or not options.pool_name:
            return
        # Imported here: the Kubernetes client takes longer to load than everything else together.
        from headrace.kube.events import Subject, write_event

        version = f"{options.pool_group}/{VERSION_OF_GROUP[options.pool_group]}"
        subject = Subject(version, "InferencePool", options.pool_namespace, options.pool_name)
        await write_event(connected, "headrace-epp", subject, "NoHealthyEndpoint", text)

    return tell
