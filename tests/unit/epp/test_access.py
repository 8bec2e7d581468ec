"""Who may read metrics and debug pages: the API server's word, how long it holds, and what is said to the others."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from headrace.epp import access as access_module
from headrace.epp.access import Access
from headrace.epp.status import application
from headrace.kube.client import ApiError

from .test_director import Clock, director

CLIENT = object()


class Reviews:
    """An API server's two review resources."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.authenticated = True
        self.allowed = True
        self.error: ApiError | None = None

    async def request(self, client: Any, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        assert method == "POST"
        if self.error is not None:
            raise self.error
        body = arguments["body"]
        self.asked.append((path, body))
        if body["kind"] == "TokenReview":
            user = {"username": "system:serviceaccount:n:reader", "uid": "u", "groups": ["g"], "extra": {"e": ["x"]}}
            return {"status": {"authenticated": self.authenticated, "user": user if self.authenticated else {}}}
        return {"status": {"allowed": self.allowed}}


@pytest.fixture
def reviews(monkeypatch: pytest.MonkeyPatch) -> Reviews:
    made = Reviews()
    monkeypatch.setattr(access_module, "request", made.request)
    return made


async def test_a_reader_is_asked_about_once_for_a_while(reviews: Reviews) -> None:
    clock = Clock()
    access = Access(lambda: CLIENT, clock=clock)
    for _ in range(3):
        assert await access.check("Bearer token", "/metrics") is None
    assert [path for path, _ in reviews.asked] == [
        "/apis/authentication.k8s.io/v1/tokenreviews",
        "/apis/authorization.k8s.io/v1/subjectaccessreviews",
    ]
    assert reviews.asked[0][1]["spec"] == {"token": "token"}
    assert reviews.asked[1][1]["spec"] == {
        "user": "system:serviceaccount:n:reader",
        "uid": "u",
        "groups": ["g"],
        "extra": {"e": ["x"]},
        "nonResourceAttributes": {"path": "/metrics", "verb": "get"},
    }
    await access.check("Bearer token", "/debug/endpoints")
    assert len(reviews.asked) == 4
    clock.now += 61
    reviews.allowed = False
    denied = await access.check("Bearer token", "/metrics")
    assert denied is not None
    assert (denied.status, "nonResourceURLs" in denied.message) == (403, True)
    assert b"token" not in repr(access.__dict__).encode().replace(b"tokenreviews", b"")


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic dXNlcg==", "token", "Bearer " + "x" * 20_000])
async def test_without_a_token_nobody_is_asked(reviews: Reviews, header: str) -> None:
    denied = await Access(lambda: CLIENT, clock=Clock()).check(header, "/metrics")
    assert denied is not None
    assert denied.status == 401
    assert not reviews.asked


async def test_a_token_that_is_not_valid(reviews: Reviews) -> None:
    reviews.authenticated = False
    clock = Clock()
    access = Access(lambda: CLIENT, clock=clock)
    for _ in range(2):
        denied = await access.check("bearer x", "/metrics")
        assert denied is not None
        assert denied.status == 401
    assert len(reviews.asked) == 1
    clock.now += 11
    reviews.authenticated = True
    assert await access.check("bearer x", "/metrics") is None


@pytest.mark.parametrize("status", [0, 403, 500])
async def test_where_nobody_can_tell_it_is_shown_to_nobody(reviews: Reviews, status: int) -> None:
    reviews.error = ApiError(status, "r", "m")
    access = Access(lambda: CLIENT, clock=Clock())
    denied = await access.check("Bearer x", "/metrics")
    assert denied is not None
    assert denied.status == 503
    reviews.error = None
    assert await access.check("Bearer x", "/metrics") is None


async def test_answers_are_not_kept_without_end(reviews: Reviews) -> None:
    access = Access(lambda: CLIENT, clock=Clock())
    for number in range(1100):
        await access.check(f"Bearer {number}", "/metrics")
    assert len(access._answers) == 1024


async def test_pages_are_guarded_and_health_is_not(reviews: Reviews) -> None:
    connected: Any = None
    access = Access(lambda: connected, clock=Clock())
    async with TestClient(TestServer(application(director(), lambda: True, access))) as client:
        for path in ("/metrics", "/debug/endpoints", "/debug/decisions", "/nowhere"):
            assert (await client.get(path)).status == 503
        connected = CLIENT
        answer = await client.get("/metrics")
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        headers = {"authorization": "Bearer x"}
        assert (await client.get("/metrics", headers=headers)).status == 200
        assert (await client.get("/debug/endpoints", headers=headers)).status == 200
        assert (await client.get("/debug/decisions?limit=x", headers=headers)).status == 400
        for path in ("/healthz", "/readyz"):
            assert (await client.get(path)).status == 200
