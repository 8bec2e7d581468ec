"""Scratch."""

from __future__ import annotations

import asyncio
import time

from .network import ipv4
from .objects import backend, pool, route
from .world import World, controller_ready, until


def translations(world: World) -> float:
    import urllib.request

    with urllib.request.urlopen("http://127.0.0.1:7091/metrics") as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith('headrace_gateway_translations_total{result="ok"}'):
                return float(line.split()[-1])
    return -1


async def test_experiment(world: World) -> None:
    wanted = pool("late")
    world.api.apply(wanted)
    world.add_pod("late-0", "late", ipv4(91))
    world.api.apply(route("late", {"backendRefs": [backend(wanted)]}))
    await asyncio.sleep(3)
    print("start", translations(world))
    world.add_picker_service(wanted, ipv4(92))
    await asyncio.sleep(3)
    print("after service", translations(world), world.api.get(wanted)["status"])
    grant = {
        "apiVersion": "gateway.networking.k8s.io/v1beta1",
        "kind": "ReferenceGrant",
        "metadata": {"name": "nudge", "namespace": "envoy-gateway-system"},
        "spec": {
            "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "nowhere"}],
            "to": [{"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "x1"}],
        },
    }
    world.api.apply(grant)
    await asyncio.sleep(3)
    print("after grant (status had changed)", translations(world))
    grant["spec"]["to"][0]["name"] = "x2"
    world.api.apply(grant)
    await asyncio.sleep(3)
    print("after grant (nothing had changed)", translations(world))
    wanted["metadata"]["annotations"] = {"headrace.dev/request-body-mode": "BUFFERED"}
    world.api.apply(wanted)
    await asyncio.sleep(3)
    print("after annotation", translations(world))
    grant["spec"]["to"][0]["name"] = "x3"
    world.api.apply(grant)
    await asyncio.sleep(3)
    print("after grant (annotation had changed)", translations(world))
    world.controller.process.kill()
    world.controller.process.wait()
    world.api.apply(route("late2", {"backendRefs": [backend(wanted)]}))
    await asyncio.sleep(6)
    world.restart_controller()
    await until(controller_ready, "the controller is ready again")
    started = time.monotonic()
    for _ in range(20):
        print("after restart", round(time.monotonic() - started, 1), translations(world))
        await asyncio.sleep(1)
