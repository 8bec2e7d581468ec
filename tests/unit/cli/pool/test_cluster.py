"""`status` and `explain` through an API server's paths: which are asked, and what becomes of each answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from headrace.cli.pool.cluster import NotAnswered, ask_url, decisions_of, pool_statuses
from headrace.kube.client import ApiError, connect

from .test_lint import GA, NEW, OLD, X
from .test_views import DECISION, VIEW

SERVICE = {"spec": {"selector": {"app": "epp"}}}
READY = {"conditions": [{"type": "Ready", "status": "True"}]}
PODS = {
    "app=m": [{"metadata": {"name": "a", "namespace": "n"}, "status": READY}, {"metadata": {"name": "b"}}],
    "app=epp": [
        {"metadata": {"name": "epp-0", "namespace": "n"}},
        {"metadata": {"name": "epp-1", "namespace": "n"}, "status": READY},
    ],
}


class Api:
    """The paths that are needed, with answers that tests change."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.request_ids: list[str] = []
        self.changed: dict[str, tuple[int, Any]] = {}

    async def answer(self, request: web.Request) -> web.Response:
        path = request.path
        self.asked.append(path)
        self.request_ids += request.query.getall("request_id", [])
        if path in self.changed:
            status, body = self.changed[path]
        else:
            status, body = 200, self._usual(path, request.query.get("labelSelector", ""))
        if body is None:
            status, body = 404, {"reason": "NotFound", "message": f"no {path}"}
        return web.json_response(body, status=status)

    def _usual(self, path: str, selector: str) -> Any:
        if path == f"/apis/{GA}/v1/namespaces/n/inferencepools":
            # Items of a list carry neither apiVersion nor kind.
            return {"items": [{"metadata": {"name": "new", "namespace": "n"}, "spec": NEW["spec"]}]}
        if path == f"/apis/{X}/v1alpha2/namespaces/n/inferencepools":
            return {"items": [{"metadata": {"name": "old", "namespace": "n"}, "spec": OLD["spec"]}]}
        if path == "/api/v1/namespaces/n/services/epp":
            return SERVICE
        if path == "/api/v1/namespaces/n/pods":
            return {"items": PODS.get(selector, [])}
        if path.endswith("/debug/endpoints"):
            return VIEW
        if path.endswith("epp-1:9090/proxy/debug/decisions"):
            return {"decisions": [DECISION]}
        if path.endswith("/debug/decisions"):
            return {"decisions": []}
        return None


@pytest.fixture
async def api() -> Any:
    made = Api()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.answer)
    async with TestServer(app) as server:
        made.url = str(server.make_url("")).rstrip("/")  # type: ignore[attr-defined]
        yield made


async def client_of(api: Any, directory: Path) -> Any:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": api.url}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    }
    path = directory / "kubeconfig"
    path.write_text(json.dumps(config))
    return await connect(str(path))


async def test_pools_of_both_groups_and_what_their_ready_picker_tells(api: Any, tmp_path: Path) -> None:
    async with await client_of(api, tmp_path) as client:
        new, old = await pool_statuses(client, "n", "", 9090)
        assert (new.name, new.group, old.name, old.group) == ("new", GA, "old", X)
        for status in (new, old):
            assert (status.pods, status.ready_pods, status.pickers, status.ready_pickers) == (2, 1, 2, 1)
            assert status.view == VIEW
            assert status.trouble == ()
        # The ready one is asked, and no other.
        assert {path for path in api.asked if "proxy" in path} == {
            "/api/v1/namespaces/n/pods/epp-1:9090/proxy/debug/endpoints"
        }
        (only,) = await pool_statuses(client, "n", "old", 9090)
        assert only.name == "old"


async def test_what_is_missing_is_said(api: Any, tmp_path: Path) -> None:
    async with await client_of(api, tmp_path) as client:
        api.changed["/api/v1/namespaces/n/services/epp"] = (404, None)
        (new, _) = await pool_statuses(client, "n", "", 9090)
        assert new.view is None
        assert new.trouble == ("Service n/epp, its endpoint picker, does not exist",)
        api.changed["/api/v1/namespaces/n/services/epp"] = (200, {"spec": {}})
        (new, _) = await pool_statuses(client, "n", "", 9090)
        assert new.trouble == ("Service n/epp selects no Pods",)
        bad = {"items": [{"metadata": {"name": "new", "namespace": "n"}, "spec": {}}]}
        api.changed[f"/apis/{GA}/v1/namespaces/n/inferencepools"] = (200, bad)
        (new, _) = await pool_statuses(client, "n", "", 9090)
        assert new.pool is None
        assert "cannot be used: spec.selector" in new.trouble[0]


@pytest.mark.parametrize(("status", "words"), [(401, "--url"), (403, "pods/proxy"), (503, "--metrics-port")])
async def test_a_picker_that_does_not_tell(api: Any, tmp_path: Path, status: int, words: str) -> None:
    for pod in ("epp-0", "epp-1"):
        for page in ("endpoints", "decisions"):
            path = f"/api/v1/namespaces/n/pods/{pod}:9090/proxy/debug/{page}"
            api.changed[path] = (status, {"reason": "r", "message": "m"})
    async with await client_of(api, tmp_path) as client:
        (new, _) = await pool_statuses(client, "n", "", 9090)
        assert new.view is None
        assert len(new.trouble) == 2
        assert all(words in text for text in new.trouble)
        found, trouble = await decisions_of(client, "n", "new", 9090, "r1")
        assert (found, len(trouble)) == ([], 2)


async def test_every_picker_is_asked_for_a_request(api: Any, tmp_path: Path) -> None:
    async with await client_of(api, tmp_path) as client:
        found, trouble = await decisions_of(client, "n", "new", 9090, "r 1&x=y")
        assert trouble == []
        assert found == [{"pool": "n/new", "picker": "epp-1", **DECISION}]
        assert api.request_ids == ["r 1&x=y"] * 2
        assert (await decisions_of(client, "n", "other", 9090, "r1"))[0] == []


async def test_a_crd_that_is_not_installed(api: Any, tmp_path: Path) -> None:
    async with await client_of(api, tmp_path) as client:
        api.changed[f"/apis/{X}/v1alpha2/namespaces/n/inferencepools"] = (404, None)
        assert [status.name for status in await pool_statuses(client, "n", "", 9090)] == ["new"]
        api.changed[f"/apis/{GA}/v1/namespaces/n/inferencepools"] = (404, None)
        with pytest.raises(ApiError, match="inference_crds"):
            await pool_statuses(client, "n", "", 9090)
        api.changed[f"/apis/{GA}/v1/namespaces/n/inferencepools"] = (403, {"reason": "Forbidden", "message": "no"})
        with pytest.raises(ApiError, match="403"):
            await pool_statuses(client, "n", "", 9090)


async def test_a_url(api: Any) -> None:
    assert await ask_url(f"{api.url}/", "/debug/endpoints") == VIEW
    api.changed["/x"] = (401, {})
    with pytest.raises(NotAnswered, match="--token-file"):
        await ask_url(api.url, "/x")
    api.changed["/x"] = (200, [])
    with pytest.raises(NotAnswered, match="no JSON object"):
        await ask_url(api.url, "/x")
