"""What a hook call is translated from: informers first, one list of a kind that lacks something, else what was."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.core import EXTENSION_GROUP, GA_GROUP
from headrace.gateway.knowledge import Knowledge
from headrace.gateway.lacking import Missing, Recollection, lacking
from headrace.gateway.metrics import Metrics
from headrace.gateway.snapshot import Object, Snapshot, parse_pools
from headrace.gateway.watch import mark_of
from headrace.gateway.xds_names import TESTED_VERSIONS, RuleName, parse_route_name, untested_version
from headrace.kube.client import ApiError, Resource
from headrace.kube.objects import POOLS, REFERENCE_GRANTS, ROUTES
from tests.hang import HANG_SECONDS
from tests.unit.gateway import objects as o

GA_POOLS = POOLS[GA_GROUP]
HTTP_ROUTES, GRPC_ROUTES = ROUTES.values()

ROOT = Path(__file__).resolve().parents[3]


def rule(name: str, index: int = 0, *, kind: str = "httproute", namespace: str = "default") -> RuleName:
    found = parse_route_name(f"{kind}/{namespace}/{name}/rule/{index}/match/0/*")
    assert found is not None
    return found


class State:
    """Informers whose state is set, and an API server that has objects, or an error."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.news = 0
        self.not_live: frozenset[Resource] = frozenset()
        self.server: dict[Resource, list[Object] | ApiError] = {}
        self.lists: list[Resource] = []
        self.now = 100.0
        self._changed = asyncio.Event()
        self.awaited = asyncio.Event()
        self.knowledge = Knowledge(self, self.listed, Metrics(), clock=lambda: self.now)

    def change(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.news += 1
        self._changed.set()

    async def wait_news(self, seen: int) -> None:
        self.awaited.set()
        while self.news == seen:
            self._changed.clear()
            await self._changed.wait()

    def behind(self) -> frozenset[Resource]:
        return self.not_live

    def snapshot_with(self, fresh: Mapping[Resource, Iterable[Object]]) -> Snapshot:
        found = self.snapshot
        if HTTP_ROUTES in fresh:
            found = replace(found, routes=o.keyed_routes(fresh[HTTP_ROUTES]))
        if GA_POOLS in fresh:
            pools, bad = parse_pools(fresh[GA_POOLS])
            found = replace(found, pools=pools, bad_pools=bad)
        return found

    async def listed(self, resource: Resource) -> list[Object]:
        self.lists.append(resource)
        answer = self.server.get(resource, [])
        if isinstance(answer, ApiError):
            raise answer
        return answer

    async def ask(self, *named: RuleName) -> Snapshot:
        return await self.knowledge.snapshot_for(frozenset(named))


def known(**more: Any) -> Snapshot:
    return o.snapshot([o.pool("a")], http_routes=[o.route("r", [o.pool_ref("a")])], **more)


def test_what_is_lacking():
    found = o.snapshot(
        [o.pool("a")],
        http_routes=[o.route("r", [o.pool_ref("a"), o.pool_ref("b"), o.pool_ref("c", namespace="other")])],
    )
    named = [rule("r"), rule("r", 1), rule("nope"), rule("g", kind="grpcroute")]
    assert lacking(named, found) == {
        Missing(GA_POOLS, (GA_GROUP, "default", "b")),
        Missing(GA_POOLS, (GA_GROUP, "other", "c")),
        Missing(REFERENCE_GRANTS, ("other",)),
        Missing(HTTP_ROUTES, ("HTTPRoute", "default", "r")),
        Missing(HTTP_ROUTES, ("HTTPRoute", "default", "nope")),
        Missing(GRPC_ROUTES, ("GRPCRoute", "default", "g")),
    }
    old = o.snapshot(http_routes=[o.route("r", [o.pool_ref("a", group=EXTENSION_GROUP)])])
    assert lacking([rule("r")], old) == {Missing(POOLS[EXTENSION_GROUP], (EXTENSION_GROUP, "default", "a"))}


def test_pools_that_cannot_be_used_and_services_are_not_lacking():
    bad = o.pool("a")
    bad["spec"]["targetPorts"] = "8000"
    found = o.snapshot([bad], http_routes=[o.route("r", [o.pool_ref("a"), {"name": "web", "port": 80}])])
    assert lacking([rule("r")], found) == set()


async def test_nothing_is_listed_where_nothing_is_lacking():
    state = State(known())
    assert await state.ask(rule("r")) is state.snapshot
    assert state.lists == []


async def test_a_missing_route_is_listed_once_with_its_kind_only():
    state = State(o.snapshot([o.pool("a")]))
    state.server[HTTP_ROUTES] = [o.route("r", [o.pool_ref("a")])]
    found = await state.ask(rule("r"))
    assert found.routes.get(("HTTPRoute", "default", "r")) is not None
    assert state.lists == [HTTP_ROUTES]


async def test_a_kind_without_an_open_watch_is_listed():
    state = State(known())
    state.server[HTTP_ROUTES] = [o.route("r", [o.pool_ref("a", 7)])]
    state.not_live = frozenset((HTTP_ROUTES,))
    found = await state.ask(rule("r"))
    assert found.routes.get(("HTTPRoute", "default", "r")) == o.route("r", [o.pool_ref("a", 7)])
    assert state.lists == [HTTP_ROUTES]


async def test_what_a_list_did_not_hold_is_not_sought_with_every_call():
    state = State(o.snapshot(http_routes=[o.route("r", [o.pool_ref("gone")])]))
    await state.ask(rule("r"))
    await state.ask(rule("r"))
    assert state.lists == [GA_POOLS]
    state.now += 60
    state.server[GA_POOLS] = [o.pool("gone")]
    assert (await state.ask(rule("r"))).pools
    assert state.lists == [GA_POOLS, GA_POOLS]


async def test_a_route_keeps_its_last_translation_when_it_cannot_be_read():
    state = State(known())
    await state.ask(rule("r"))
    state.change(o.snapshot())
    state.server |= {HTTP_ROUTES: ApiError(0, "Unreachable", "away"), GA_POOLS: ApiError(0, "Unreachable", "away")}
    found = await state.ask(rule("r"))
    assert found.routes.get(("HTTPRoute", "default", "r")) == o.route("r", [o.pool_ref("a")])
    assert state.lists == [HTTP_ROUTES]


async def test_a_pool_is_remembered_unless_it_is_known_to_be_gone():
    state = State(known())
    before = await state.ask(rule("r"))
    state.change(o.snapshot(http_routes=[o.route("r", [o.pool_ref("a")])]))
    state.server[GA_POOLS] = ApiError(503, "Unavailable", "")
    assert (await state.ask(rule("r"))).pools == before.pools
    state.server[GA_POOLS] = []
    assert (await state.ask(rule("r"))).pools == {}


async def test_a_call_waits_a_moment_for_the_news_it_is_about(monkeypatch: pytest.MonkeyPatch):
    # The moment is so long here that only the news can end it.
    monkeypatch.setattr("headrace.gateway.knowledge._NEWS_SECONDS", 100 * HANG_SECONDS)
    state = State(known())
    await state.ask(rule("r"))
    call = asyncio.create_task(state.ask(rule("r")))
    async with asyncio.timeout(HANG_SECONDS):
        await state.awaited.wait()
        assert not call.done()
        state.change(known(services=[o.service()]))
        assert (await call).services


@pytest.mark.parametrize(
    ("changed", "is_news"),
    [
        ({"generation": 3, "resourceVersion": "2"}, False),
        ({"generation": 3, "labels": {"a": "b"}, "annotations": {"a": "b"}}, False),
        ({"generation": 4}, True),
        ({"generation": 3, "uid": "other"}, True),
        ({"generation": 3, "annotations": {"headrace.dev/request-body-mode": "BUFFERED"}}, True),
        ({"generation": 3, "annotations": {"headrace.dev/response-observation": "all"}}, True),
    ],
)
def test_a_status_is_no_news(changed: dict[str, Any], is_news: bool):
    before = {"metadata": {"name": "a", "generation": 3}, "status": {"parents": []}}
    after = {"metadata": {"name": "a", **changed}, "status": {"parents": [{}]}}
    assert (mark_of(before) != mark_of(after)) is is_news


async def test_a_call_without_news_is_answered_all_the_same():
    state = State(known())
    await state.ask(rule("r"))
    async with asyncio.timeout(HANG_SECONDS):
        await state.ask(rule("r"))


async def test_a_list_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("headrace.gateway.knowledge._LIST_SECONDS", 0.05)

    async def hang(_: Resource) -> list[Object]:
        await asyncio.Event().wait()
        raise AssertionError

    state = State(o.snapshot())
    state.knowledge = Knowledge(state, hang, Metrics())
    async with asyncio.timeout(HANG_SECONDS):
        assert not (await state.ask(rule("r"), rule("g", kind="grpcroute"))).routes


async def test_every_kind_has_its_list():
    state = State(o.snapshot(http_routes=[o.route("r", [o.pool_ref("c", namespace="other")])]))
    await state.ask(rule("r"), rule("g", kind="grpcroute"))
    assert set(state.lists) == {GRPC_ROUTES, REFERENCE_GRANTS, GA_POOLS}


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("headrace.gateway.lacking._REMEMBERED", 3)
    memory = Recollection()
    for number in range(6):
        name = f"r{number}"
        memory.keep([rule(name)], o.snapshot(http_routes=[o.route(name, [])]))
    missing = frozenset(Missing(HTTP_ROUTES, ("HTTPRoute", "default", f"r{number}")) for number in range(6))
    found = memory.complete(o.snapshot(), missing, frozenset())
    assert {name for _, _, name in found.routes} == {"r3", "r4", "r5"}


def test_versions_outside_the_tested_range_are_named():
    for tested in (*TESTED_VERSIONS, TESTED_VERSIONS[0].removeprefix("v"), "", " "):
        assert untested_version(tested) == ""
    assert "v1.8.0" in untested_version("v1.8.0")
    assert TESTED_VERSIONS[0] in untested_version("latest")


def test_the_role_names_the_same_versions():
    found = yaml.safe_load((ROOT / "roles/envoy_gateway/vars/main.yml").read_text())
    assert tuple(found["__envoy_gateway_tested_versions"]) == TESTED_VERSIONS
