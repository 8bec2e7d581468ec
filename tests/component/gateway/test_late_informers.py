"""Every change of weights reaches Envoy, however late the controller's informers are. Envoy's own word counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from headrace.protocol.objects import ROUTES_TRANSLATED
from headrace.protocol.translated import read_routes

from .late import LateApi
from .objects import Object, backend, pool, route
from .world import World, until


@pytest.fixture(scope="module")
def late_api(world: World) -> Iterator[LateApi]:
    """The controller reads the API server through this, for the tests of the module."""
    with LateApi(world.kubeconfig).running() as proxy:
        kubeconfig = proxy.kubeconfig(world.directory / "late-kubeconfig.json")
        with world.another_controller("late-controller", f"--kubeconfig={kubeconfig}"):
            yield proxy


def weights(world: World, name: str) -> list[int]:
    """The weights of an HTTPRoute's pools in Envoy's configuration."""
    dumped = world.admin("/config_dump?resource=dynamic_route_configs") or {"configs": []}
    return [
        weight["weight"]
        for config in dumped["configs"]
        for host in config["route_config"].get("virtual_hosts", ())
        for found in host["routes"]
        if found["name"].startswith(f"httproute/default/{name}/")
        for weight in found["route"].get("weighted_clusters", {}).get("clusters", ())
    ]


def translated(world: World, wanted: Object, told: Object) -> bool:
    """Whether the pool's status says that the newest generation of the route is translated."""
    generation = world.api.get(told)["metadata"]["generation"]
    entries = [
        read_routes(found["message"])
        for entry in world.parents(wanted)
        for found in entry["conditions"]
        if found["type"] == ROUTES_TRANSLATED and found["status"] == "True"
    ]
    key = ("HTTPRoute", "default", told["metadata"]["name"])
    return any(key in entry and entry[key].generation == generation for entry in entries)


@pytest.mark.parametrize(("late", "flips"), [(0.002, 10), (0.02, 10), (0.2, 8), (1.0, 5), (5.0, 3)])
async def test_each_change_of_weights_reaches_envoy(world: World, late_api: LateApi, late: float, flips: int) -> None:
    late_api.seconds = late
    name = f"late-{late:g}".replace(".", "-")
    first, second = pool(f"{name}-a"), pool(f"{name}-b")
    told = route(name, {"backendRefs": [backend(first, 1), backend(second, 1)]})
    world.api.apply(first, second, told)
    try:
        await until(lambda: weights(world, name) == [1, 1], "the route is there")
        # A route that the informers do not know is listed for each call: they have to know it.
        await until(lambda: translated(world, first, told), "the informers know the route")
        seen = []
        for flip in range(flips):
            wanted = [3, 1] if flip % 2 == 0 else [1, 1]
            refs = [backend(ref, weight) for ref, weight in zip((first, second), wanted, strict=True)]
            world.api.patch(told, {"spec": {"rules": [{"backendRefs": refs}]}})
            begun = time.monotonic()
            await until(lambda wanted=wanted: weights(world, name) == wanted, f"flip {flip}: {wanted}")
            seen.append(time.monotonic() - begun)
            # Envoy Gateway's own write of the route's status: it is what was taken for the news.
            await asyncio.sleep(0.05)
        print(f"informers late by {late} s: longest {max(seen):.2f} s, {[round(each, 2) for each in seen]}")
        await until(lambda: translated(world, first, told), "the pool's status says what is translated")
    finally:
        late_api.seconds = 0.0
        world.api.delete(told, first, second)
