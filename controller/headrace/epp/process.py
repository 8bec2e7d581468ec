"""The running picker: builds every shared object, starts the servers, drains on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from random import Random
from typing import TYPE_CHECKING, Any, NoReturn

import grpc.aio
from aiohttp import web
from prometheus_client import Counter

from headrace.core import Endpoint, FailureMode, Pool, endpoint_key
from headrace.datalayer.scraper import Scraper, ScrapeSettings
from headrace.epp import status
from headrace.epp.access_rules import Access, Closed, Open
from headrace.epp.config_file import ConfigFile, PickerConfig, parse_config, watch_config
from headrace.epp.conformance import SelectionByHeader
from headrace.epp.director import Director
from headrace.epp.flow_metrics import FlowControlCollector
from headrace.epp.health import Health
from headrace.epp.metrics import Metrics, PoolCollector
from headrace.epp.options import Options
from headrace.epp.ports import CannotServe, Ports, bind, grpc_options, taken
from headrace.epp.service import ExtProcService
from headrace.epp.tls import server_credentials
from headrace.prefixes.kv_events import Batch
from headrace.prefixes.kv_settings import KvEventsSettings
from headrace.prefixes.precise import PreciseIndex
from headrace.prefixes.tokenizer import Tokenizer
from headrace.replicas.metrics import PeerCollector, PeerMetrics
from headrace.replicas.peering import Peering, PeerSettings
from headrace.tasks import forever, log_failure

if TYPE_CHECKING:
    from headrace.epp.tracing import Tracer
    from headrace.kube.lease import Elector
    from headrace.prefixes.kv_subscriber import KvSubscriber

logger = logging.getLogger(__name__)

_EXPIRE_SECONDS = 1.0
# The reference picker's, so that replicas of both kinds never lead at once.
_LEASE_SUFFIX = ".gateway-api-inference-extension.sigs.k8s.io"


class Process:
    """One picker. `run` serves until it is told to stop."""

    def __init__(self, options: Options) -> None:
        self._config_file = ConfigFile(options.config_file) if options.config_file is not None else None
        if self._config_file is not None:
            config = self._config_file.load()
        else:
            config = parse_config(options.config_text, "--config-text") if options.config_text else PickerConfig()
        for note in config.notes:
            logger.warning("%s: %s", options.config_file or "--config-text", note)
        self._options = options
        self._metrics = Metrics(options.served_name)
        rng = self._rng = Random()
        self.director = Director(
            config=config.scheduling,
            flow_control=config.flow_control,
            metrics=self._metrics,
            clock=time.monotonic,
            rng=rng,
            pick_deadline=options.pick_deadline,
            decisions_kept=options.decisions_kept,
            selection=SelectionByHeader() if options.conformance_hooks else None,
        )
        if options.conformance_hooks:
            logger.warning("--conformance-hooks: any client chooses the endpoint of its request; not for production")
        director = self.director
        self._metrics.registry.register(
            PoolCollector(self._metrics.pool_name, director.store, director.ledger, director.index)
        )
        self._metrics.registry.register(
            FlowControlCollector(self._metrics.flow_control, director.flow.waiting, director.flow.saturation)
        )
        self._scraper = Scraper(
            director.store,
            ScrapeSettings(
                busy_seconds=options.refresh_metrics_interval,
                idle_seconds=options.idle_metrics_interval,
                stale_seconds=options.metrics_staleness_threshold,
                scheme=options.metrics_scheme,
                path=options.metrics_path,
                port=options.metrics_page_port,
                verify=options.metrics_verify,
            ),
            clock=time.monotonic,
            rng=rng,
            on_page=self._page_read,
            engines=config.engines,
        )
        director.on_pick = self._scraper.wake
        self._scraper.on_scraped = director.scraped
        self._kv_events = config.kv_events
        self._listener: KvSubscriber | None = None
        self._tokenizer: Tokenizer | None = None
        if config.kv_events is not None:
            self.director.precise = PreciseIndex()
            if config.tokenizer is not None:
                self._tokenizer = Tokenizer(
                    config.tokenizer, server=self._tokenizing_server, clock=time.monotonic, on_answer=self._tokenized
                )
                self.director.tokenize = self._tokenizer.tokens
        self._peering = self._join_peers(options, rng) if options.has_peers else None
        if options.tracing:
            director.tracer = self._trace()
        self._health = Health(self._is_ready, self._is_serving)
        self._draining = False
        self._serves_on = False
        # With an election, only the replica that leads is ready.
        self._leading = not options.leader_election
        self._elector: Elector | None = None
        self._standing: asyncio.Task[NoReturn] | None = None
        # Until the API server can be asked, nobody may read what asks for it.
        self._access: Access = Closed() if options.metrics_endpoint_auth else Open()
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()

    def _trace(self) -> Tracer | None:
        """What makes spans; None where the environment switches them off. Raises CannotServe, and InvalidTracing."""
        of_picks = "Spans of picks, by what became of them."
        spans = Counter("headrace_epp_spans", of_picks, ("result",), registry=self._metrics.registry)
        try:
            # Imported here: OpenTelemetry's packages are loaded, and needed, only where they are used.
            from headrace.epp.tracing import start_tracing

            return start_tracing(lambda result, count: spans.labels(result).inc(count))
        except ImportError as error:
            raise CannotServe(
                f"--tracing needs OpenTelemetry's packages: pip install 'headrace[tracing]' ({error})"
            ) from None

    def _join_peers(self, options: Options, rng: Random) -> Peering:
        """Our side of the streams between replicas. Raises InvalidCertificate."""
        assert options.peer_cert_path is not None
        settings = PeerSettings(
            certificates=options.peer_cert_path,
            pool=f"{options.pool_namespace}/{options.served_name}",
            service=options.peer_service,
            addresses=options.peers,
            port=options.peer_port,
            bind_address=options.bind_address,
            name=options.identity,
            own_address=options.own_address,
        )
        registry = self._metrics.registry
        director = self.director
        peering = Peering(
            director.store,
            director.ledger,
            director.index,
            settings,
            PeerMetrics(registry),
            rng=rng,
            clock=director.clock,
            synced=director.wait_synced,
            on_change=director.flow.changed,
        )
        director.join_peers(peering.journal, peering.accounts)
        registry.register(PeerCollector(peering))
        return peering

    def stop(self) -> None:
        """Drain and end; told a second time, end at once."""
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()

    async def run(self, on_listening: Callable[[Ports], None] = lambda ports: None) -> None:
        """Serve until `stop`, then drain. Raises CannotServe, and InvalidCertificate."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        try:
            async with contextlib.AsyncExitStack() as stack:
                server, ports = await stack.enter_async_context(self._servers())
                stack.push_async_callback(self._scraper.close)
                if self._tokenizer is not None:
                    stack.push_async_callback(self._tokenizer.close)
                if self._kv_events is not None:
                    self._listener = self._listen(self._kv_events)
                    stack.push_async_callback(self._listener.close)
                if self.director.tracer is not None:
                    stack.push_async_callback(self.director.tracer.close)
                watch = await self._pool_source(stack)
                tasks = await stack.enter_async_context(asyncio.TaskGroup())
                work = {"expire": self._expire(), "watch the pool": watch}
                if self._peering is not None:
                    work["follow replicas"] = self._peering.run()
                if self._config_file is not None:
                    on_bad = self._metrics.config_reloads.labels("error").inc
                    work["watch the configuration"] = watch_config(self._config_file, self._reconfigure, on_bad=on_bad)
                background = [tasks.create_task(forever(running, name), name=name) for name, running in work.items()]
                if self._elector is not None:
                    name = "leader election"
                    self._standing = tasks.create_task(forever(self._elector.run(), name), name=name)
                    background.append(self._standing)
                logger.info("serving", extra={"ports": vars(ports), "pool": self._metrics.pool_name})
                on_listening(ports)
                await self._stop.wait()
                await self._drain(server)
                for task in background:
                    task.cancel()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
        logger.info("stopped")

    def _listen(self, settings: KvEventsSettings) -> KvSubscriber:
        # Imported here: ZeroMQ is loaded only where it is used.
        from headrace.prefixes.kv_subscriber import KvSubscriber

        return KvSubscriber(
            settings,
            on_batch=self._kv_batch,
            on_bad=self._metrics.kv_event_batches.labels("error").inc,
            on_disconnect=self.director.kv_disconnected,
        )

    def _tokenizing_server(self) -> str | None:
        """One of the pool's servers that tell of their caches: those have the model's tokenizer, and /tokenize."""
        speaking = self.director.precise.speaking() if self.director.precise is not None else []
        return f"{self._options.metrics_scheme}://{self._rng.choice(speaking)}" if speaking else None

    def _tokenized(self, ok: bool) -> None:
        self._metrics.tokenizations.labels("ok" if ok else "error").inc()

    def _kv_batch(self, key: str, batch: Batch) -> None:
        self._metrics.kv_event_batches.labels("ok").inc()
        self.director.kv_events(key, batch)

    def _reconfigure(self, config: PickerConfig) -> None:
        if config.kv_events != self._kv_events:
            logger.warning("precise-prefix-cache-producer has changed: that takes effect at the next start")
        self.director.reconfigure(config.scheduling, config.flow_control)
        self._scraper.engines = config.engines
        self._metrics.config_reloads.labels("ok").inc()

    async def pool_changed(self, pool: Pool, endpoints: tuple[Endpoint, ...]) -> None:
        """The pool, or one of its Pods, changed."""
        await self._replace(endpoints, pool.failure_mode)

    async def _replace(self, endpoints: tuple[Endpoint, ...], failure_mode: FailureMode) -> None:
        was_ready = self._is_ready()
        self.director.replace_endpoints(endpoints, failure_mode)
        self._scraper.adjust(endpoints)
        if self._listener is not None:
            self._listener.adjust(endpoints)
        if self._is_ready() != was_ready:
            await self._health.changed()

    async def _serve_static(self) -> None:
        """Serve the endpoints that the flags name. Never returns."""
        await self._replace(self._options.endpoints, self._options.static_failure_mode)
        await asyncio.Event().wait()

    async def _pool_source(self, stack: contextlib.AsyncExitStack) -> Coroutine[Any, Any, None]:
        """What keeps the pool's endpoints up to date. Raises CannotServe."""
        options = self._options
        if options.endpoints:
            return self._serve_static()
        # Imported here: the Kubernetes client takes longer to load than everything else together.
        from headrace.epp.access import ReviewedAccess
        from headrace.epp.watch import watch_all
        from headrace.kube.client import ConfigurationError, connect
        from headrace.kube.lease import Elector

        try:
            client = await connect(options.kubeconfig)
        except ConfigurationError as error:
            raise CannotServe(str(error)) from None
        stack.push_async_callback(client.close)
        if options.metrics_endpoint_auth:
            self._access = ReviewedAccess(client, clock=time.monotonic)
        if options.leader_election:
            name = f"epp-{options.pool_namespace}-{options.served_name}{_LEASE_SUFFIX}"
            self._elector = Elector(
                client,
                options.pool_namespace,
                name,
                options.identity,
                clock=time.monotonic,
                on_change=self._led,
            )
        malformed = self._metrics.malformed_objects
        return watch_all(client, options, self, self.director.policies, lambda kind: malformed.labels(kind).inc())

    async def _stand_down(self) -> None:
        """Leave the election; the Lease is given back."""
        if self._standing is not None:
            self._standing.cancel()
            await asyncio.gather(self._standing, return_exceptions=True)
            self._standing = None

    def _is_ready(self) -> bool:
        return self.director.synced and self._leading and not self._draining

    def _is_serving(self) -> bool:
        return self._serves_on if self._draining else self._is_ready()

    def _led(self, leading: bool) -> None:
        self._leading = leading
        self._told = asyncio.create_task(self._health.changed(), name="tell of the election")
        self._told.add_done_callback(log_failure)

    def _page_read(self, seconds: float, ok: bool) -> None:
        self._metrics.pages.labels("ok" if ok else "error").inc()
        self._metrics.page_seconds.observe(seconds)
        self.director.flow.changed()

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(_EXPIRE_SECONDS)
            self.director.expire()

    @contextlib.asynccontextmanager
    async def _servers(self) -> AsyncIterator[tuple[grpc.aio.Server, Ports]]:
        options = self._options
        service = ExtProcService(
            self.director,
            max_body_bytes=options.max_body_bytes,
            max_parsed_body_bytes=options.max_parsed_body_bytes,
            control_headers=options.control_headers,
            subset_hint=options.subset_filter,
            conformance_hooks=options.conformance_hooks,
        )
        server = grpc.aio.server(options=grpc_options(options.max_body_bytes))
        server.add_generic_rpc_handlers((service.handler(), self._health.handler()))
        address = endpoint_key(options.bind_address, options.grpc_port)
        if options.secure_serving:
            credentials = server_credentials(options.cert_path, reload=options.enable_cert_reload)
            grpc_port = bind(lambda: server.add_secure_port(address, credentials), "grpc-port", options.grpc_port)
        else:
            grpc_port = bind(lambda: server.add_insecure_port(address), "grpc-port", options.grpc_port)
        health = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        health.add_generic_rpc_handlers((self._health.handler(),))
        health_address = endpoint_key(options.bind_address, options.grpc_health_port)
        health_port = bind(
            lambda: health.add_insecure_port(health_address), "grpc-health-port", options.grpc_health_port
        )
        peers, peers_port = self._peer_server()
        pages = status.application(self.director, self._is_ready, lambda: self._access, self._peering)
        runner = web.AppRunner(pages, access_log=None)
        await runner.setup()
        try:
            site = web.TCPSite(runner, options.bind_address, options.metrics_port)
            try:
                await site.start()
            except OSError:
                raise taken("metrics-port", options.metrics_port) from None
            await server.start()
            await health.start()
            if peers is not None:
                await peers.start()
            metrics_port = runner.addresses[0][1]
            yield server, Ports(grpc_port, health_port, metrics_port, peers_port)
        finally:
            await server.stop(0)
            await health.stop(0)
            if peers is not None:
                await peers.stop(0)
            await runner.cleanup()

    def _peer_server(self) -> tuple[grpc.aio.Server | None, int]:
        """The server that other replicas follow us at, and its port. Raises CannotServe, and InvalidCertificate."""
        if self._peering is None:
            return None, 0
        server, address = self._peering.server()
        credentials = self._peering.credentials()
        port = bind(lambda: server.add_secure_port(address, credentials), "peer-port", self._options.peer_port)
        return server, port

    async def _pause(self, seconds: float) -> None:
        """Wait, less long if told to stop at once."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop_now.wait()

    async def _drain(self, server: grpc.aio.Server) -> None:
        """Not ready at once, serving on until gateways have noticed; then no new streams, and a wait for the rest.

        Gateways that check our health are told halfway: until then the successor, ready a moment ago, has become known
        to them, and they need up to two seconds to believe it."""
        options = self._options
        logger.info("draining", extra={"delay_seconds": options.drain_delay, "timeout_seconds": options.drain_timeout})
        self._serves_on, self._draining = self._is_ready(), True
        await self._health.changed()
        # Another replica may lead at once: this one serves on until gateways have noticed.
        await self._stand_down()
        await self._pause(options.drain_delay / 2)
        self._serves_on = False
        await self._health.changed()
        await self._pause(options.drain_delay / 2)
        # Who still waits for a place would not get an answer in the time that is left.
        self.director.flow.close()
        stopping = asyncio.create_task(server.stop(options.drain_timeout), name="stop the server")
        now = asyncio.create_task(self._stop_now.wait(), name="told to stop at once")
        await asyncio.wait((stopping, now), return_when=asyncio.FIRST_COMPLETED)
        now.cancel()
        await server.stop(0)
        await stopping
