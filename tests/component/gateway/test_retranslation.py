"""Changes that Envoy Gateway tells nobody of, in a pool's annotations and its picker's Service, take effect as well."""

from __future__ import annotations

import json
from typing import Any

from .network import ipv4
from .objects import Object, backend, pool, route, service
from .world import World, until

OBSERVE = "envoy.filters.http.ext_proc/headrace-observe"
PICK = "envoy.filters.http.ext_proc/headrace-pick"


def filters_of(world: World, name: str) -> dict[str, Any]:
    """The filters that Envoy's route of that HTTPRoute switches on, with their configuration."""
    dumped = world.admin("/config_dump?resource=dynamic_route_configs") or {"configs": []}
    found: dict[str, Any] = {}
    for config in dumped["configs"]:
        for host in config["route_config"].get("virtual_hosts", ()):
            for each in host["routes"]:
                if each["name"].startswith(f"httproute/default/{name}/"):
                    for weight in each["route"].get("weighted_clusters", {}).get("clusters", ()):
                        found |= weight.get("typed_per_filter_config", {})
    return found


def resolved(world: World, wanted: Object) -> str:
    """What the pool's status says of its picker."""
    conditions = [found for entry in world.parents(wanted) for found in entry["conditions"]]
    return next((found["message"] for found in conditions if found["type"] == "ResolvedRefs"), "")


async def test_a_picker_that_comes_later_and_annotations_that_change(world: World) -> None:
    wanted = pool("later")
    world.api.apply(wanted, route("later", {"backendRefs": [backend(wanted)]}))
    world.add_pod("later-0", "later", ipv4(91))
    await until(lambda: PICK in filters_of(world, "later"), "the route is there")
    assert OBSERVE not in filters_of(world, "later")
    world.add_picker_service(wanted, ipv4(92))
    await until(lambda: OBSERVE in filters_of(world, "later"), "the picker's Service says that it is ours")
    assert "a stream of its own, observation off" in resolved(world, wanted)
    wanted["metadata"]["annotations"] = {
        "headrace.dev/request-body-mode": "BUFFERED",
        "headrace.dev/response-observation": "all",
    }
    world.api.apply(wanted)
    await until(lambda: '"BUFFERED"' in json.dumps(filters_of(world, "later")[PICK]), "the annotations")
    assert '"response_body_mode": "STREAMED"' in json.dumps(filters_of(world, "later")[OBSERVE])
    assert "request bodies BUFFERED" in resolved(world, wanted)
    # No longer ours: the protocol's own mode.
    world.api.patch(service("later-epp", 9002), {"metadata": {"annotations": {"headrace.dev/endpoint-picker": None}}})
    await until(lambda: OBSERVE not in filters_of(world, "later"), "one stream both ways")
