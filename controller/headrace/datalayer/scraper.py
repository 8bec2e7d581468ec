"""Reads the servers' /metrics pages: often where requests go, rarely where none do, over one connection per Pod.

A page costs the picker and the server CPU, so the pace follows the use that is made of it: `busy_seconds` between the
pages of endpoints that got requests lately, `idle_seconds` for the rest, longer in large pools: either half has at most
`max_pages_per_second`. Pages are asked for one after the other, not all at once: a thousand that come together would
time out while they wait for the picker itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from random import Random

from headrace.config.flags import choice, flag, period, port, truth
from headrace.config.limits import ByteBudget
from headrace.config.values import duration
from headrace.core import Endpoint, endpoint_key
from headrace.datalayer.engines import Engine, EngineSet
from headrace.datalayer.exposition import DEFAULT_LIMITS, PageLimits
from headrace.datalayer.metrics_page import MetricsReader, ServerMetrics
from headrace.datalayer.store import EndpointRecord, EndpointStore
from headrace.protocol import http
from headrace.serving.http_client import HttpClient, HttpError, Refused, pieces
from headrace.serving.lifecycle import within
from headrace.serving.tasks import Supervisor, TaskPerKey

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ScrapeSettings:
    """How pages are read: the picker's flags, and what has no flag. Times in seconds."""

    busy_seconds: float = flag(
        0.2, "time between metrics pages of a server in use", period, "--refresh-metrics-interval"
    )
    idle_seconds: float = flag(5.0, "the same of an idle server", period, "--idle-metrics-interval")
    # After that long without a page, what a server says of itself no longer counts.
    stale_seconds: float = flag(2.0, "metrics older than this are not used", duration, "--metrics-staleness-threshold")
    scheme: str = flag(
        "http",
        "http or https, of the servers' metrics pages",
        choice(("http", "https")),
        "--model-server-metrics-scheme",
    )
    path: str = flag("", "the page's path; else the engine's own", str, "--model-server-metrics-path")
    port: int = flag(
        0,
        "the page's port; 0, the endpoint's own (deprecated by the reference picker)",
        port,
        "--model-server-metrics-port",
    )
    verify: bool = flag(
        True,
        "do not verify the certificates of https metrics pages",
        truth,
        "--model-server-metrics-https-insecure-skip-verify",
        inverted=True,
    )
    timeout_seconds: float = 2.0
    # Of busy endpoints together, and of idle ones.
    max_pages_per_second: float = 100.0
    limits: PageLimits = DEFAULT_LIMITS
    # What is kept of all pages while they are read.
    kept: ByteBudget = field(default_factory=lambda: ByteBudget(64 << 20))
    jitter: float = 0.2


def interval(settings: ScrapeSettings, *, busy: bool, endpoints: int, failures: int, rng: Random) -> float:
    """Seconds until an endpoint's next page. `endpoints` are those that are as busy or as idle as this one.

    Failing servers are asked less and less often, as far as idle ones."""
    share = endpoints / settings.max_pages_per_second
    seconds = max(settings.busy_seconds if busy else settings.idle_seconds, share)
    if failures:
        most = max(settings.idle_seconds, share)
        seconds = min(most, max(seconds, settings.busy_seconds * 2 ** min(failures, 10)))
    return seconds * (1.0 + settings.jitter * (2.0 * rng.random() - 1.0))


@dataclass(eq=False)
class _Signals:
    """What an endpoint's task is told: that the endpoint is in use, and that its page is wanted at once."""

    wake: asyncio.Event = field(default_factory=asyncio.Event)
    hurry: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(eq=False)
