"""What a replacement does to routes where the API server refuses, and which late routes it takes along."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
from msgspec import structs

from headrace.kube import objects
from headrace.kube.client import ApiError
from headrace.protocol.objects import HOLD_LABEL
from headrace.replace import cluster
from headrace.replace.cluster import Cluster
from headrace.replace.machine import Abort, Discovered, Restored
from headrace.replace.ownership import FIELD_MANAGER
from headrace.replace.routes import records
from headrace.replace.state import InvalidState, State, parse_state, state_as_json

from .test_routes import MIXED, PLAN, pool, route, rule


class _Lease:
    async def ensure(self) -> None: ...


def entry(manager: str) -> dict[str, Any]:
    fields = {"f:spec": {"f:rules": {}}}
    return {"manager": manager, "operation": "Apply", "apiVersion": "gateway.networking.k8s.io/v1", "fieldsV1": fields}


def owned_by(manager: str) -> dict[str, Any]:
    route = copy.deepcopy(MIXED)
    route["metadata"] |= {"managedFields": [entry(manager)], "resourceVersion": "7"}
    return route


@pytest.mark.parametrize("status", [403, 404, 409, 422, 500, 0])
async def test_a_refusal_to_give_rules_back_ends_nothing(
    status: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []

    async def request(client: Any, method: str, path: str, **more: Any) -> Any:
        asked.append(method)
        if method == "PATCH":
            raise ApiError(status, "Refused", "may not")
        return owned_by(FIELD_MANAGER)

    async def no_wait(seconds: float) -> None: ...

    for module in (cluster, objects):
        monkeypatch.setattr(module, "request", request)
    monkeypatch.setattr(cluster.asyncio, "sleep", no_wait)
    state = State(run="1", started=0.0, since=0.0, records=records([owned_by("kubectl")], PLAN))
    world = Cluster(None, None, PLAN, _Lease(), None)  # type: ignore[arg-type]
    if status == 0:
        with pytest.raises(ApiError):
            await world.give_back(state)
        return
    with caplog.at_level(logging.WARNING):
        await world.give_back(state)
    assert "PATCH" in asked
    assert f"the rules of HTTPRoute serving/{MIXED['metadata']['name']} stay the field manager" in caplog.text


def world(
    monkeypatch: pytest.MonkeyPatch, routes: list[dict[str, Any]], refused: str = ""
) -> tuple[Cluster, list[str]]:
    """The cluster with these routes; patches of the one of a name are refused. And the names of those patched."""
    written: list[str] = []

    async def request(client: Any, method: str, path: str, **more: Any) -> Any:
        name = path.rsplit("/", 1)[-1]
        if method == "PATCH":
            if name == refused:
                raise ApiError(403, "Forbidden", "a webhook says no")
            written.append(name)
            return {}
        if method == "POST":
            raise ApiError(403, "Forbidden", "no route of our own here")
        if name in ("httproutes", "grpcroutes", "referencegrants"):
            return {"items": routes if name == "httproutes" else []}
        found = next((one for one in routes if one["metadata"]["name"] == name), None)
        if found is None or method == "DELETE":
            raise ApiError(404, "NotFound", path)
        return {**found, "kind": "HTTPRoute"}

    for module in (cluster, objects):
        monkeypatch.setattr(module, "request", request)
    return Cluster(None, None, PLAN, _Lease(), None), written  # type: ignore[arg-type]


def shifted(name: str) -> dict[str, Any]:
    return route(rule(pool("old", 1), pool("new", 1)), name=name)


async def test_a_route_that_cannot_be_written_keeps_no_other_from_its_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    found = records([route(rule(pool("old")), name=name) for name in ("a", "b", "c")], PLAN)
    state = State(run="1", started=0.0, since=0.0, records=found)
    there, written = world(monkeypatch, [shifted(name) for name in ("a", "b", "c")], refused="a")
    with pytest.raises(ApiError, match="a webhook says no"):
        await there.restore(state)
    assert written == ["b", "c"]


async def test_a_late_route_is_looked_at_as_the_others_were(monkeypatch: pytest.MonkeyPatch) -> None:
    known = route(rule(pool("old")))
    state = State(run="1", started=0.0, since=0.0, records=records([known], PLAN))
    there, _ = world(monkeypatch, [known])
    assert await there.discover(state) is None
    fine = route(rule(pool("old", 3)), name="late")
    there, _ = world(monkeypatch, [known, fine])
    assert await there.discover(state) == Discovered(records([fine], PLAN))
    for late, reason in (
        (route(rule(pool("old", namespace="serving")), name="late", namespace="other"), "ReferenceGrant"),
        (route(rule(pool("old", 1), pool("third", 999_999)), name="late"), "leave no room"),
    ):
        there, _ = world(monkeypatch, [known, late])
        event = await there.discover(state)
        assert isinstance(event, Abort)
        assert reason in event.reason


async def test_who_leads_to_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    zero = route(rule(pool("third"), pool("new", 0)), name="zero")
    own = route(rule(pool("new")), name="own", labels={HOLD_LABEL: "old"})
    there, _ = world(monkeypatch, [zero, own, route(rule(pool("old")), name="other")])
    assert await there.leading_to(PLAN.new) == (("HTTPRoute", "serving", "zero"),)
    assert [name for _, _, name in await there.leading_to(PLAN.old, PLAN.new)] == ["other", "zero"]


async def test_a_record_changes_only_the_route_and_backends_that_it_was_made_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fine, forged, other = records([route(rule(pool("old")), name=name) for name in ("a", "b", "c")], PLAN)
    forged = structs.replace(forged, rules=(structs.replace(forged.rules[0], refs=({**pool("old"), "name": "evil"},)),))
    there, written = world(monkeypatch, [shifted("a"), shifted("b"), {**shifted("c")}])
    other = structs.replace(other, uid="of-the-one-before")
    event = await there.restore(State(run="1", started=0.0, since=0.0, records=(fine, forged, other)))
    assert written == ["a"]
    assert isinstance(event, Restored)
    assert len(event.left) == 1
    assert event.left[0].startswith("HTTPRoute serving/b, rule 0")
    assert "HTTPRoute serving/c is another route" in caplog.text


@pytest.mark.parametrize("name", ["../../secrets", "a/b", "", "A"])
def test_a_recorded_route_has_a_name_that_a_route_can_have(name: str) -> None:
    state = state_as_json(State(run="1", started=0.0, since=0.0, records=records([shifted("a")], PLAN)))
    assert parse_state(state).records
    state["records"][0]["name"] = name
    with pytest.raises(InvalidState, match="is no name of an object"):
        parse_state(state)
