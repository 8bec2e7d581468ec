"""Two pools, their pickers and model servers: what most tests of the package need."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from ...hang import HANG_SECONDS
from ..epp.servers import ModelServer
from .network import ipv4
from .objects import Object, old_pool, pool, route
from .world import Client, PodPicker, World, client, model_servers, picker

A = (f"{ipv4(11)}:8000", f"{ipv4(12)}:8000")
B = (f"{ipv4(21)}:8000",)
OUTSIDE = f"{ipv4(66)}:8000"

_PICKER_HOSTS = itertools.count(140)


@dataclass
class Pools:
    """Two pools with two and one Pods, a picker each, and a server that belongs to neither."""

    world: World
    a: Object
    b: Object
    servers: dict[str, ModelServer]
    client: Client
    picker_a: PodPicker
    picker_b: PodPicker

    async def apply_route(self, name: str, *rules: Object, lacking: bool = False, **arguments: Any) -> None:
        """A route; wait until requests pass it, and until Envoy finds the pickers that it needs healthy.

        With several backends in a rule, until none is `lacking`: Envoy Gateway may learn of one after the others."""
        self.world.api.apply(route(name, *rules))
        await self.client.wait_served(name, **arguments)
        named = {found["name"] for rule in rules for found in rule["backendRefs"]}
        for wanted, keys, process in ((self.a, A, self.picker_a), (self.b, B, self.picker_b)):
            if wanted["metadata"]["name"] in named:
                self.world.wait_pool(wanted, *keys, picker=f"{process.address}:9002")
        if not lacking and any(len(rule["backendRefs"]) > 1 for rule in rules):
            async with asyncio.timeout(HANG_SECONDS):
                while "500" in await self.shares(name, 20):
                    pass

    async def shares(self, name: str, count: int) -> Counter[str]:
        """Which servers answered that many requests, a few at a time, or with which status others did."""
        found: Counter[str] = Counter()
        left = itertools.repeat(None, count)

        async def ask() -> None:
            for _ in left:
                status, seen, _ = await self.client.ask(name)
                found[str(seen.get("server")) if status == 200 else str(status)] += 1

        await asyncio.gather(*(ask() for _ in range(8)))
        return found


@asynccontextmanager
async def running_pools(world: World) -> AsyncIterator[Pools]:
    """Pool `a` of v1alpha2, FailClose; pool `b` of v1, FailOpen; both of our pickers."""
    a, b = old_pool("a"), pool("b", failure_mode="FailOpen")
    world.api.apply(a, b)
    for number, key in enumerate(A):
        world.add_pod(f"a-{number}", "a", key.rpartition(":")[0])
    world.add_pod("b-0", "b", ipv4(21))
    # Other addresses for each test: Envoy takes the new pickers for what they are, not for the last test's.
    address_a, address_b = ipv4(next(_PICKER_HOSTS)), ipv4(next(_PICKER_HOSTS))
    world.add_picker_service(a, address_a)
    world.add_picker_service(b, address_b)
    async with contextlib.AsyncExitStack() as stack:
        servers = await stack.enter_async_context(model_servers(ipv4(11), ipv4(12), ipv4(21), ipv4(66)))
        picker_a, picker_b = await asyncio.gather(
            stack.enter_async_context(picker(world, a, address_a)),
            stack.enter_async_context(picker(world, b, address_b)),
        )
        yield Pools(world, a, b, servers, await stack.enter_async_context(client()), picker_a, picker_b)
