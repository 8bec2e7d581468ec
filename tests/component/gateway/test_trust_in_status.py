"""A picker whose certificate the gateway does not trust: its pool's status says so, until it is mended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from ...certificates import Authority
from . import objects
from .network import ipv4
from .objects import backend, pool, route
from .world import World, client, model_servers, picker, until


@pytest.fixture(scope="module")
def verifying(world: World) -> Iterator[World]:
    """With the controller's own default."""
    with world.another_controller("verifying-controller", "--epp-tls-default=verify"):
        yield world


async def test_a_picker_that_nobody_trusts_is_told_until_it_is_mended(verifying: World) -> None:
    world, wanted, host = verifying, pool("distrusted"), "distrusted-epp.default.svc"
    right, wrong = Authority("right"), Authority("wrong")
    world.api.apply(wanted, route("distrusted", {"backendRefs": [backend(wanted)]}))
    world.add_pod("distrusted-0", "distrusted", ipv4(51))
    world.add_picker_service(wanted, ipv4(52))

    def condition() -> dict[str, str]:
        conditions = [found for entry in world.parents(wanted) for found in entry["conditions"]]
        return next((found for found in conditions if found["type"] == "ResolvedRefs"), {})

    def resolved() -> tuple[str | None, str | None]:
        return condition().get("status"), condition().get("reason")

    def trust(authority: Authority) -> None:
        ca = objects.config_map("distrusted-ca", ca_crt=authority.certificate.decode())
        world.api.apply(ca, objects.backend_tls_policy("distrusted-epp", "distrusted-ca", host))

    distrusted, trusted = ("False", "EndpointPickerNotTrusted"), ("True", "ResolvedRefs")
    async with model_servers(ipv4(51)), client() as asking:
        # A certificate of its own making, and no policy.
        async with picker(world, wanted, ipv4(52)):
            await until(lambda: resolved() == distrusted, "no policy")
            # The status may be there before Envoy has the route.
            async with asyncio.timeout(60):
                while (await asking.ask("distrusted"))[0] == 404:  # noqa: ASYNC110 (another process)
                    await asyncio.sleep(0.1)
            assert (await asking.ask("distrusted"))[0] == 503
            # A policy with a CA that has not signed it: only a handshake tells.
            without = condition()["message"]
            trust(right)
            await until(lambda: resolved() == distrusted and condition()["message"] != without, "another CA than its")
            assert (await asking.ask("distrusted"))[0] == 503
        directory = right.issue(host).write(world.directory / "distrusted")
        async with picker(world, wanted, ipv4(52), f"--cert-path={directory}"):
            await until(lambda: resolved() == trusted, "a certificate of that CA")
            await asking.wait_served("distrusted")
            trust(wrong)
            await until(lambda: resolved() == distrusted, "another CA")
            trust(right)
            await until(lambda: resolved() == trusted, "the CA is back")

    events = world.api.list("/api/v1/namespaces/default/events")
    about = [found for found in events if found["reason"] == "EndpointPickerNotTrusted"]
    assert "distrusted" in {found["involvedObject"]["name"] for found in about}
