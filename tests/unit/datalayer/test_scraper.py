"""The scraper's pace, and its pages over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest
from aiohttp import web

from headrace.core import Endpoint
from headrace.datalayer.engines import ENGINES
from headrace.datalayer.exposition import PageLimits
from headrace.datalayer.metrics_page import MetricsReader
from headrace.datalayer.scraper import Scraper, ScrapeSettings, interval, page_url
from headrace.datalayer.store import EndpointRecord, EndpointStore
from headrace.serving.tasks import Supervisor

from ...hang import HANG_SECONDS
from ...turns import counted_turns

SETTINGS = ScrapeSettings(busy_seconds=0.2, idle_seconds=5.0, max_pages_per_second=100.0, jitter=0.0)


@pytest.mark.parametrize(
    ("busy", "endpoints", "failures", "seconds"),
    [
        (True, 1, 0, 0.2),
        (True, 20, 0, 0.2),
        # A thousand busy servers share a hundred pages a second.
        (True, 1000, 0, 10.0),
        (False, 1, 0, 5.0),
        (False, 500, 0, 5.0),
        # So do a thousand idle ones.
        (False, 1000, 0, 10.0),
        # What fails is asked again soon, then less and less often.
        (False, 1, 1, 5.0),
        (True, 1, 1, 0.4),
        (True, 1, 3, 1.6),
        (True, 1, 50, 5.0),
        (True, 1000, 1, 10.0),
    ],
)
def test_the_pace(busy: bool, endpoints: int, failures: int, seconds: float) -> None:
    assert interval(SETTINGS, busy=busy, endpoints=endpoints, failures=failures, rng=Random(1)) == seconds


def test_jitter_spreads_the_pages() -> None:
    rng = Random(1)
    settings = ScrapeSettings(jitter=0.2)
    found = [interval(settings, busy=True, endpoints=1, failures=0, rng=rng) for _ in range(200)]
    assert min(found) >= 0.2 * 0.8
    assert max(found) <= 0.2 * 1.2
    assert max(found) - min(found) > 0.05


def test_where_pages_are() -> None:
    v6 = Endpoint(namespace="n", pod_name="p", address="fd00::1", port=8000)
    assert page_url(v6, ENGINES["vllm"], SETTINGS) == "http://[fd00::1]:8000/metrics"
    assert page_url(v6, ENGINES["trtllm-serve"], SETTINGS) == "http://[fd00::1]:8000/prometheus/metrics"
    assert page_url(v6, ENGINES["vllm"], ScrapeSettings(path="/x", port=9)) == "http://[fd00::1]:9/x"


@asynccontextmanager
async def scraped(
    handler: object, host: str = "127.0.0.1", **settings: object
) -> AsyncIterator[tuple[Scraper, EndpointRecord, EndpointStore]]:
    app = web.Application()
    app.router.add_get("/metrics", handler)  # type: ignore[arg-type]
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, host, 0).start()
    store = EndpointStore()
    target = Endpoint(namespace="n", pod_name="p", address="127.0.0.1", port=runner.addresses[0][1])
    store.replace([target])
    # A page is late only where a test says when.
    limits = ScrapeSettings(**{"timeout_seconds": HANG_SECONDS, **settings})  # type: ignore[arg-type]
    record = store.get(target.key)
    assert record is not None
    async with Supervisor() as tasks:
        scraper = Scraper(store, limits, tasks, clock=time.monotonic, rng=Random(1))
        try:
            yield scraper, record, store
        finally:
            scraper.adjust([])
            await scraper.close()
            await runner.cleanup()


async def test_pages_come_over_one_connection_while_they_are_wanted() -> None:
    peers: list[object] = []
    enough = asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        assert request.transport is not None
        peers.append(request.transport.get_extra_info("peername"))
        if len(peers) == 5:
            enough.set()
        return web.Response(text="vllm:num_requests_running 2\nvllm:num_requests_waiting 1\n")

    async with scraped(handler, busy_seconds=0.01) as (scraper, record, store):
        scraper.adjust([record.endpoint])
        async with asyncio.timeout(HANG_SECONDS):
            await enough.wait()
        assert len(set(peers)) == 1
        state = store.snapshot()[0]
        assert (state.running, state.waiting, state.fresh) == (2, 1, True)
        scraper.adjust([])


async def test_an_idle_server_is_asked_again_when_it_gets_a_request() -> None:
    pages = asyncio.Semaphore(0)

    async def handler(_: web.Request) -> web.Response:
        pages.release()
        return web.Response(text="vllm:num_requests_running 0\n")

    async with scraped(handler, busy_seconds=0.01, idle_seconds=600.0) as (scraper, record, _):
        scraper.adjust([record.endpoint])
        async with asyncio.timeout(HANG_SECONDS):
            await pages.acquire()
            record.started("m", 1, time.monotonic())
            while pages.locked():
                scraper.wake(record.endpoint.key)
                await asyncio.sleep(0.01)


async def test_a_page_that_is_wanted_ahead_of_others_is_asked_for_at_once() -> None:
    pages: asyncio.Queue[None] = asyncio.Queue()

    async def handler(_: web.Request) -> web.Response:
        return web.Response(text="vllm:num_requests_running 1\n")

    # Busy or idle, the next page would come in an hour, and the next turn too.
    slow = {"busy_seconds": 3600.0, "idle_seconds": 3600.0, "max_pages_per_second": 1e-3}
    async with scraped(handler, **slow) as (scraper, record, _):
        scraper.on_scraped = lambda record: pages.put_nowait(None)
        scraper.adjust([record.endpoint])
        async with asyncio.timeout(HANG_SECONDS):
            await pages.get()
            for _ in range(3):
                scraper.hasten(record.endpoint.key)
                await pages.get()
        scraper.hasten("nobody")


@pytest.mark.parametrize("status", [404, 500, 302])
async def test_a_server_without_a_page_is_marked(status: int) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status, headers={"location": "/metrics"}, text="vllm:num_requests_running 2\n")

    async with scraped(handler) as (scraper, record, store):
        assert not await scraper.scrape(record)
        assert record.scrape_error == f"status {status}"
        assert not store.snapshot()[0].fresh


async def test_a_page_without_metrics_a_slow_page_and_a_refused_connection() -> None:
    held = asyncio.Event()
    slow = False

    async def handler(_: web.Request) -> web.Response:
        if slow:
            await held.wait()
        return web.Response(text="nothing here\n")

    async with scraped(handler) as (scraper, record, _):
        assert not await scraper.scrape(record)
        assert "none of the metrics" in record.scrape_error
    slow = True
    async with scraped(handler, timeout_seconds=0.2) as (scraper, record, store):
        told: list[tuple[str, bool]] = []
        scraper.on_failed = lambda record, refused: told.append((record.endpoint.key, refused))
        assert not await scraper.scrape(record)
        assert record.scrape_error == "timed out"
        held.set()
        store.replace([Endpoint(namespace="n", pod_name="q", address="127.0.0.1", port=1)])
        refused = store.get("127.0.0.1:1")
        assert refused is not None
        assert not await scraper.scrape(refused)
        assert "ClientConnectorError" in refused.scrape_error
        assert told == [(record.endpoint.key, False), (refused.endpoint.key, True)]
        assert refused.asked_at is None


async def test_a_page_over_the_limit_is_cut_off_and_the_server_marked() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(
            text="vllm:num_requests_running 2\n" + "# filler\n" * 10_000 + "vllm:num_requests_waiting 9\n"
        )

    async with scraped(handler, limits=PageLimits(page_bytes=1000)) as (scraper, record, store):
        assert await scraper.scrape(record)
        assert scraper.settings.kept.held == 0
        assert record.scrape_error == "the page is over 1000 bytes: cut off"
        assert store.snapshot()[0].running == 2
        assert record.metrics is not None
        assert record.metrics.waiting is None


async def test_a_page_of_one_long_line_is_not_read_and_others_have_their_turn() -> None:
    sent = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        answer = web.StreamResponse()
        await answer.prepare(request)
        with contextlib.suppress(ConnectionError):
            await answer.write(b'vllm:num_requests_running{model_name="')
            for _ in range(128):
                await answer.write(b"x" * (64 << 10))
                sent += 64 << 10
        return answer

    async with scraped(handler, timeout_seconds=60.0) as (scraper, record, store):
        async with counted_turns() as turns:
            assert not await scraper.scrape(record)
        assert record.scrape_error == "a line has over 65536 bytes"
        assert not store.snapshot()[0].fresh
        assert turns.count > 2


async def test_a_long_page_is_read_in_turns_with_others() -> None:
    lines = 40_000
    text = "# filler of a comment\n" * lines + "vllm:num_requests_running 2\n"

    async def handler(_: web.Request) -> web.Response:
        return web.Response(text=text)

    async with scraped(handler, timeout_seconds=60.0, limits=PageLimits(cpu_seconds=60.0)) as (scraper, record, store):
        pieces = 0
        feed = MetricsReader.feed

        def counted(self: MetricsReader, piece: bytes) -> None:
            nonlocal pieces
            pieces += 1
            feed(self, piece)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(MetricsReader, "feed", counted)
            async with counted_turns() as turns:
                assert await scraper.scrape(record)
        assert store.snapshot()[0].running == 2
        assert pieces > 1
        assert turns.count >= pieces


async def test_a_large_pool_is_not_asked_all_at_once() -> None:
    asked: set[str] = set()
    everyone = asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        asked.add(request.host)
        if len(asked) == 100:
            everyone.set()
        return web.Response(text="vllm:num_requests_running 0\n")

    # Every address of 127.0.0.0/8 is this machine's.
    async with scraped(handler, "0.0.0.0", max_pages_per_second=50.0) as (scraper, record, store):
        port = record.endpoint.port
        pool = [Endpoint(namespace="n", pod_name=f"p{n}", address=f"127.0.0.{n}", port=port) for n in range(1, 101)]
        store.replace(pool)
        started = time.monotonic()
        scraper.adjust(pool)
        async with asyncio.timeout(HANG_SECONDS):
            await everyone.wait()
    # A hundred pages, each at least half of a fiftieth second after the one before.
    assert time.monotonic() - started >= 0.95


async def test_servers_that_were_just_used_share_the_pages_of_busy_ones() -> None:
    twice = asyncio.Semaphore(0)

    async def handler(_: web.Request) -> web.Response:
        twice.release()
        return web.Response(text="vllm:num_requests_running 0\n")

    async with scraped(handler, busy_seconds=0.001, idle_seconds=600.0) as (scraper, record, _):
        record.started("m", 1, time.monotonic())
        record.finished("m", 1, time.monotonic())
        scraper.adjust([record.endpoint])
        async with asyncio.timeout(HANG_SECONDS):
            # Nothing is on its way there, and yet its load may change: it is one of the busy, which are asked again.
            await twice.acquire()
            await twice.acquire()
