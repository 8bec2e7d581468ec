"""The running picker: builds every shared object, starts the servers, drains on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from random import Random
from typing import TYPE_CHECKING, Any, NoReturn

from prometheus_client import Counter

from headrace.core import Endpoint, FailureMode
from headrace.core.invalid import CannotServe
from headrace.datalayer.scraper import Scraper
from headrace.epp import status
from headrace.epp.composition import Components
from headrace.epp.config_file import PickerConfig, parse_config, watch_config, watched_config
from headrace.epp.conformance import with_selection
from headrace.epp.flow_metrics import FlowControlCollector
from headrace.epp.health_metrics import HealthCollector
from headrace.epp.health_task import tell_by_event, watch_health
from headrace.epp.metrics import Metrics, PoolCollector
from headrace.epp.options import Options
from headrace.epp.readiness import Readiness
from headrace.epp.servers import Stoppable, Work, start_servers
from headrace.epp.service import ExtProcService
from headrace.prefixes.kv_events import Batch
from headrace.prefixes.kv_settings import KvEventsSettings
from headrace.prefixes.tokenizer import Tokenizer
from headrace.replicas.metrics import PeerCollector, PeerMetrics
from headrace.replicas.peering import Peering
from headrace.scheduling import SchedulingConfig
from headrace.serving.lifecycle import Shutdown
from headrace.serving.loop_lag import watch_lag
from headrace.serving.memory import give_back_memory, settle
from headrace.serving.servers import Servers
from headrace.serving.tasks import Supervisor

if TYPE_CHECKING:
    from headrace.epp.tracing import Tracer
    from headrace.prefixes.kv_subscriber import KvSubscriber

logger = logging.getLogger(__name__)

_EXPIRE_SECONDS = 1.0
# The reference picker's, so that replicas of both kinds never lead at once.
_LEASE_SUFFIX = ".gateway-api-inference-extension.sigs.k8s.io"


class Process:
    """One picker. `run` serves until it is told to stop."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._metrics = Metrics(options.served_name)
        self._config_file = None
        if options.config_file is not None:
            bad = self._metrics.config_reloads.labels("error")
            self._config_file = watched_config(options.config_file, bad.inc)
            config = self._config_file.current
        else:
            config = parse_config(options.config_text, "--config-text") if options.config_text else PickerConfig()
        self._note(config)
        self._metrics.show_budget(options.conversation.bodies)
        self._tasks = Supervisor(lambda kind: self._metrics.task_failures.labels(kind).inc())
        rng = self._rng = Random()
        if options.conversation.conformance_hooks:
            logger.warning("--conformance-hooks: any client chooses the endpoint of its request; not for production")
        self._kv_events = config.kv_events
        self._listener: KvSubscriber | None = None
        self._tokenizer: Tokenizer | None = None
        if config.kv_events is not None and config.tokenizer is not None:
            server, answered = self._tokenizing_server, self._metrics.tokenized
            self._tokenizer = Tokenizer(config.tokenizer, server=server, clock=time.monotonic, on_answer=answered)
        self._tracer = self._trace() if options.tracing else None
        self._parts = Components(
            config=self._scheduling(config),
            flow_control=config.flow_control,
            metrics=self._metrics,
            clock=time.monotonic,
            rng=rng,
            pick_deadline=options.pick_deadline,
            decisions_kept=options.decisions_kept,
            on_pick=lambda key: self._scraper.wake(key),
            kv_events=config.kv_events is not None,
            tokenize=self._tokenizer.tokens if self._tokenizer is not None else None,
            replica=(secrets.token_hex(8), options.identity),
            observers=[self._tracer.decided] if self._tracer is not None else [],
            health_filter=options.health_filter != "off",
        )
        pool, flow = self._parts.pool, self._parts.flow
        registry = self._metrics.registry
        registry.register(PoolCollector(self._metrics.pool_name, pool.store, pool.ledger, self._parts.index))
        registry.register(HealthCollector(self._parts.health, self._parts.latency))
        registry.register(FlowControlCollector(self._metrics.flow_control, flow.waiting, flow.saturation))
        self._scraper = Scraper(
            pool.store,
            options.scrape,
            self._tasks,
            clock=time.monotonic,
            rng=rng,
            on_page=self._page_read,
            on_scraped=pool.scraped,
            on_failed=pool.scrape_failed,
            engines=config.engines,
        )
        self._peering = self._peer(rng) if options.peers.wanted else None
        self._readiness = Readiness(lambda: pool.synced, leading=not options.leader_election)
        self._standing: asyncio.Task[NoReturn] | None = None
        self._client: Any = None
        self._shutdown = Shutdown()

    def _trace(self) -> Tracer | None:
        """What makes spans; None where the environment switches them off. Raises CannotServe, and InvalidTracing."""
        of_picks = "Spans of picks, by what became of them."
        spans = Counter("headrace_epp_spans", of_picks, ("result",), registry=self._metrics.registry)
        try:
            # Imported here: OpenTelemetry's packages are loaded, and needed, only where they are used.
            from headrace.epp.tracing import start_tracing

            return start_tracing(self._metrics.pool_name, lambda result, count: spans.labels(result).inc(count))
        except ImportError as error:
            raise CannotServe(
                f"--tracing needs OpenTelemetry's packages: pip install 'headrace[tracing]' ({error})"
            ) from None

    def _peer(self, rng: Random) -> Peering:
        """Our side of the streams between replicas. Raises InvalidCertificate."""
        parts, registry = self._parts, self._metrics.registry
        peering = Peering(
            parts.journal,
            parts.accounts,
            parts.pool.ledger,
            parts.index,
            self._options.peers,
            PeerMetrics(registry),
            rng=rng,
            clock=time.monotonic,
            synced=parts.pool.wait_synced,
            on_change=parts.flow.changed,
        )
        registry.register(PeerCollector(peering))
        return peering

    async def run(self) -> None:
        """Serve until SIGTERM, then drain. Raises CannotServe, and InvalidCertificate."""
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(self._shutdown.by_signals())
            servers = await stack.enter_async_context(Servers(self._options.bind_address))
            server, work = await self._serve(servers)
            stack.push_async_callback(self._scraper.close)
            if self._tokenizer is not None:
                stack.push_async_callback(self._tokenizer.close)
            if self._kv_events is not None:
                self._listener = self._listen(self._kv_events)
                stack.callback(self._listener.close)
            if self._tracer is not None:
                stack.push_async_callback(self._tracer.close)
            if not self._options.endpoints:
                # Imported here: the Kubernetes client takes longer to load than everything else together.
                from headrace.kube.client import connect

                self._client = await connect(self._options.kubeconfig)
                stack.push_async_callback(self._client.close)
            tasks = await stack.enter_async_context(self._tasks)
            for name, of_server in work.items():
                tasks.start(of_server(), name)
            tasks.start(self._expire(), "expire")
            tasks.start(give_back_memory(), "give back memory")
            tasks.start(watch_lag(self._metrics.loop_lag.observe), "watch the event loop")
            tell = tell_by_event(lambda: self._client, self._options)
            tasks.start(watch_health(self._parts.health, self._scraper, tell), "watch health")
            self._follow_pool(tasks)
            if self._peering is not None:
                tasks.start(self._peering.run(tasks), "follow replicas")
            if self._config_file is not None:
                tasks.start(watch_config(self._config_file, self._reconfigure), "watch the configuration")
            settle()
            logger.info("serving", extra={"ports": servers.ports, "pool": self._metrics.pool_name})
            await self._shutdown.asked.wait()
            await self._drain(server)
        logger.info("stopped")

    def _listen(self, settings: KvEventsSettings) -> KvSubscriber:
        assert self._parts.precise is not None
        # Imported here: ZeroMQ is loaded only where it is used.
        from headrace.prefixes.kv_subscriber import KvSubscriber

        return KvSubscriber(
            settings,
            self._tasks,
            on_batch=self._kv_batch,
            on_bad=self._metrics.kv_event_batches.labels("error").inc,
            on_disconnect=self._parts.precise.disconnected,
            waiting_bytes=self._options.limits.kv_messages.total_bytes,
        )

    def _tokenizing_server(self) -> str | None:
        """One of the pool's servers that tell of their caches: those have the model's tokenizer, and /tokenize."""
        speaking = self._parts.precise.speaking() if self._parts.precise is not None else []
        return f"{self._options.scrape.scheme}://{self._rng.choice(speaking)}" if speaking else None

    def _kv_batch(self, key: str, batch: Batch) -> None:
        self._metrics.kv_event_batches.labels("ok").inc(not batch.continued)
        self._parts.kv_events(key, batch)

    def _scheduling(self, config: PickerConfig) -> SchedulingConfig:
        found = config.scheduling
        if self._options.health_filter == "always":
            found = found.with_health()
        return with_selection(found) if self._options.conversation.conformance_hooks else found

    def _note(self, config: PickerConfig) -> None:
        for note in config.notes:
            logger.warning("%s: %s", self._options.config_file or "--config-text", note)

    def _reconfigure(self, config: PickerConfig) -> None:
        self._note(config)
        if config.kv_events != self._kv_events:
            logger.warning("precise-prefix-cache-producer has changed: that takes effect at the next start")
        self._parts.reconfigure(self._scheduling(config), config.flow_control)
        self._scraper.engines = config.engines
        self._metrics.config_reloads.labels("ok").inc()

    def _replace(self, endpoints: tuple[Endpoint, ...], failure_mode: FailureMode) -> None:
        self._parts.pool.endpoints_changed(endpoints, failure_mode)
        self._scraper.adjust(endpoints)
        if self._listener is not None:
            self._listener.adjust(endpoints)
        self._readiness.health.changed()

    def _follow_pool(self, tasks: Supervisor) -> None:
        """Keep the pool's endpoints up to date, and take part in the election."""
        options, client = self._options, self._client
        if client is None:
            self._replace(options.endpoints, options.static_failure_mode)
            return
        from headrace.epp.watch import watch_all
        from headrace.kube.lease import Elector

        malformed = self._metrics.malformed_objects
        policies, on_malformed = self._parts.policies, lambda kind: malformed.labels(kind).inc()
        tasks.start(watch_all(client, options, self._replace, policies, on_malformed), "watch the pool")
        if options.leader_election:
            namespace, lead = options.pool_namespace, self._readiness.lead
            name = f"epp-{namespace}-{options.served_name}{_LEASE_SUFFIX}"
            elector = Elector(client, namespace, name, options.identity, clock=time.monotonic, on_change=lead)
            self._standing = tasks.start(elector.run(), "leader election")

    async def _stand_down(self) -> None:
        """Leave the election; the Lease is given back."""
        if self._standing is not None:
            self._standing.cancel()
            await asyncio.gather(self._standing, return_exceptions=True)
            self._standing = None

    def _page_read(self, seconds: float, ok: bool) -> None:
        self._metrics.pages.labels("ok" if ok else "error").inc()
        self._metrics.page_seconds.observe(seconds)
        self._parts.flow.changed()

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(_EXPIRE_SECONDS)
            self._parts.expire()

    async def _serve(self, servers: Servers) -> tuple[Stoppable, dict[str, Work]]:
        """Add the servers and start them: see start_servers."""
        options = self._options
        service = ExtProcService(self._parts.director, self._parts.pool, self._metrics, options.conversation)
        access = None
        if options.metrics_endpoint_auth:
            # Imported here: the Kubernetes client takes longer to load than everything else together.
            from headrace.epp.access import Access

            access = Access(lambda: self._client, clock=time.monotonic)
        pages = status.application(self._parts, self._readiness.ready, access, self._peering)
        return await start_servers(servers, options, service, self._readiness.health, pages, self._peering)

    async def _drain(self, server: Stoppable) -> None:
        """Not ready at once, serving on until gateways have noticed; then no new streams, and a wait for the rest.

        Gateways that check our health are told halfway: until then the successor, ready a moment ago, has become known
        to them, and they need up to two seconds to believe it."""
        options = self._options
        logger.info("draining", extra={"delay_seconds": options.drain_delay, "timeout_seconds": options.drain_timeout})
        self._readiness.drain()
        # Another replica may lead at once: this one serves on until gateways have noticed.
        await self._stand_down()
        await self._shutdown.pause(options.drain_delay / 2)
        self._readiness.leave()
        await self._shutdown.pause(options.drain_delay / 2)
        # Who still waits for a place would not get an answer in the time that is left.
        self._parts.flow.close()
        stopping = asyncio.ensure_future(server.stop(options.drain_timeout))
        # Not cancelled: whoever stops the server at once waits for the same end.
        await self._shutdown.finish(asyncio.shield(stopping))
        await server.stop(0)
        await stopping
