"""A translated configuration in a real Envoy: our discovery serves its endpoints, pickers and model servers are real.

Only Envoy Gateway is missing: its input is made by hand, and what it would serve over xDS is static."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
from google.protobuf.json_format import MessageToDict

from headrace.gateway.base_models import BaseModels
from headrace.gateway.discovery import Discovery, SnapshotSource
from headrace.gateway.metrics import Metrics
from headrace.gateway.model_service import ModelService
from headrace.gateway.translate import Translation, translate
from headrace.serving.tls import certificate_of_nobody
from headrace.xds.envoy.config.cluster.v3 import cluster_pb2
from headrace.xds.envoy.config.listener.v3 import listener_pb2
from headrace.xds.envoy.config.route.v3 import route_pb2
from headrace.xds.envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401 (MessageToDict looks it up)
from headrace.xds.envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from tests.component.envoy import Envoy, start_envoy
from tests.hang import HANG_SECONDS
from tests.unit.gateway import objects as o

_GRPC_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.max_receive_message_length", 65 << 20),
]
LISTENER = "default/gateway/http"
# Longer than any test.
_PATIENCE = "300s"
_OVERRIDE_HOST = "type.googleapis.com/envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost"
_SERVED = {"key": "envoy.lb", "path": [{"key": "x-gateway-destination-endpoint-served"}]}
_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


class Cluster:
    """What the API server would hold. `update` changes kinds and tells discovery."""

    def __init__(self, *, verify: bool) -> None:
        self.pools: list[Mapping[str, Any]] = []
        self.kinds: dict[str, list[Mapping[str, Any]]] = {}
        self.verify = verify
        self.snapshot = o.snapshot(verify_by_default=verify)
        ready = asyncio.Event()
        ready.set()
        self.metrics = Metrics()
        source = SnapshotSource(lambda: self.snapshot, certificate_of_nobody())
        self.discovery = Discovery(source.resource, self.metrics, ready)

    def update(self, pools: Iterable[Mapping[str, Any]] | None = None, **kinds: Iterable[Mapping[str, Any]]) -> None:
        if pools is not None:
            self.pools = list(pools)
        self.kinds |= {kind: list(found) for kind, found in kinds.items()}
        self.snapshot = o.snapshot(self.pools, verify_by_default=self.verify, **self.kinds)
        self.discovery.changed()


@dataclass
class Stack:
    """A running Envoy, a client of it, and the translation it runs."""

    cluster: Cluster
    controllers: Sequence[Any]
    envoy: Envoy
    url: str
    client: aiohttp.ClientSession
    translation: Translation

    async def ask(self, path: str = "/", method: str = "POST", **arguments: Any) -> tuple[int, dict[str, Any]]:
        """Status, and the JSON that a model server answered with; {} for Envoy's own answers."""
        if method == "POST":
            arguments.setdefault("json", {"model": "m", "prompt": "hello"})
        async with self.client.request(method, self.url + path, **arguments) as answer:
            is_json = answer.headers.get("content-type", "").startswith("application/json")
            return answer.status, await answer.json() if is_json else {}

    async def wait_endpoints(self, name: str, wanted: Sequence[str]) -> None:
        """Until Envoy's cluster has just these endpoints. Raises AssertionError with what it has."""
        seen: list[str] = []

        async def has() -> bool:
            page = await self.envoy.admin_text("/clusters")
            seen[:] = sorted(
                line.split("::")[1]
                for line in page.splitlines()
                if line.startswith(f"{name}::") and "::cx_active::" in line
            )
            return seen == sorted(wanted)

        await self.until(has, lambda: f"{name} has {seen}, not {wanted}")

    async def wait_status(self, wanted: int) -> None:
        """Until a request is answered so. Raises AssertionError with the last answer's status."""
        seen = 0

        async def answered() -> bool:
            nonlocal seen
            seen, _ = await self.ask()
            return seen == wanted

        await self.until(answered, lambda: f"answered {seen}, not {wanted}")

    async def until(self, condition: Callable[[], Awaitable[bool]], what: Callable[[], str]) -> None:
        """Until a condition on Envoy holds. Raises AssertionError saying what there is in its place."""
        try:
            async with asyncio.timeout(HANG_SECONDS):
                while not await condition():  # noqa: ASYNC110 (another process)
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(what()) from None


def pods(keys: Iterable[str], app: str) -> list[dict[str, Any]]:
    """A ready Pod for each of `ip:port`, on that port only."""
    found = []
    for index, key in enumerate(keys):
        address, _, port = key.rpartition(":")
        made = o.pod(f"{app}-{index}", address, app=app)
        made["metadata"]["annotations"] = {"inference.networking.k8s.io/active-ports": port}
        found.append(made)
    return found


def ports(keys: Iterable[str]) -> list[int]:
    """The ports of `ip:port`s, as a pool's target ports."""
    return [int(key.rpartition(":")[2]) for key in keys]


