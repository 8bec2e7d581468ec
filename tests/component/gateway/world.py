"""Everything that stands between a client and a pool's Pods, all of it real: API server, Envoy Gateway, the gateway
controller as a process, Envoy, pickers; and the means to change the cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from ...certificates import Authority
from ...hang import HANG_SECONDS
from ...integration.apiserver import running as running_api
from ..epp.picker import PickerProcess, start_picker
from ..epp.servers import ModelServer
from . import envoy_gateway, network, objects, patient
from .api import Api
from .objects import Object
from .processes import Running, started, wait_until

SERVER_NAME = "headrace-gateway.envoy-gateway-system.svc"
# Envoy Gateway itself takes 8080, 8081, 9443 and 18000 to 19001.
HEALTH_PORT, METRICS_PORT = 7081, 7091


@dataclass
class World:
    """The running parts. `directory` is the package's, for logs."""

    api: Api
    kubeconfig: Path
    binaries: Path
    directory: Path
    envoy_gateway: Running
    controller_command: Sequence[str]
    controller: Running
    stack: contextlib.ExitStack

    # ---- the cluster ----

    def add_pod(self, name: str, app: str, address: str, *, ready: bool = True, namespace: str = "default") -> Object:
        """A Pod that runs, at an address."""
        pod = objects.pod(name, app, namespace)
        self.api.apply(pod)
        self.set_pod(pod, address, ready=ready)
        return pod

    def set_pod(self, pod: Object, address: str, *, ready: bool) -> None:
        """What the kubelet would say of a Pod."""
        self.api.patch_status(pod, objects.pod_status(address, ready=ready))

    def add_picker_service(self, pool: Object, *addresses: str, ours: bool = True, port: int = 9002) -> None:
        """The Service that a pool's picker has, with these Pods behind it."""
        name = f"{pool['metadata']['name']}-epp"
        namespace = pool["metadata"]["namespace"]
        self.api.apply(
            objects.service(name, port, ours=ours, namespace=namespace),
            objects.endpoint_slice(name, port, *addresses, namespace=namespace),
        )

    def parents(self, pool: Object) -> list[dict[str, Any]]:
        """The status entries of a pool."""
        status = self.api.get(pool).get("status", {})
        return list(status.get("parents" if pool["apiVersion"] == objects.V1 else "parent", []))

    # ---- Envoy ----

    def admin(self, path: str) -> Any:
        """A JSON page of Envoy's admin port; None while there is no Envoy."""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{envoy_gateway.ADMIN_PORT}{path}", timeout=HANG_SECONDS
            ) as answer:
                return json.loads(answer.read())
        except OSError:
            return None

    def picker_counters(self, pool: Object) -> dict[str, int]:
        """What Envoy counted of a pool's picker that tells why it was not asked: for failures' messages."""
        kinds = "health_check|keepalive|fail_verify|membership_change|update_success|cx_destroy|cx_connect|cx_total"
        prefix = f"cluster.{cluster_name(pool)}/picker."
        stats = (self.admin(f"/stats?format=json&filter={kinds}") or {}).get("stats", [])
        found = {stat["name"]: stat["value"] for stat in stats if stat.get("name", "").startswith(prefix)}
        return {name.removeprefix(prefix): value for name, value in found.items() if value}

    def endpoints(self, cluster: str) -> dict[str, list[str]]:
        """What Envoy knows of the clusters whose names contain `cluster`: endpoints, healthy ones only."""
        found: dict[str, list[str]] = {}
        for status in (self.admin("/clusters?format=json") or {}).get("cluster_statuses", []):
            if cluster not in status["name"]:
                continue
            hosts = found.setdefault(status["name"], [])
            for host in status.get("host_statuses", []):
                health = host.get("health_status", {})
                if health.get("eds_health_status", "HEALTHY") == "HEALTHY" and len(health) <= 1:
                    address = host["address"]["socket_address"]
                    hosts.append(f"{address['address']}:{address['port_value']}")
        return {name: sorted(hosts) for name, hosts in found.items()}

    def wait_endpoints(self, cluster: str, *wanted: str) -> None:
        """Until a cluster of that name has exactly these endpoints."""
        wait_until(
            lambda: self.endpoints(cluster).get(cluster) == sorted(wanted),
            f"{cluster} with {sorted(wanted)}",
            alive=self.envoy_gateway,
        )

    def wait_pool(self, pool: Object, *wanted: str, picker: str | None = None) -> None:
        """Until Envoy knows a pool by these endpoints, and its picker by this one."""
        cluster = cluster_name(pool)
        self.wait_endpoints(cluster, *wanted)
        if picker is not None:
            self.wait_endpoints(f"{cluster}/picker", picker)

    # ---- the controller ----

    def restart_controller(self) -> None:
        """Start another controller where one has ended."""
        self.controller = self.stack.enter_context(started("controller", self.controller_command, self.directory))

    @contextmanager
    def another_controller(self, name: str, *flags: str) -> Iterator[None]:
        """A controller with other flags, `--name=value`, in the place of the usual one, until the block ends."""
        changed = {flag.partition("=")[0]: flag for flag in flags}
        command = [changed.get(part.partition("=")[0], part) for part in self.controller_command]
        self.controller.stop()
        with started(name, command, self.directory) as controller:
            controller.wait_until(controller_ready, f"{name} is ready")
            yield
        self.restart_controller()
        self.controller.wait_until(controller_ready, "the gateway controller is ready again")


