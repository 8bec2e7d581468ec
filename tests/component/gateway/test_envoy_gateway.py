"""InferencePools through the real Envoy Gateway: what it makes of routes, with the hook under test, in a real Envoy."""

from __future__ import annotations

from typing import Any

import pytest

from ...shares import is_likely
from . import envoy_gateway
from .network import ipv4, ipv6
from .objects import V1, V1ALPHA2, Object, backend, endpoint_slice, old_pool, pool, route, service
from .pools import OUTSIDE, A, B, Pools
from .world import World, model_servers, picker, until


async def test_pools_of_both_api_versions_are_served(pools: Pools) -> None:
    for wanted, keys in ((pools.a, A), (pools.b, B)):
        name = wanted["metadata"]["name"]
        await pools.apply_route(name, {"backendRefs": [backend(wanted)]})
        pools.world.wait_pool(wanted, *keys)
        assert set(await pools.shares(name, 40)) == set(keys)
    # What was picked is what served: the gateway followed the pick.
    decisions = await pools.picker_a.decisions()
    assert {decision["winner"] for decision in decisions} == set(A)


async def test_weights_hold_over_pools_of_both_groups(pools: Pools) -> None:
    await pools.apply_route("weights", {"backendRefs": [backend(pools.a, 70), backend(pools.b, 30)]})
    shares = await pools.shares("weights", 400)
    assert is_likely(0.7, shares[A[0]] + shares[A[1]], 400), shares
    assert set(shares) <= {*A, *B}


async def test_a_pool_and_a_service_share_a_rule(pools: Pools) -> None:
    plain = service("plain", 8000)
    pools.world.api.apply(plain, endpoint_slice("plain", 8000, ipv4(66)))
    await pools.apply_route("mixed", {"backendRefs": [backend(pools.a, 1), backend(plain, 1, group="", port=8000)]})
    shares = await pools.shares("mixed", 200)
    assert is_likely(0.5, shares[OUTSIDE], 200), shares
    assert set(shares) <= {*A, OUTSIDE}


async def test_the_share_of_a_missing_pool_is_answered_500(pools: Pools) -> None:
    nowhere = pool("nowhere")
    refs = [backend(pools.a, 1), backend(nowhere, 1)]
    await pools.apply_route("missing", {"backendRefs": refs}, lacking=True)
    shares = await pools.shares("missing", 200)
    assert is_likely(0.5, shares["500"], 200), shares
    assert set(shares) == {*A, "500"}


