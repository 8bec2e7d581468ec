"""The Job's rights end with it: which bindings it removes, in which order, and what a refusal comes to."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.kube import objects
from headrace.kube.client import ApiError
from headrace.replace.canary import free_names
from headrace.replace.rights import give_up

from .test_routes import PLAN

RBAC = "/apis/rbac.authorization.k8s.io/v1"


@pytest.mark.parametrize("status", [0, 403, 404])
async def test_bindings_go_one_by_one_and_that_of_the_jobs_own_namespace_last(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    async def request(client: Any, method: str, path: str, **more: Any) -> Any:
        asked.append((method, path))
        if len(asked) == 2:
            raise ApiError(status, "", "no")
        return {}

    monkeypatch.setattr(objects, "request", request)
    await give_up(None, PLAN.old, ["b", "a", "b"])
    canary = next(free_names(PLAN.old, ())).removesuffix("-0")
    assert asked == [
        ("DELETE", f"{RBAC}/namespaces/a/rolebindings/{canary}"),
        ("DELETE", f"{RBAC}/namespaces/b/rolebindings/{canary}"),
        ("DELETE", f"{RBAC}/clusterrolebindings/headrace-replace-old-serving"),
        ("DELETE", f"{RBAC}/namespaces/serving/rolebindings/headrace-replace-old"),
    ]
