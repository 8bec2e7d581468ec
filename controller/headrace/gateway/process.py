"""The running controller: informers, the two gRPC servers, health and metrics; drains on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc.aio
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from headrace.core import EXTENSION_GROUP, GA_GROUP, endpoint_key
from headrace.core.pool import VERSION_OF_GROUP
from headrace.gateway.base_models import BaseModels, Problem
from headrace.gateway.discovery import Discovery, SnapshotSource
from headrace.gateway.events import Events
from headrace.gateway.handshakes import Handshakes
from headrace.gateway.hook import Hook
from headrace.gateway.in_effect import InEffect
from headrace.gateway.knowledge import Knowledge
from headrace.gateway.metrics import Metrics
from headrace.gateway.model_service import ModelService
from headrace.gateway.names import PoolKey
from headrace.gateway.nudge import Nudge, touch_grant
from headrace.gateway.options import Options
from headrace.gateway.snapshot import POOL_KIND, Object, Snapshot, mappings
from headrace.gateway.status import PICKER_NOT_TRUSTED, untrusted_message
from headrace.gateway.tls import certificate_of_nobody, mutual_credentials
from headrace.gateway.translate import Translation
from headrace.gateway.watch import Watch
from headrace.gateway.writer import StatusWriter
from headrace.gateway.xds_names import RuleName, untested_version
from headrace.kube.client import ConfigurationError, Resource, connect, request
from headrace.kube.events import Subject
from headrace.kube.reflector import check_metadata
from headrace.protocol import rpc
from headrace.protocol.objects import GATEWAY_GROUP
from headrace.tasks import forever

logger = logging.getLogger(__name__)

# As Envoy Gateway's extensionManager is told by the roles: 200 pools and 1,000 routes are a few MiB.
# Body-based routing has as much for a body, and some for what is around it.
_MAX_MESSAGE = 65 << 20
_GRPC_OPTIONS = [
    # Two processes on one port would share its connections.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", _MAX_MESSAGE),
    ("grpc.max_send_message_length", _MAX_MESSAGE),
    # Envoy probes its connection (HTTP/2 keepalive); gRPC would close it as abuse.
    ("grpc.http2.min_ping_interval_without_data_ms", 100),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
]
# A hook call that comes before the informers have settled waits this long; Envoy Gateway keeps its configuration.
_SETTLE_SECONDS = 5.0
_ROUTE_VERSION = f"{GATEWAY_GROUP}/v1"
_UNVERIFIED = "TLS to the endpoint picker is not verified: write a BackendTLSPolicy for its Service"
_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"


class CannotServe(RuntimeError):  # noqa: N818
    """What is needed to serve is missing; the message says what, and what to do."""


class NotSettled(RuntimeError):  # noqa: N818
    """The informers have not seen everything yet."""


@dataclass(frozen=True)
class Ports:
    """Where the servers listen, once they do."""

    hook: int
    eds: int
    health: int
    metrics: int


class Process:
    """One controller. `run` serves until it is told to stop."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._metrics = Metrics()
        self._draining = False
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Drain and end."""
        self._stop.set()

    async def run(self, on_listening: Callable[[Ports], None] = lambda ports: None) -> None:
        """Serve until `stop`, then drain. Raises CannotServe, InvalidCertificate."""
        if untested := untested_version(self._options.envoy_gateway_version):
            logger.warning("%s", untested)
        try:
            client = await connect(self._options.kubeconfig)
        except ConfigurationError as error:
            raise CannotServe(str(error)) from None
        loop = asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(client.close)
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.stop)
                stack.callback(loop.remove_signal_handler, number)
            self._build(client)
            servers, ports = await stack.enter_async_context(self._servers())
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            work = {
                "informers": self._watch.run(),
                "status": self._writer.run(),
                "warning events": self._events.run(),
                "handshakes": self._handshakes.run(),
            }
            if self._options.namespace:
                work["nudge"] = self._nudge.run()
            else:
                logger.warning(
                    "no --namespace: what is translated from old objects waits for the next change of a route"
                )
            background = [tasks.create_task(forever(running, name), name=name) for name, running in work.items()]
            logger.info("serving", extra={"ports": vars(ports)})
            on_listening(ports)
            await self._stop.wait()
            self._draining = True
            logger.info("draining", extra={"seconds": self._options.drain_delay})
            await asyncio.sleep(self._options.drain_delay)
            self._discovery.close()
            await asyncio.gather(*(server.stop(self._options.drain_timeout) for server in servers))
            for task in background:
                task.cancel()
        logger.info("stopped")

    def _build(self, client: Any) -> None:
        options = self._options
        self._watch = Watch(
            client,
            self._changed,
            lambda kind: self._metrics.malformed_objects.labels(kind).inc(),
            controller_name=options.controller_name,
            verify_by_default=options.verify_by_default,
        )
        self._knowledge = Knowledge(self._watch, lambda resource: _listed(client, resource), self._metrics)
        self._events = Events(client, self._object)
        self._handshakes = Handshakes(lambda: self._watch.snapshot, lambda: self._writer.changed())
        in_effect = InEffect(
            lambda: self._watch.snapshot, lambda: {key: pool for key, (_, pool) in self._writer.pools().items()}
        )
        self._writer = StatusWriter(
            client,
            self._watch,
            self._metrics,
            translated=in_effect.condition,
            untrusted=self._handshakes.problem,
            on_written=self._warn_of_trust,
        )
        self._nudge = Nudge(
            in_effect, self._writer.written, lambda: touch_grant(client, options.namespace), self._metrics
        )
        source = SnapshotSource(lambda: self._watch.snapshot, certificate_of_nobody())
        base_models = BaseModels(lambda: self._watch.snapshot, self._base_model_problem)
        self._models = ModelService(base_models, self._metrics)
        self._discovery = Discovery(source.resource, self._metrics, self._watch.settled)
        self._hook = Hook(self._newest, self._metrics, self._translated)

    def _changed(self) -> None:
        self._discovery.changed()
        self._writer.changed()
        self._nudge.changed()
        pools = self._watch.snapshot.pools
        for group in (GA_GROUP, EXTENSION_GROUP):
            self._metrics.pools.labels(group).set(sum(key[0] == group for key in pools))

    def _object(self, subject: Subject) -> Object | None:
        if subject.kind == POOL_KIND:
            found = self._writer.pools().get((subject.api_version.partition("/")[0], subject.namespace, subject.name))
            return found[1] if found is not None else None
        if subject.kind == "ConfigMap":
            return self._watch.snapshot.base_model_config_maps.get((subject.namespace, subject.name))
        return self._watch.snapshot.routes.get((subject.kind, subject.namespace, subject.name))

    def _warn_of_trust(self, key: PoolKey, status: Mapping[str, Any]) -> None:
        subject = _pool_subject(key)
        if message := untrusted_message(status):
            self._events.warn(subject, PICKER_NOT_TRUSTED, message)
        else:
            self._events.withdraw(subject, PICKER_NOT_TRUSTED)

    def _base_model_problem(self, problem: Problem) -> None:
        (namespace, name), text = problem
        self._events.warn(Subject("v1", "ConfigMap", namespace, name), "BaseModelRefused", text)

    def _translated(
        self, translation: Translation, named: Mapping[str, frozenset[RuleName]], snapshot: Snapshot
    ) -> None:
        for key in translation.unverified:
            self._events.warn(_pool_subject(key), "EndpointPickerUnverified", _UNVERIFIED)
        for route, problem in translation.refused.items():
            self._events.warn(Subject(_ROUTE_VERSION, *route), "FilterRefused", problem)
        self._nudge.translated(named, snapshot)
        self._writer.changed()

    async def _newest(self, named: frozenset[RuleName]) -> Snapshot:
        try:
            async with asyncio.timeout(_SETTLE_SECONDS):
                await self._watch.settled.wait()
        except TimeoutError:
            raise NotSettled(f"not ready: {self._why_not_ready()}") from None
        return await self._knowledge.snapshot_for(named)

    def _why_not_ready(self) -> str:
        if self._draining:
            return "draining"
        if self._watch.settled.is_set():
            return ""
        forbidden = self._watch.forbidden()
        if forbidden:
            return f"may not read {', '.join(forbidden)}: add get, list and watch to the ClusterRole"
        return "the first lists are not in yet"

    @contextlib.asynccontextmanager
    async def _servers(self) -> AsyncIterator[tuple[list[grpc.aio.Server], Ports]]:
        options = self._options
        hook, eds = grpc.aio.server(options=_GRPC_OPTIONS), grpc.aio.server(options=_GRPC_OPTIONS)
        hook.add_generic_rpc_handlers((self._hook.handler(), self._health()))
        eds.add_generic_rpc_handlers((*self._discovery.handlers(), self._models.handler(), self._health()))
        hook_port = self._bind(hook, "hook-port", options.hook_port, own_ca=True)
        eds_port = self._bind(eds, "eds-port", options.eds_port, own_ca=False)
        async with contextlib.AsyncExitStack() as stack:
            health_port = await self._serve_http(stack, self._health_pages(), "health-port", options.health_port)
            metrics_port = await self._serve_http(stack, self._metrics_page(), "metrics-port", options.metrics_port)
            for server in (hook, eds):
                await server.start()
                stack.push_async_callback(server.stop, 0)
            yield [hook, eds], Ports(hook_port, eds_port, health_port, metrics_port)

    def _bind(self, server: grpc.aio.Server, flag: str, port: int, *, own_ca: bool) -> int:
        options = self._options
        address = endpoint_key(options.bind_address, port)
        try:
            if options.cert_path is None or options.eds_client_ca is None:
                return server.add_insecure_port(address)
            ca = options.cert_path / "ca.crt" if own_ca else options.eds_client_ca
            return server.add_secure_port(address, mutual_credentials(options.cert_path, ca))
        except RuntimeError:
            raise _taken(flag, port) from None

    async def _serve_http(
        self, stack: contextlib.AsyncExitStack, application: web.Application, flag: str, port: int
    ) -> int:
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        try:
            await web.TCPSite(runner, self._options.bind_address, port).start()
        except OSError:
            raise _taken(flag, port) from None
        return int(runner.addresses[0][1])

    def _health_pages(self) -> web.Application:
        async def healthz(_: web.Request) -> web.Response:
            return web.Response(text="ok\n")

        async def readyz(_: web.Request) -> web.Response:
            why_not = self._why_not_ready()
            return web.Response(text=f"{why_not or 'ok'}\n", status=503 if why_not else 200)

        application = web.Application()
        application.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz)])
        return application

    def _metrics_page(self) -> web.Application:
        async def metrics(_: web.Request) -> web.Response:
            content = generate_latest(self._metrics.registry)
            return web.Response(body=content, headers={"Content-Type": CONTENT_TYPE_LATEST})

        application = web.Application()
        application.add_routes([web.get("/metrics", metrics)])
        return application

    def _health(self) -> grpc.GenericRpcHandler:
        """gRPC health checking (grpc.health.v1), whatever service is asked for; its answer is one small field."""

        async def check(_request: bytes, _context: Any) -> bytes:
            return _NOT_SERVING if self._why_not_ready() else _SERVING

        method: Any = grpc.unary_unary_rpc_method_handler(check)
        return grpc.method_handlers_generic_handler(rpc.HEALTH_SERVICE, {"Check": method})


def _pool_subject(key: PoolKey) -> Subject:
    group, namespace, name = key
    return Subject(f"{group}/{VERSION_OF_GROUP[group]}", POOL_KIND, namespace, name)


async def _listed(client: Any, resource: Resource) -> list[Object]:
    found = await request(client, "GET", resource.path())
    return [dict(entry) for entry in mappings(found.get("items")) if not check_metadata(entry)]


def _taken(flag: str, port: int) -> CannotServe:
    return CannotServe(f"--{flag}={port}: the port cannot be bound: stop what uses it, or give another")