async def test_one_pool_in_several_rules_keeps_each_rules_filters(pools: Pools) -> None:
    header = {
        "type": "RequestHeaderModifier",
        "requestHeaderModifier": {"set": [{"name": "x-rule", "value": "second"}]},
    }
    rewrite = {"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}}
    prefix = {"path": {"type": "PathPrefix", "value": "/second"}}
    await pools.apply_route(
        "rules",
        {"backendRefs": [backend(pools.a)]},
        {"matches": [prefix], "filters": [header, rewrite], "backendRefs": [backend(pools.a), backend(pools.a)]},
    )
    first = await pools.client.wait_served("rules")
    second = await pools.client.wait_served("rules", path="/second/v1/models")
    assert second["path"] == "/v1/models"
    assert ["x-rule", "second"] in second["headers"]
    assert "x-rule" not in dict(first["headers"])


async def test_a_client_never_leaves_the_pool(pools: Pools) -> None:
    await pools.apply_route("tricks", {"backendRefs": [backend(pools.a)]})
    names = ("", "-served", "-subset")
    tricks = {f"x-gateway-destination-endpoint{name}": OUTSIDE for name in names} | {
        "envoy.lb": OUTSIDE,
        "x-envoy-original-dst-host": OUTSIDE,
    }
    for body in (None, b"{}", b'{"prompt":"%s"}' % (b"x" * 100_000)):
        status, seen, _ = await pools.client.ask("tricks", body=body, headers=tricks)
        assert status == 200
        assert seen["server"] in A
        # What the Pod sees under these names is the gateway's own word, or nothing.
        assert OUTSIDE not in [value for name, value in seen["headers"] if name.startswith("x-gateway-destination")]
    assert not pools.servers[OUTSIDE].requests


async def test_a_route_into_another_namespace_needs_a_grant(pools: Pools) -> None:
    world = pools.world
    world.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}})
    far = pool("far", namespace="other")
    world.api.apply(far)
    world.add_pod("far-0", "far", ipv4(31), namespace="other")
    world.add_picker_service(far, ipv4(3))
    world.add_picker_service({**far, "metadata": {**far["metadata"], "namespace": "other"}}, ipv4(3))
    grant = {
        "apiVersion": "gateway.networking.k8s.io/v1beta1",
        "kind": "ReferenceGrant",
        "metadata": {"name": "pools", "namespace": "other"},
        "spec": {
            "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "default"}],
            "to": [{"group": "inference.networking.k8s.io", "kind": "InferencePool"}],
        },
    }
    async with model_servers(ipv4(31)), picker(world, far, ipv4(3)):
        await pools.apply_route(
            "far",
            {"matches": [{"path": {"value": "/near"}}], "backendRefs": [backend(pools.a)]},
            {"backendRefs": [backend(far, namespace="other")]},
            path="/near",
        )
        status, _, _ = await pools.client.ask("far")
        assert status == 500
        world.api.apply(grant)
        seen = await pools.client.wait_served("far")
        assert seen["server"] == f"{ipv4(31)}:8000"


async def test_endpoints_follow_the_pods(pools: Pools) -> None:
    world = pools.world
    grown = pool("grown", ports=(8000, 8002))
    world.api.apply(grown)
    world.add_picker_service(grown, ipv4(4))
    first = world.add_pod("grown-0", "grown", ipv4(41))
    world.add_pod("grown-1", "grown", ipv4(42), ready=False)
    world.api.apply(route("grown", {"backendRefs": [backend(grown)]}))
    one = [f"{ipv4(41)}:8000", f"{ipv4(41)}:8002"]
    world.wait_pool(grown, *one)
    second = world.add_pod("grown-1", "grown", ipv4(42))
    two = [f"{ipv4(42)}:8000", f"{ipv4(42)}:8002"]
    world.wait_pool(grown, *one, *two)
    world.set_pod(first, ipv4(41), ready=False)
    world.wait_pool(grown, *two)
    world.api.delete(second)
    world.wait_pool(grown)


async def test_ipv6_pods_and_picker(pools: Pools) -> None:
    world = pools.world
    six = pool("six")
    world.api.apply(six)
    world.add_pod("six-0", "six", ipv6(5))
    world.add_picker_service(six, ipv6(6))
    async with model_servers(ipv6(5)), picker(world, six, ipv6(6)):
        await pools.apply_route("six", {"backendRefs": [backend(six)]})
        _, seen, _ = await pools.client.ask("six")
        assert seen["server"] == f"[{ipv6(5)}]:8000"


async def test_envoy_refused_nothing(pools: Pools) -> None:
    await pools.apply_route("refusals", {"backendRefs": [backend(pools.a), backend(pools.b)]})
    counters = pools.world.admin("/stats?format=json&filter=update_rejected$")["stats"]
    assert {stat["name"]: stat["value"] for stat in counters if stat.get("value")} == {}
    # The contract with Envoy Gateway: these names are what the translation starts from.
    routes = pools.world.admin("/config_dump?resource=dynamic_route_configs")["configs"]
    names = {
        found["name"]
        for config in routes
        for host in config["route_config"]["virtual_hosts"]
        for found in host["routes"]
    }
    assert any(name.startswith("httproute/default/refusals/rule/0/match/") for name in names)


