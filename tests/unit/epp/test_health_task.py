"""The task that looks at the servers' health."""

from __future__ import annotations

import asyncio
from random import Random

from headrace.core import FailureMode
from headrace.datalayer.metrics_page import ServerMetrics
from headrace.datalayer.scraper import Scraper, ScrapeSettings
from headrace.epp.composition import Components
from headrace.epp.health_task import watch_health
from headrace.serving.tasks import Supervisor

from ...hang import HANG_SECONDS
from .test_director import Clock, director, endpoints


async def test_people_are_told_once_where_no_server_is_good() -> None:
    clock = Clock()
    parts = director(clock=clock)
    parts.pool.endpoints_changed(endpoints(2), FailureMode.CLOSE)
    told: asyncio.Queue[str] = asyncio.Queue()

    def pages(*, asleep: bool) -> None:
        for record in parts.pool.store.records():
            record.scraped(ServerMetrics(0, 0, 0.0, progress=1.0, asleep=asleep), clock())
            parts.pool.scraped(record)

    async with Supervisor() as tasks:
        scraper = Scraper(parts.pool.store, ScrapeSettings(), tasks, clock=clock, rng=Random(1))
        tasks.start(watch_health(parts.health, scraper, told.put), "watch health")
        pages(asleep=False)
        assert parts.health.alarm() == ""
        async with asyncio.timeout(HANG_SECONDS):
            for _ in range(2):
                pages(asleep=True)
                assert "2 of them: asleep" in await told.get()
                pages(asleep=False)
                assert parts.health.alarm() == ""
                # Soon again is no news; later it is.
                clock.now += 1.0
                await turns(parts, clock)
                pages(asleep=True)
                await turns(parts, clock)
                assert told.empty()
                pages(asleep=False)
                clock.now += 400.0
                await turns(parts, clock)


async def turns(parts: Components, clock: Clock) -> None:
    """Until the task has looked."""
    clock.now += 0.01
    while parts.health._turned_at != clock.now:  # noqa: ASYNC110 (it looks every 0.2 s)
        await asyncio.sleep(0.01)
