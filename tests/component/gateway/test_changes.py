"""Changes under traffic: CAs and certificates, Pods and routes, the controller itself. And GRPCRoutes, and Gateways."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
from cryptography import x509
from cryptography.x509.oid import NameOID

from ...certificates import Authority
from ...hang import HANG_SECONDS
from ...shares import is_likely
from . import objects
from .network import ipv4
from .objects import LISTENER_PORT, backend, pool, route
from .pools import A, B, Pools
from .world import Client, World, client, controller_ready, model_servers, picker, until

SECOND_PORT = 8889


def issuer(address: str) -> str:
    """The common name of the CA whose certificate a picker shows to a new connection."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((address, 9002), HANG_SECONDS) as plain, context.wrap_socket(plain) as connection:
        shown = x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")
    (name,) = shown.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(name.value)


@asynccontextmanager
async def load(asking: Client, *routes: str, per_second: int = 100, at_once: int = 8) -> AsyncIterator[Counter[str]]:
    """Requests over these routes while the block runs: how many got which status.

    The rate is steady where the machine keeps up with it: there are never more than `at_once` on their way."""
    seen: Counter[str] = Counter()
    waiting: set[asyncio.Task[None]] = set()
    places = asyncio.Semaphore(at_once)

    async def one(name: str) -> None:
        try:
            status, _, _ = await asking.ask(name)
            seen[f"{name} {status}"] += 1
        except Exception as error:  # noqa: BLE001 (counted, and looked at by the test)
            seen[f"{name} {type(error).__name__}"] += 1
        finally:
            places.release()

    async def run() -> None:
        start = asyncio.get_running_loop().time()
        for number, name in enumerate(itertools.cycle(routes)):
            await asyncio.sleep(max(0.0, start + number / per_second - asyncio.get_running_loop().time()))
            await places.acquire()
            task = asyncio.create_task(one(name))
            waiting.add(task)
            task.add_done_callback(waiting.discard)

    running = asyncio.create_task(run())
    try:
        yield seen
    finally:
        running.cancel()
        await asyncio.gather(running, *waiting, return_exceptions=True)


async def answered(seen: Counter[str], more: int) -> None:
    """Until so many more requests of a load have been answered."""
    wanted = seen.total() + more
    await until(lambda: seen.total() >= wanted, f"{more} more answers than {dict(seen)}")


def failures(seen: Counter[str]) -> dict[str, int]:
    """What was not answered 200."""
    return {what: count for what, count in seen.items() if not what.endswith(" 200")}


async def test_a_picker_is_verified_and_its_ca_changes_under_traffic(world: World) -> None:
    wanted = pool("verified")
    host = "verified-epp.default.svc"
    first, second, wrong = Authority("first"), Authority("second"), Authority("wrong")
    directory = world.directory / "verified"
    first.issue(host).write(directory)
    ca = objects.config_map("verified-ca", ca_crt=first.certificate.decode())
    world.api.apply(wanted, ca, objects.backend_tls_policy("verified-epp", "verified-ca", host))
    world.add_pod("verified-0", "verified", ipv4(71))
    world.add_picker_service(wanted, ipv4(7))
    world.api.apply(route("verified", {"backendRefs": [backend(wanted)]}))

    def trust(*authorities: Authority) -> None:
        bundle = "".join(authority.certificate.decode() for authority in authorities)
        world.api.apply(objects.config_map("verified-ca", ca_crt=bundle))

    def serial() -> list[str]:
        """Of the CAs that Envoy trusts for the picker now."""
        found = world.admin("/config_dump?resource=dynamic_active_secrets")["configs"]
        return [str(secret["secret"]) for secret in found if "default/verified/epp" in secret["name"]]

    def trusts(authority: Authority) -> bool:
        lines = authority.certificate.decode().splitlines()
        return any(lines[2] in text for text in serial())

    async def trusted(authority: Authority) -> None:
        await until(lambda: trusts(authority), "Envoy has the CA")

    def refused() -> int:
        """How many certificates of the picker Envoy has refused."""
        return world.picker_counters(wanted).get("ssl.fail_verify_error", 0)

    async with model_servers(ipv4(71)), client() as asking:
        async with picker(world, wanted, ipv4(7), f"--cert-path={directory}"):
            await asking.wait_served("verified")
            async with load(asking, "verified") as seen:
                trust(first, second)
                await trusted(second)
                second.issue(host).write(directory)
                await until(lambda: issuer(ipv4(7)) == "second", "the picker shows the new certificate")
                await answered(seen, 100)
                trust(second)
                await until(lambda: not trusts(first), "Envoy trusts the new CA alone")
                await answered(seen, 100)
            assert failures(seen) == {}
        # A picker that comes anew is verified: by a CA that did not sign its certificate it is not trusted.
        trust(wrong)
        await trusted(wrong)
        before = refused()
        async with picker(world, wanted, ipv4(7), f"--cert-path={directory}"):
            await until(lambda: refused() > before, "Envoy has refused the certificate")
            status, _, _ = await asking.ask("verified")
            assert status == 503
            trust(second)
            await asking.wait_served("verified")