def controller_ready() -> bool:
    """Whether /readyz says so."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{HEALTH_PORT}/readyz", timeout=HANG_SECONDS) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def cluster_name(pool: Object) -> str:
    """The name of a pool's cluster in Envoy."""
    metadata = pool["metadata"]
    return f"inferencepool/{pool['apiVersion'].rpartition('/')[0]}/{metadata['namespace']}/{metadata['name']}"


@contextmanager
def running_world(repository: Path, directory: Path) -> Iterator[World]:
    """All of it, in a network namespace of its own, with one Gateway and nothing behind it."""
    binaries = repository / "build/bin"
    for name in ("api", "envoy-gateway"):
        (directory / name).mkdir()
    with contextlib.ExitStack() as stack:
        stack.enter_context(network.own_network())
        api = stack.enter_context(running_api(binaries, directory / "api"))
        applied = api.kubectl("apply", "--server-side", "-R", "-f", str(repository / "crds"))
        assert applied.returncode == 0, applied.stderr
        envoy_gateway.install(api, binaries)
        authority = Authority("headrace-gateway-ca")
        client = envoy_gateway.write_secret(api, "envoy", directory / "client")
        serving = authority.issue(SERVER_NAME, "localhost").write(directory / "serving", authority.certificate)
        nobody = objects.service("nobody", 8000)
        api.apply(
            *envoy_gateway.hook_secrets(authority),
            envoy_gateway.proxy(authority.certificate, client, SERVER_NAME),
            envoy_gateway.proxy(
                authority.certificate, client, SERVER_NAME, name="second", admin_port=envoy_gateway.ADMIN_PORT + 1
            ),
            objects.gateway_class("proxy", envoy_gateway.CONTROLLER_NAME),
            objects.gateway(),
            # Envoy Gateway does not answer an Envoy that has asked for clusters before there was a first translation,
            # until one has any: without a route it would never be live.
            nobody,
            objects.endpoint_slice("nobody", 8000, network.blackhole()),
            objects.route("nobody", {"backendRefs": [objects.backend(nobody, group="", port=8000)]}),
        )
        command = [
            *(sys.executable, str(Path(patient.__file__)), "gateway", f"--kubeconfig={api.kubeconfig}"),
            *(f"--hook-port={envoy_gateway.HOOK_PORT}", f"--eds-port={envoy_gateway.EDS_PORT}"),
            *(f"--health-port={HEALTH_PORT}", f"--metrics-port={METRICS_PORT}", "--bind-address=127.0.0.1"),
            *(f"--cert-path={serving}", f"--eds-client-ca={client / 'ca.crt'}", "--epp-tls-default=unverified"),
            *("--drain-delay=0s", f"--namespace={envoy_gateway.NAMESPACE}"),
        ]
        # Ended in the reverse order: Envoy Gateway, and Envoy with it, before the controller that they ask.
        controller = stack.enter_context(started("controller", command, directory))
        controller.wait_until(controller_ready, "the gateway controller is ready")
        gateway = stack.enter_context(envoy_gateway.running(api, binaries, directory / "envoy-gateway"))
        world = World(Api(api.kubeconfig), api.kubeconfig, binaries, directory, gateway, command, controller, stack)
        wait_until(lambda: (world.admin("/server_info") or {}).get("state") == "LIVE", "Envoy is live", alive=gateway)
        yield world