async def test_pickers_that_nobody_verifies_are_warned_of(pools: Pools) -> None:
    await pools.apply_route("warned", {"backendRefs": [backend(pools.a), backend(pools.b)]})

    def warned() -> set[tuple[str, str]]:
        events = pools.world.api.list("/api/v1/namespaces/default/events")
        about = (found["involvedObject"] for found in events if found["reason"] == "EndpointPickerUnverified")
        return {(found["apiVersion"], found["name"]) for found in about}

    await until(lambda: {(V1, "b"), (V1ALPHA2, "a")} <= warned(), "a warning event on both pools")


def entry_of(world: World, wanted: Object, gateway: str) -> dict[str, Any] | None:
    """What the pool's status says for a Gateway."""
    found = [entry for entry in world.parents(wanted) if entry["parentRef"]["name"] == gateway]
    return found[0] if found else None


@pytest.mark.parametrize("version", [V1, V1ALPHA2])
async def test_status_comes_and_goes_with_the_routes(world: World, version: str) -> None:
    name = f"told-{version.rpartition('/')[2]}"
    wanted = pool(name) if version == V1 else old_pool(name)
    told = route(name, {"backendRefs": [backend(wanted)]})
    world.api.apply(wanted, told)

    def conditions() -> dict[str, tuple[str, str]]:
        entry = entry_of(world, wanted, "gateway") or {"conditions": []}
        return {found["type"]: (found["status"], found["reason"]) for found in entry["conditions"]}

    await until(lambda: conditions().get("ResolvedRefs") == ("False", "InvalidExtensionRef"), "no picker Service")
    assert conditions()["Accepted"] == ("True", "Accepted")
    world.add_picker_service(wanted, ipv4(9))
    await until(lambda: conditions().get("ResolvedRefs") == ("True", "ResolvedRefs"), "the Service is there")
    entry = entry_of(world, wanted, "gateway")
    assert entry is not None
    generation = world.api.get(wanted)["metadata"]["generation"]
    assert {found["observedGeneration"] for found in entry["conditions"]} == {generation}
    if version == V1:
        assert entry["controllerName"] == envoy_gateway.CONTROLLER_NAME
    world.api.delete(told)
    await until(lambda: entry_of(world, wanted, "gateway") is None, "the entry is gone with the route")


@pytest.mark.parametrize("version", [V1, V1ALPHA2])
async def test_status_leaves_others_alone_and_is_not_written_twice(world: World, version: str) -> None:
    name = f"shared-{version.rpartition('/')[2]}"
    wanted = pool(name) if version == V1 else old_pool(name)
    condition = {
        "type": "Accepted",
        "status": "True",
        "reason": "Accepted",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    # v1 says who wrote an entry; in v1alpha2 it is ours if the parent is a Gateway of our class.
    theirs = {"parentRef": {"kind": "Gateway", "name": "theirs", "namespace": "default"}, "conditions": [condition]}
    if version == V1:
        theirs |= {"controllerName": "example.com/other"}
    world.api.apply(wanted)
    world.add_picker_service(wanted, ipv4(9))
    world.api.patch_status(wanted, {"parents" if version == V1 else "parent": [theirs]})
    told = route(name, {"backendRefs": [backend(wanted)]})
    world.api.apply(told)
    await until(lambda: "headrace.dev/RoutesTranslated" in str(world.parents(wanted)), "our entry is whole")
    kept = entry_of(world, wanted, "theirs")
    assert kept is not None
    assert kept["conditions"] == [condition]
    written = world.api.get(wanted)["metadata"]["resourceVersion"]
    # A change that leads to no other status: the controller looks at everything anew.
    pod = world.add_pod(f"{name}-0", name, ipv4(90))
    world.wait_pool(wanted, f"{ipv4(90)}:8000")
    world.set_pod(pod, ipv4(90), ready=False)
    world.wait_pool(wanted)
    assert world.api.get(wanted)["metadata"]["resourceVersion"] == written
    world.api.delete(told)
    await until(lambda: entry_of(world, wanted, "gateway") is None, "our entry is gone")
    assert entry_of(world, wanted, "theirs") is not None
