"""Giving a route's rules back: what the API server says to it ends no replacement, unless nobody answers."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest

from headrace.kube.client import ApiError
from headrace.replace import cluster
from headrace.replace.cluster import Cluster
from headrace.replace.ownership import FIELD_MANAGER
from headrace.replace.routes import records
from headrace.replace.state import State

from .test_routes import MIXED, PLAN


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

    monkeypatch.setattr(cluster, "request", request)
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
