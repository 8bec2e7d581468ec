"""The running controller: informers, the two gRPC servers, health and metrics; drains on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc.aio
from aiohttp import web

from headrace.core import EXTENSION_GROUP, GA_GROUP
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
from headrace.gateway.translate import Translation
from headrace.gateway.watch import Watch
from headrace.gateway.writer import StatusWriter
from headrace.gateway.xds_names import RuleName, untested_version
from headrace.kube.client import Resource, connect, request
from headrace.kube.events import Subject
from headrace.kube.reflector import check_metadata
from headrace.protocol import rpc
from headrace.protocol.objects import GATEWAY_GROUP
from headrace.serving.health import Health
from headrace.serving.lifecycle import Shutdown
from headrace.serving.memory import give_back_memory
from headrace.serving.servers import Servers, health_routes, metrics_route
from headrace.serving.tasks import Supervisor
from headrace.serving.tls import certificate_of_nobody, mutual_credentials

logger = logging.getLogger(__name__)

# As Envoy Gateway's extensionManager is told by the roles: 200 pools and 1,000 routes are a few MiB.
# Body-based routing has as much for a body, and some for what is around it.
_MAX_MESSAGE = 65 << 20
_GRPC_OPTIONS = {"grpc.max_receive_message_length": _MAX_MESSAGE, "grpc.max_send_message_length": _MAX_MESSAGE}
# A hook call that comes before the informers have settled waits this long; Envoy Gateway keeps its configuration.
_SETTLE_SECONDS = 5.0
# What health checks may ask for.
_SERVICES = ("", rpc.EXTENSION_SERVICE, rpc.EDS_SERVICE, rpc.SDS_SERVICE, rpc.EXT_PROC_SERVICE)
_ROUTE_VERSION = f"{GATEWAY_GROUP}/v1"
_UNVERIFIED = "TLS to the endpoint picker is not verified: write a BackendTLSPolicy for its Service"


class NotSettled(RuntimeError):  # noqa: N818
    """The informers have not seen everything yet."""


class Process:
    """One controller. `run` serves until it is told to stop."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._metrics = Metrics()
        self._draining = False
        self._shutdown = Shutdown()
        self._health = Health(dict.fromkeys(_SERVICES, lambda: not self._why_not_ready()))

    async def run(self) -> None:
        """Serve until SIGTERM, then drain. Raises CannotServe, InvalidCertificate."""
        options = self._options
        if untested := untested_version(options.envoy_gateway_version):
            logger.warning("%s", untested)
        client = await connect(options.kubeconfig)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(client.close)
            stack.enter_context(self._shutdown.by_signals())
            self._build(client)
            servers = await stack.enter_async_context(Servers(options.bind_address))
            grpc_servers = await self._serve(servers)
            tasks = await stack.enter_async_context(Supervisor())
            tasks.start(self._watch.run(), "informers")
            tasks.start(self._writer.run(), "status")
            tasks.start(self._events.run(), "warning events")
            tasks.start(self._handshakes.run(), "handshakes")
            tasks.start(give_back_memory(), "give back memory")
            if options.namespace:
                tasks.start(self._nudge.run(), "nudge")
            else:
                logger.warning(
                    "no --namespace: what is translated from old objects waits for the next change of a route"
                )
            logger.info("serving", extra={"ports": servers.ports})
            await self._shutdown.asked.wait()
            self._draining = True
            self._health.changed()
            logger.info("draining", extra={"seconds": options.drain_delay})
            await self._shutdown.pause(options.drain_delay)
            self._discovery.close()
            await self._shutdown.finish(
                asyncio.gather(*(server.stop(options.drain_timeout) for server in grpc_servers))
            )
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
        self._health.changed()
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

    async def _serve(self, servers: Servers) -> list[grpc.aio.Server]:
        """Add the servers and start them. Gives those of gRPC. Raises CannotServe, and InvalidCertificate."""
        options = self._options
        health = self._health.handler()

        def add(name: str, port: int, handlers: tuple[grpc.GenericRpcHandler, ...], ca: Path | None) -> grpc.aio.Server:
            credentials = None
            if options.cert_path is not None and ca is not None:
                credentials = mutual_credentials(options.cert_path, ca)
            flag, handlers = f"{name}-port", (*handlers, health)
            return servers.add_grpc(name, flag, port, handlers, credentials=credentials, options=_GRPC_OPTIONS)

        own_ca = options.cert_path / "ca.crt" if options.cert_path is not None else None
        discovery = (*self._discovery.handlers(), self._models.handler())
        added = [
            add("hook", options.hook_port, (self._hook.handler(),), own_ca),
            add("eds", options.eds_port, discovery, options.eds_client_ca),
        ]
        for name, port, routes in (
            ("health", options.health_port, health_routes(self._why_not_ready)),
            ("metrics", options.metrics_port, [metrics_route(self._metrics.registry)]),
        ):
            application = web.Application()
            application.add_routes(routes)
            await servers.add_http(name, f"{name}-port", port, application)
        await servers.start()
        return added


def _pool_subject(key: PoolKey) -> Subject:
    group, namespace, name = key
    return Subject(f"{group}/{VERSION_OF_GROUP[group]}", POOL_KIND, namespace, name)


async def _listed(client: Any, resource: Resource) -> list[Object]:
    found = await request(client, "GET", resource.path())
    return [dict(entry) for entry in mappings(found.get("items")) if not check_metadata(entry)]
