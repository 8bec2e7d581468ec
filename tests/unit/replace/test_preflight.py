"""What is in the way before a replacement begins, and what is not where the new pool is made next."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from headrace.kube import objects
from headrace.kube.client import ApiError
from headrace.replace.cluster import Cluster
from headrace.replace.machine import Found, Refused
from headrace.replace.measure import Measure, Members
from headrace.replace.plan import Plan, PoolRef
from headrace.replace.preflight import lacks_to_serve, of_pools

from .test_measure import OTHER, PICKER, SERVER, target
from .test_routes import MIXED, PLAN

FULL = Members((SERVER, OTHER), (PICKER,))


class Pools(Measure):
    """Pools that are known beforehand, and how a picker answers who asks for its page."""

    def __init__(self, known: dict[PoolRef, Members], answer: int = 200) -> None:
        super().__init__(None, None, via="pod")  # type: ignore[arg-type]
        self.known, self.answer = known, answer

    async def members(self, ref: PoolRef) -> Members:
        if ref not in self.known:
            raise ApiError(404, "NotFound", str(ref))
        return self.known[ref]

    async def _get(self, target: Any, path: str, take: Any, max_bytes: int | None = None) -> int:
        return self.answer


async def test_a_new_pool_that_is_made_next_is_in_nobodys_way() -> None:
    measure = Pools({PLAN.old: FULL})
    problems, _ = await of_pools(PLAN, measure)
    assert problems == [f"there is no new pool {PLAN.new}: make it first (role inference_pool), or name another"]
    problems, facts = await of_pools(PLAN, measure, new_is_made=True)
    assert problems == []
    assert f"before the new pool is made: there is no new pool {PLAN.new}" in facts
    small = Pools({PLAN.old: FULL, PLAN.new: Members((SERVER,), (target("picker", ready=False),))})
    assert len((await of_pools(PLAN, small))[0]) == 2
    assert (await of_pools(PLAN, small, new_is_made=True))[0] == []
    gone = Pools({})
    assert [problem[:20] for problem in (await of_pools(PLAN, gone, new_is_made=True))[0]] == ["there is no old pool"]


@pytest.mark.parametrize(("status", "wanted"), [(401, 2), (403, 2), (200, 0), (0, 0)])
async def test_a_picker_that_asks_who_reads_needs_a_prometheus(status: int, wanted: int) -> None:
    measure = Pools({PLAN.old: FULL, PLAN.new: FULL}, status)
    problems, _ = await of_pools(PLAN, measure)
    assert len(problems) == wanted
    assert all("metrics_auth" in problem for problem in problems)
    measured = structs.replace(PLAN, prometheus_url="http://prometheus:9090")
    assert (await of_pools(measured, measure))[0] == []


@pytest.mark.parametrize(
    ("members", "lacks"),
    [
        (FULL, ""),
        (None, "there is no such pool"),
        (Members((), (PICKER,)), "it has no ready endpoint"),
        (Members((SERVER,), ()), "its endpoint picker has no ready Pod"),
    ],
)
async def test_what_a_pool_lacks_to_serve(members: Members | None, lacks: str) -> None:
    assert await lacks_to_serve(Pools({} if members is None else {PLAN.old: members}), PLAN.old) == lacks


@pytest.mark.parametrize(("gitops", "refused"), [("refuse", True), ("paused", False)])
async def test_a_route_of_argo_cd_is_refused_unless_it_is_paused(
    gitops: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = {"argocd.argoproj.io/tracking-id": "x"}
    owned = {**MIXED, "metadata": {**MIXED["metadata"], "annotations": mark}}

    async def request(client: Any, method: str, path: str, **more: Any) -> Any:
        return {"items": [owned] if path.endswith("httproutes") else []}

    monkeypatch.setattr(objects, "request", request)
    plan: Plan = structs.replace(PLAN, gitops=gitops)
    measure = Pools({PLAN.old: FULL, PLAN.new: FULL})
    found = await Cluster(None, None, plan, None, measure).preflight()  # type: ignore[arg-type]
    assert isinstance(found, Refused if refused else Found)
    if isinstance(found, Refused):
        assert "managed by Argo CD" in found.problems[0]