# ---- what runs in Pods ----


@asynccontextmanager
async def model_servers(*addresses: str, port: int = 8000) -> AsyncIterator[dict[str, ModelServer]]:
    """Model servers at Pods' addresses, by `ip:port`."""
    async with contextlib.AsyncExitStack() as stack:
        found = {}
        for address in addresses:
            key = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            server = ModelServer(key=key)
            app = web.Application(client_max_size=1 << 30, handler_args={"handler_cancellation": True})
            app.router.add_get("/metrics", server.metrics)
            app.router.add_route("*", "/{path:.*}", server.serve)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, address, port, reuse_address=True).start()
            found[key] = server
        yield found


@dataclass
class PodPicker(PickerProcess):
    """A picker at a Pod's address."""

    address: str = ""

    async def get(self, path: str) -> tuple[int, str]:
        """Status and text of a page of its HTTP port."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://{host}:{self.metrics_port}{path}") as answer,
        ):
            return answer.status, await answer.text()


@asynccontextmanager
async def picker(world: World, pool: Object, address: str, *flags: str) -> AsyncIterator[PodPicker]:
    """`headrace epp` for a pool at a Pod's address, reading the API server, with TLS of its own making."""
    metadata = pool["metadata"]
    source = (
        f"--pool-name={metadata['name']}",
        f"--pool-namespace={metadata['namespace']}",
        f"--pool-group={pool['apiVersion'].rpartition('/')[0]}",
        f"--kubeconfig={world.kubeconfig}",
    )
    where = (f"--bind-address={address}", "--grpc-port=9002", "--secure-serving=true")
    name = f"epp-{metadata['name']}-{address.replace(':', '-')}"
    async with start_picker((), world.directory, *where, *flags, name=name, source=source) as process:
        yield PodPicker(**vars(process), address=address)


@dataclass
class Client:
    """A client of the Gateway."""

    session: aiohttp.ClientSession
    port: int = objects.LISTENER_PORT

    async def ask(
        self,
        route: str,
        path: str = "/v1/completions",
        *,
        body: bytes | None = b'{"model":"base","prompt":"hi"}',
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, dict[str, Any], str]:
        """Status, what the server saw (empty if none did), and the body as text. No body means GET."""
        everything = {"host": f"{route}.example", "content-type": "application/json", **(headers or {})}
        url = f"http://127.0.0.1:{self.port}{path}"
        method = "GET" if body is None else "POST"
        timeout = aiohttp.ClientTimeout(total=HANG_SECONDS)
        async with self.session.request(method, url, data=body, headers=everything, timeout=timeout) as answer:
            text = (await answer.read()).decode(errors="replace")
            try:
                seen = json.loads(text)
            except ValueError:
                seen = {}
            return answer.status, seen if isinstance(seen, dict) else {}, text

    async def wait_served(self, route: str, **arguments: Any) -> dict[str, Any]:
        """Until a request is answered 200: the picker may still be reading its pool. What the server saw."""
        last: object = None
        try:
            async with asyncio.timeout(HANG_SECONDS):
                while True:
                    with contextlib.suppress(aiohttp.ClientError):
                        status, seen, text = await self.ask(route, **arguments)
                        if status == 200:
                            return seen
                        last = (status, text[:200])
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"{route}: no answer within {HANG_SECONDS} s, last {last}") from None


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    """A client with as many connections as it likes."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield Client(session)


async def until(condition: Callable[[], bool], what: str) -> None:
    """Until a condition on the cluster holds."""
    try:
        async with asyncio.timeout(HANG_SECONDS):
            while not await asyncio.to_thread(condition):  # noqa: ASYNC110 (other processes)
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"not within {HANG_SECONDS} s: {what}") from None
