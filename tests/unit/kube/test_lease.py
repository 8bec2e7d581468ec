"""Leader election: never two leaders, a takeover after the holder's silence, at once after it has left."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.kube import objects
from headrace.kube.client import ApiError
from headrace.kube.lease import Elector, LeaseSettings

from ...hang import HANG_SECONDS


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Server:
    """One Lease, as an API server keeps it: every write must name the version it replaces."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.error: ApiError | None = None
        self.failing: set[str] = set()

    async def request(self, client: str, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        assert path.startswith("/apis/coordination.k8s.io/v1/namespaces/n/leases")
        if self.error is not None or client in self.failing:
            raise self.error or ApiError(0, "Unreachable", "no")
        if method == "GET":
            if self.lease is None:
                raise ApiError(404, "NotFound", "no lease")
            return {**self.lease, "metadata": {**self.lease["metadata"]}}
        body = arguments["body"]
        if method == "POST":
            if self.lease is not None:
                raise ApiError(409, "AlreadyExists", "it is there")
        elif self.lease is None or body["metadata"]["resourceVersion"] != str(self.version):
            raise ApiError(409, "Conflict", "changed")
        self.version += 1
        self.lease = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}}
        return self.lease

    @property
    def spec(self) -> dict[str, Any]:
        assert self.lease is not None
        return dict(self.lease["spec"])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(objects, "request", made.request)
    return made


def elector(name: str, clock: Clock, told: Callable[[bool], None] = lambda leading: None) -> Elector:
    return Elector(name, "n", "lease", name, clock=clock, on_change=told)


async def test_the_first_leads_and_the_second_waits(server: Server) -> None:
    clock = Clock()
    told: list[bool] = []
    a, b = elector("a", clock, told.append), elector("b", clock)
    for _ in range(20):
        await a._once()
        await b._once()
        assert (a.leading, b.leading) == (True, False)
        clock.now += 2
    assert told == [True]
    assert (server.spec["holderIdentity"], server.spec["leaseDurationSeconds"]) == ("a", 15)
    assert server.spec["leaseTransitions"] == 0


async def test_a_silent_holder_is_replaced_after_its_duration(server: Server) -> None:
    clock = Clock()
    a, b = elector("a", clock), elector("b", clock)
    await a._once()
    await b._once()
    clock.now += 15
    await b._once()
    assert not b.leading
    clock.now += 1
    await b._once()
    assert b.leading
    assert server.spec["leaseTransitions"] == 1
    await a._once()
    assert not a.leading


async def test_a_holder_that_cannot_renew_stops_before_another_may_start(server: Server) -> None:
    clock = Clock()
    a, b = elector("a", clock), elector("b", clock)
    await a._once()
    await b._once()
    server.failing = {"a"}
    stopped_at = started_at = 0.0
    for _ in range(40):
        clock.now += 1
        await a._once()
        await b._once()
        assert not (a.leading and b.leading)
        stopped_at = stopped_at or (0.0 if a.leading else clock.now)
        started_at = started_at or (clock.now if b.leading else 0.0)
    assert 1010 <= stopped_at < started_at <= 1017


# Seconds before the first attempt (a slow renewal and the usual pause); the pause before the next ones is 2 s.
@pytest.mark.parametrize("first", [2.0, 2.9, 4.9, 5.1, 7.0])
async def test_a_hanging_api_server_does_not_make_a_holder_stay_too_long(
    server: Server, monkeypatch: pytest.MonkeyPatch, first: float
) -> None:
    clock = Clock()
    told: list[float] = []
    a = elector("a", clock, lambda leading: told.append(clock.now - 1000.0))
    await a._once()

    async def hang() -> str:
        # As long as an attempt may take, on the test's clock.
        clock.now += a._patience()
        raise TimeoutError

    monkeypatch.setattr(a._lease, "try_acquire", hang)
    clock.now += first
    while a.leading:
        await a._once()
        clock.now += 2.0
    began, stopped = told
    assert (began, 10.0 <= stopped < 15.0) == (0.0, True)


async def test_a_holder_that_leaves_is_replaced_at_once(server: Server) -> None:
    clock = Clock()
    began = asyncio.Event()
    a, b = elector("a", clock, lambda leading: began.set()), elector("b", clock)
    running = asyncio.create_task(a.run())
    await asyncio.wait_for(began.wait(), HANG_SECONDS)
    assert a.leading
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert not a.leading
    assert server.spec["holderIdentity"] == ""
    await b._once()
    assert b.leading


async def test_a_restarted_holder_goes_on(server: Server) -> None:
    clock = Clock()
    await elector("a", clock)._once()
    again = elector("a", clock)
    await again._once()
    assert again.leading
    assert server.spec["leaseTransitions"] == 0


@pytest.mark.parametrize("status", [0, 403, 500])
async def test_without_the_api_server_nobody_leads(
    server: Server, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    server.error = ApiError(status, "r", "m")
    a = elector("a", Clock())
    for _ in range(3):
        await a._once()
    assert not a.leading
    assert len(caplog.records) == 1
    assert ("coordination.k8s.io" in caplog.text) == (status == 403)


class Lagging(Server):
    """Answers reads from before: what a candidate saw may be old when it writes."""

    async def request(self, client: str, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        answer = await super().request(client, method, path, **arguments)
        await asyncio.sleep(0)
        return answer


@given(
    steps=st.lists(st.tuples(st.sampled_from(["a", "b", "c", "all"]), st.integers(0, 9), st.booleans()), max_size=30)
)
def test_there_are_never_two(steps: list[tuple[str, int, bool]]) -> None:
    async def play() -> None:
        server = Lagging()
        clock = Clock()
        original = objects.request
        objects.request = server.request  # type: ignore[assignment]
        try:
            settings = LeaseSettings(duration=15, renew_deadline=10, retry=2)
            candidates = {
                name: Elector(name, "n", "l", name, clock=clock, settings=settings) for name in ("a", "b", "c")
            }
            for who, seconds, reachable in steps:
                clock.now += seconds
                server.failing = set() if reachable else {who}
                # Every process runs its loop; only some reach the server.
                await asyncio.gather(*(c._once() for c in candidates.values()))
                assert sum(c.leading for c in candidates.values()) <= 1
        finally:
            objects.request = original

    asyncio.run(play())