async def test_a_grpc_route_to_an_h2c_pool(world: World) -> None:
    wanted = pool("grpc", ports=(8100,), appProtocol="kubernetes.io/h2c")
    world.api.apply(wanted)
    world.add_pod("grpc-0", "grpc", ipv4(81))
    world.add_picker_service(wanted, ipv4(8))
    told = route("grpc", {"backendRefs": [backend(wanted)]})
    world.api.apply({**told, "kind": "GRPCRoute"})

    async def echo(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return request[::-1]

    server = grpc.aio.server()
    handlers: dict[str, Any] = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    server.add_insecure_port(f"{ipv4(81)}:8100")
    await server.start()
    options = [("grpc.default_authority", "grpc.example")]
    try:
        async with (
            picker(world, wanted, ipv4(8)),
            grpc.aio.insecure_channel(f"127.0.0.1:{LISTENER_PORT}", options=options) as channel,
        ):
            call: Any = channel.unary_unary("/test.Test/Echo")
            async with asyncio.timeout(HANG_SECONDS):
                while True:
                    with contextlib.suppress(grpc.aio.AioRpcError):
                        assert await call(b"abc") == b"cba"
                        break
                    await asyncio.sleep(0.2)
    finally:
        await server.stop(0)


async def test_two_gateways_lead_to_their_own_pools(pools: Pools) -> None:
    world = pools.world
    second = objects.second_gateway(SECOND_PORT)
    world.api.apply(second)
    await pools.apply_route("both", {"backendRefs": [backend(pools.a)]})
    told = route("both", {"backendRefs": [backend(pools.b)]})
    told["metadata"]["name"] = "both-second"
    told["spec"]["parentRefs"] = [{"name": "second", "namespace": "envoy-gateway-system"}]
    world.api.apply(told)
    other = Client(pools.client.session, SECOND_PORT)
    try:
        assert (await other.wait_served("both"))["server"] in B
        assert set(await pools.shares("both", 20)) == set(A)
        parents = {entry["parentRef"]["name"] for entry in world.parents(pools.b)}
        assert "second" in parents
    finally:
        world.api.delete(second, told)
    await until(
        lambda: "second" not in {entry["parentRef"]["name"] for entry in world.parents(pools.b)}, "the entry is gone"
    )


async def test_the_controller_dies_under_load(pools: Pools) -> None:
    world = pools.world
    await pools.apply_route("dies", {"backendRefs": [backend(pools.a), backend(pools.b)]})
    async with load(pools.client, "dies") as seen:
        await answered(seen, 100)
        world.controller.process.kill()
        world.controller.process.wait()
        # A change that it misses: it must be there once the controller is back.
        missed = world.add_pod("a-missed", "a", ipv4(13))
        await answered(seen, 200)
        world.restart_controller()
        await until(controller_ready, "the controller is ready again")
        await asyncio.to_thread(world.wait_pool, pools.a, *A, f"{ipv4(13)}:8000")
        world.api.delete(missed)
        await asyncio.to_thread(world.wait_pool, pools.a, *A)
        await answered(seen, 10)
    assert failures(seen) == {}


async def test_a_pool_of_a_rule_is_deleted_under_load(pools: Pools) -> None:
    world = pools.world
    doomed = pool("doomed", app="b")
    world.api.apply(doomed)
    world.add_picker_service(doomed, pools.picker_b.address)
    async with picker(world, doomed, ipv4(99)):
        world.add_picker_service(doomed, ipv4(99))
        await pools.apply_route("loses", {"backendRefs": [backend(pools.a, 70), backend(doomed, 30)]})
        await asyncio.to_thread(world.wait_pool, doomed, *B, picker=f"{ipv4(99)}:9002")
        async with load(pools.client, "loses") as seen:
            await answered(seen, 100)
            assert failures(seen) == {}
            world.api.delete(doomed)
            await until(lambda: seen["loses 500"] > 0, "the share of the deleted pool is answered 500")
            # Those that were on their way with the route of before are over.
            await answered(seen, 50)
            between = seen["loses 503"]
            await answered(seen, 100)
        # In between, its endpoints are gone already and its route is not: its share alone fails, until it is.
        assert set(seen) <= {"loses 200", "loses 500", "loses 503"}, seen
        assert seen["loses 503"] == between, seen
    shares = await pools.shares("loses", 400)
    assert is_likely(0.3, shares["500"], 400), shares
    assert set(shares) == {*A, "500"}
    # The reason, as Gateway API says: in the route's status.
    parents = world.api.get(route("loses"))["status"]["parents"]
    reasons = {found["type"]: (found["status"], found["reason"]) for found in parents[0]["conditions"]}
    assert reasons["ResolvedRefs"] == ("False", "BackendNotFound")


async def test_churn_costs_no_request(pools: Pools) -> None:
    """Pods come and go, pools and routes change, with a few requests between any two changes."""
    world = pools.world
    await pools.apply_route("churn", {"backendRefs": [backend(pools.a, 50), backend(pools.b, 50)]})
    before = world.picker_counters(pools.a)
    async with model_servers(*(ipv4(host) for host in range(100, 104))), load(pools.client, "churn") as seen:
        for turn in range(25):
            name, address = f"churn-{turn % 4}", ipv4(100 + turn % 4)
            pod = world.add_pod(name, "a", address)
            world.api.apply(route(f"other-{turn % 5}", {"backendRefs": [backend(pools.a)]}))
            await answered(seen, 10)
            world.api.apply(route("churn", {"backendRefs": [backend(pools.a, 40 + turn % 20), backend(pools.b, 50)]}))
            world.api.apply({**pools.b, "metadata": {**pools.b["metadata"], "labels": {"turn": str(turn)}}})
            await answered(seen, 10)
            # As a cluster does it: first not ready, then gone.
            world.set_pod(pod, address, ready=False)
            world.api.delete(pod, route(f"other-{(turn + 2) % 5}"))
        await asyncio.to_thread(world.wait_pool, pools.a, *A)
        await answered(seen, 50)
    assert failures(seen) == {}, (before, world.picker_counters(pools.a))
