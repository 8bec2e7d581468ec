"""Body-based routing through the real Envoy Gateway, as a client sees it that knows one URL."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

from . import objects
from .network import ipv4
from .objects import backend, endpoint_slice, route, service
from .pools import OUTSIDE, A, B, Pools
from .world import until


def asked_for(model: str) -> bytes:
    return json.dumps({"prompt": "x" * 50_000, "model": model}).encode()


def model_rule(header: str, model: str, *refs: dict) -> dict:
    """A rule that is chosen by the model."""
    return {"matches": [{"headers": [{"name": header, "value": model}]}], "backendRefs": list(refs)}


async def test_the_model_chooses_the_pool(pools: Pools) -> None:
    world = pools.world
    plain = service("models-plain", 8000)
    names = objects.config_map("models", baseModel="base-b", adapters="- adapter-b\n")
    names["metadata"]["labels"] = {"inference.networking.k8s.io/bbr-managed": "true"}
    world.api.apply(plain, endpoint_slice("models-plain", 8000, ipv4(66)), names)
    refs = [backend(pools.a), backend(pools.b)]
    told = route(
        "models",
        model_rule("X-Gateway-Model-Name", "model-a", refs[0]),
        model_rule("X-Gateway-Base-Model-Name", "base-b", refs[1]),
        {"backendRefs": [backend(plain, group="", port=8000)]},
    )
    world.api.apply(told)
    try:
        await pools.client.wait_served("models", body=asked_for("model-a"))
        await until(lambda: bool(world.endpoints("headrace_eds")), "discovery")

        async def servers(model: str, **more: dict[str, str]) -> set[str]:
            answers = await asyncio.gather(
                *(pools.client.ask("models", body=asked_for(model), **more) for _ in range(20))
            )
            assert Counter(status for status, _, _ in answers) == {200: 20}, model
            return {str(seen["server"]) for _, seen, _ in answers}

        # The same prompt again and again: the picker may well keep it on one Pod.
        assert await servers("model-a") <= set(A)
        assert await servers("adapter-b") == set(B)
        assert await servers("base-b", headers={"x-gateway-model-name": "model-a"}) == set(B)
        assert await servers("unknown", headers={"x-gateway-model-name": "model-a"}) == {OUTSIDE}
        status, seen, _ = await pools.client.ask("models", body=None, headers={"x-gateway-model-name": "model-a"})
        assert (status, seen["server"]) == (200, OUTSIDE)
        # A pool that fails closed, first matched to the Service: nobody else answers for it.
        pools.picker_a.kill()
        before = len(pools.servers[OUTSIDE].requests)
        status, _, _ = await pools.client.ask("models", body=asked_for("model-a"))
        assert status in (503, 504)
        assert len(pools.servers[OUTSIDE].requests) == before
    finally:
        world.api.delete(told)