@contextlib.asynccontextmanager
async def run_stack(
    cluster: Cluster,
    routes: Sequence[Any],
    directory: Path,
    clusters: Sequence[Any] = (),
    http_filters: Sequence[Any] = (),
    *,
    controllers: int = 1,
    patient: bool = True,
) -> AsyncIterator[Stack]:
    """Translate for `routes` and run the outcome. `controllers`: how many there are, for Envoy to ask; 0: none.

    A `patient` Envoy has longer time limits than the translation's: what is slow because the machine is busy has not
    failed."""
    translation = translate(o.hook_input(routes, clusters, http_filters), cluster.snapshot)
    models = ModelService(BaseModels(lambda: cluster.snapshot), cluster.metrics)
    servers, listening = [], []
    for _ in range(max(1, controllers)):
        server = grpc.aio.server(options=_GRPC_OPTIONS)
        server.add_generic_rpc_handlers((*cluster.discovery.handlers(), models.handler()))
        listening.append(server.add_insecure_port("127.0.0.1:0"))
        servers.append(server)
        if controllers:
            await server.start()
        else:
            await server.stop(0)
    try:
        async with (
            start_envoy(_bootstrap(translation, listening, patient=patient), directory) as envoy,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=HANG_SECONDS)) as client,
        ):
            url = f"http://127.0.0.1:{await envoy.listener_port(LISTENER)}"
            yield Stack(cluster, servers, envoy, url, client, translation)
    finally:
        cluster.discovery.close()
        await asyncio.gather(*(server.stop(0) for server in servers))


def _bootstrap(translation: Translation, discovery_ports: Iterable[int], *, patient: bool) -> dict[str, Any]:
    response = translation.response
    configuration = MessageToDict(route_pb2.RouteConfiguration.FromString(response.routes[0]))
    # Static routes may only name clusters that are there, unless told so; those over xDS may always.
    configuration["validateClusters"] = False
    listener = listener_pb2.Listener.FromString(response.listeners[0])
    manager = http_connection_manager_pb2.HttpConnectionManager()
    (http,) = listener.default_filter_chain.filters
    http.typed_config.Unpack(manager)
    manager.ClearField("rds")
    manager.route_config.name = configuration["name"]
    http.typed_config.Pack(manager)
    listener.address.socket_address.address = "127.0.0.1"
    listener.address.socket_address.port_value = 0
    # As Envoy Gateway's listeners have it.
    listener.per_connection_buffer_limit_bytes.value = 32768
    listener_json = MessageToDict(listener)
    (chain_filter,) = listener_json["defaultFilterChain"]["filters"]
    chain_filter["typedConfig"]["routeConfig"] = configuration
    made = [cluster_pb2.Cluster.FromString(content) for content in response.clusters]
    clusters = [
        _with_served(MessageToDict(found)) for found in made if found.name.startswith(("inferencepool/", "web"))
    ]
    discovery = {
        "name": "headrace_eds",
        "type": "STATIC",
        "connect_timeout": _PATIENCE,
        # As the role's EnvoyProxy has it: by default three retries at a time are too many.
        "circuit_breakers": {"thresholds": [{"max_requests": 1 << 20, "max_retries": 1 << 20}]},
        "load_assignment": {
            "cluster_name": "headrace_eds",
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": _address("127.0.0.1", port)}} for port in discovery_ports]}
            ],
        },
        "typed_extension_protocol_options": {
            _OPTIONS: {
                "@type": f"type.googleapis.com/{_OPTIONS}",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
    }
    resources: dict[str, Any] = {"listeners": [listener_json], "clusters": [discovery, *clusters]}
    return {
        "node": {"id": "test", "cluster": "test"},
        "static_resources": _with_patience(resources) if patient else resources,
    }


def _with_patience(part: Any) -> Any:
    """A part of a configuration with longer time limits."""
    if isinstance(part, list):
        return [_with_patience(each) for each in part]
    if not isinstance(part, dict):
        return part
    part = {
        key: _PATIENCE if key in ("connectTimeout", "initialFetchTimeout", "messageTimeout") else _with_patience(value)
        for key, value in part.items()
    }
    for limited in (part.get("connectionKeepalive"), *part.get("healthChecks", ())):
        if limited is not None:
            limited["timeout"] = _PATIENCE
    return part


def _with_served(cluster: Any) -> Any:
    """JSON cannot carry the field that the generated class does not know: put it in by name."""
    if isinstance(cluster, dict):
        cluster = {key: _with_served(value) for key, value in cluster.items()}
        if cluster.get("@type") == _OVERRIDE_HOST:
            cluster["selected_host_key"] = _SERVED
    elif isinstance(cluster, list):
        cluster = [_with_served(value) for value in cluster]
    return cluster


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}
