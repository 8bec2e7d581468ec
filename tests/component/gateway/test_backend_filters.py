"""Filters of backendRefs to pools, whatever tenants write: Envoy takes every configuration, and each costs its own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.gateway import objects as o

from .objects import backend
from .pools import A, B, Pools
from .stack import Cluster, run_stack
from .world import until

_HOSTILE = [
    "Host",
    "host",
    ":path",
    "",
    "a/b",
    "x y",
    "x\r\ny: z",
    "x\0",
    "\x7f",
    "ü",
    "content-length",
    "X-A",
    "x" * 256,
]
_VALUES = [
    "50%",
    "%",
    "%%",
    "%ENVIRONMENT(PATH)%",
    "%REQ(authorization)%",
    "a\nb: c",
    "\0",
    " a",
    "a\tb",
    "ü",
    "x" * 4096,
]
_names = (
    st.sampled_from(_HOSTILE)
    | st.text(max_size=12)
    | st.from_regex(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,20}", fullmatch=True)
)
_values = st.sampled_from(_VALUES) | st.text(max_size=20) | st.from_regex(r"[ -~]{1,30}", fullmatch=True)
_headers = st.lists(st.fixed_dictionaries({"name": _names, "value": _values}), max_size=3)
_changes = st.fixed_dictionaries(
    {}, optional={"set": _headers, "add": _headers, "remove": st.lists(_names, max_size=3)}
)
_filters = st.builds(
    lambda way, changes: {"type": f"{way.capitalize()}HeaderModifier", f"{way}HeaderModifier": changes},
    st.sampled_from(["request", "response"]),
    _changes,
)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.lists(_filters, max_size=3), min_size=30, max_size=60))
def test_envoy_takes_whatever_filters_a_route_has(tmp_path: Path, rules: list[list[dict[str, Any]]]) -> None:
    async def run() -> None:
        cluster = Cluster(verify=True)
        refs = [[o.pool_ref("a", filters=filters), o.pool_ref("b")] for filters in rules]
        cluster.update([o.pool("a"), o.pool("b")], http_routes=[o.route("r", *refs)], services=[o.service()])
        routes = [
            o.xds_route(f"httproute/default/r/rule/{number}/match/0/*", prefix=f"/{number}")
            for number in range(len(rules))
        ]
        # It listens only when it has taken its configuration, all routes of it.
        async with run_stack(cluster, routes, tmp_path) as stack:
            assert "listener" in await stack.envoy.admin_text("/config_dump")

    asyncio.run(run())


async def test_filters_of_a_pool_in_the_whole_gateway(pools: Pools) -> None:
    world = pools.world

    def changed(**headers: str) -> dict[str, Any]:
        listed = [{"name": name.replace("_", "-"), "value": value} for name, value in headers.items()]
        return {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": listed}}

    path = {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/v1"}}
    rewrite = {"type": "URLRewrite", "urlRewrite": path}
    percent = changed(x_half="50%", x_path="%ENVIRONMENT(PATH)%")

    def refused() -> dict[str, int]:
        stats = world.admin("/stats?format=json&filter=update_rejected$")["stats"]
        return {stat["name"]: stat["value"] for stat in stats if stat.get("value")}

    before = refused()
    await pools.apply_route("percent", {"backendRefs": [backend(pools.a, filters=[percent])]})
    seen = dict((await pools.client.wait_served("percent"))["headers"])
    assert (seen["x-half"], seen["x-path"]) == ("50%", "%ENVIRONMENT(PATH)%")
    # The share of a pool whose filter cannot be had is answered 500; the other pool's is served.
    for name, bad in (("host", changed(Host="other.example")), ("rewrite", rewrite)):
        await pools.apply_route(
            name, {"backendRefs": [backend(pools.a, 1, filters=[bad]), backend(pools.b, 1)]}, lacking=True
        )
        shares = await pools.shares(name, 100)
        # Four and a half sigma of a binomial of 100 at 0.5: 23.
        assert 27 <= shares["500"] <= 73, shares
        assert set(shares) == {*B, "500"}
    assert set(await pools.shares("percent", 20)) == set(A)
    assert refused() == before

    def said() -> tuple[str, set[str]]:
        conditions = [found for entry in world.parents(pools.a) for found in entry["conditions"]]
        (problem,) = [found for found in conditions if found["type"] == "headrace.dev/FiltersAccepted"] or [{}]
        events = world.api.list("/api/v1/namespaces/default/events")
        about = {found["involvedObject"]["name"] for found in events if found["reason"] == "FilterRefused"}
        return str(problem.get("status")), about

    await until(lambda: said() == ("False", {"host", "rewrite"}), "the pool's status and events on the routes say so")