class Scraper:
    """One task of `tasks` per endpoint. `clock` is the store's clock. `engines` may be replaced at any time. `on_page`
    is told of each page, how long it took and whether it came; `on_scraped` of each record a page has just come for,
    `on_failed` of each it has not, and whether nobody listens there."""

    store: EndpointStore
    settings: ScrapeSettings
    tasks: Supervisor
    _: KW_ONLY
    clock: Callable[[], float]
    rng: Random
    on_page: Callable[[float, bool], None] = lambda seconds, ok: None
    on_scraped: Callable[[EndpointRecord], None] = lambda record: None
    on_failed: Callable[[EndpointRecord, bool], None] = lambda record, refused: None
    engines: EngineSet = field(default_factory=EngineSet)

    def __post_init__(self) -> None:
        self._tasks = TaskPerKey(self.tasks, "scrape")
        self._signals: dict[str, _Signals] = {}
        self._busy: set[str] = set()
        # When the next page may be asked for, in the event loop's time.
        self._next_turn = 0.0
        self._client = HttpClient(per_host=1, keepalive=75.0)

    def adjust(self, endpoints: Iterable[Endpoint]) -> None:
        """Scrape exactly these endpoints. An address that changed hands is started anew."""
        wanted = {_name(endpoint): endpoint for endpoint in endpoints}
        known = self._signals
        self._signals = {found.key: known.get(found.key) or _Signals() for found in wanted.values()}
        gone = self._tasks.adjust({name: partial(self._watch, endpoint) for name, endpoint in wanted.items()})
        self._busy.difference_update(gone)

    def wake(self, key: str) -> None:
        """An idle endpoint got a request: its next page is wanted soon."""
        signals = self._signals.get(key)
        if signals is not None:
            signals.wake.set()

    def hasten(self, key: str) -> None:
        """The next page of an endpoint is wanted at once, ahead of others."""
        signals = self._signals.get(key)
        if signals is not None:
            signals.hurry.set()

    async def close(self) -> None:
        """Close the connections, once the tasks are over."""
        await self._client.close()

    async def _watch(self, endpoint: Endpoint) -> None:
        signals = self._signals[endpoint.key]
        wake, hurry = signals.wake, signals.hurry
        failures = 0
        name = _name(endpoint)
        while True:
            if not hurry.is_set():
                await self._turn()
            hurry.clear()
            record = self.store.get(endpoint.key)
            if record is None:
                return
            failures = 0 if await self.scrape(record) else failures + 1
            busy = self._is_busy(record)
            if busy:
                self._busy.add(name)
            else:
                self._busy.discard(name)
            wake.clear()
            alike = len(self._busy) if busy else len(self._tasks) - len(self._busy)
            seconds = interval(self.settings, busy=busy, endpoints=alike, failures=failures, rng=self.rng)
            if busy or failures:
                await within(hurry, seconds)
                continue
            try:
                async with asyncio.timeout(seconds):
                    await wake.wait()
                # Not at once: the request that woke us has to arrive first.
                await asyncio.sleep(self.settings.busy_seconds)
            except TimeoutError:
                pass

    async def _turn(self) -> None:
        """Wait until a page may be asked for: busy and idle endpoints together have twice the pages of either."""
        now = asyncio.get_running_loop().time()
        at = max(now, self._next_turn)
        self._next_turn = at + 0.5 / self.settings.max_pages_per_second
        if at > now:
            await asyncio.sleep(at - now)

    async def scrape(self, record: EndpointRecord) -> bool:
        """One page of one endpoint, into its record. False if none came."""
        settings = self.settings
        asked_at = record.asked_at = self.clock()
        try:
            metrics, note = await self._fetch(record.endpoint)
        except (HttpError, ValueError) as error:
            text, record.asked_at = str(error)[:200], None
            if not record.scrape_error:
                logger.warning("metrics of %s are not readable: %s", record.endpoint.key, text)
            since = record.scraped_at
            record.scrape_failed(text, stale=since is None or self.clock() - since > settings.stale_seconds)
            self.on_page(self.clock() - asked_at, False)
            self.on_failed(record, isinstance(error, Refused) and settings.port in (0, record.endpoint.port))
            return False
        if record.scrape_error and not note:
            logger.info("metrics of %s are readable again", record.endpoint.key)
        record.asked_at = None
        record.scraped(metrics, asked_at, note)
        self.on_scraped(record)
        self.on_page(self.clock() - asked_at, True)
        return True

    async def _fetch(self, endpoint: Endpoint) -> tuple[ServerMetrics, str]:
        """The metrics of one page, read as it arrives, and what is wrong with it: one over the limit is cut off."""
        settings = self.settings
        engine = self.engines.of(endpoint.labels)
        url = page_url(endpoint, engine, settings)
        headers = {http.ACCEPT: "text/plain"}
        seconds, verify = settings.timeout_seconds, settings.verify
        async with self._client.open("GET", url, seconds=seconds, verify=verify, headers=headers) as answer:
            if answer.status != 200:
                raise HttpError(f"status {answer.status}")
            with contextlib.closing(MetricsReader(engine, settings.limits, kept=settings.kept)) as reader:
                async for piece in pieces(answer):
                    reader.feed(piece)
                    if reader.cut:
                        break
                return reader.end(), reader.cut

    def _is_busy(self, record: EndpointRecord) -> bool:
        """Whether its load changes: requests on the way, or lately."""
        if record.in_flight > 0:
            return True
        metrics = record.metrics
        if metrics is not None and ((metrics.running or 0) > 0 or (metrics.waiting or 0) > 0):
            return True
        return record.last_pick_at is not None and self.clock() - record.last_pick_at < self.settings.idle_seconds


def _name(endpoint: Endpoint) -> str:
    """Of an endpoint's task: another one where the address has changed hands."""
    return f"{endpoint.key} {endpoint.uid}"


def page_url(endpoint: Endpoint, engine: Engine, settings: ScrapeSettings) -> str:
    """Where an endpoint's page is."""
    key = endpoint_key(endpoint.address, settings.port or endpoint.port)
    return f"{settings.scheme}://{key}{settings.path or engine.path}"
