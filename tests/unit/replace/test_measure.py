"""What one look at a pool comes to: alive or dead, idle or not known to be."""

from __future__ import annotations

import contextlib
import gzip

import pytest
from aiohttp import web
from msgspec import structs

from headrace.replace.counters import Rows, in_flight_at_server
from headrace.replace.measure import Measure, Members, Target, reading
from headrace.replace.plan import PoolRef
from headrace.serving.http_client import HttpClient

REF = PoolRef("inference.networking.k8s.io", "serving", "pool")
BUSY: Rows = {"headrace_epp_ledger_requests": [({}, 2.0)], "vllm:num_requests_running": [({}, 3.0)]}
IDLE: Rows = {"headrace_epp_ledger_requests": [({}, 0.0)], "vllm:num_requests_running": [({}, 0.0)]}


def target(pod: str, *, ready: bool = True) -> Target:
    return Target(f"{pod}:8000", "serving", pod, "10.0.0.1", 8000, "/metrics", ready, 1.0)


PICKER, SERVER, OTHER = target("picker"), target("server-a"), target("server-b")
MEMBERS = Members((SERVER, OTHER), (PICKER,))


@pytest.mark.parametrize(
    ("pages", "in_flight"),
    [
        ({PICKER: BUSY, SERVER: BUSY, OTHER: BUSY}, 6.0),
        ({PICKER: IDLE, SERVER: IDLE, OTHER: IDLE}, 0.0),
        ({PICKER: IDLE}, 0.0),
        ({SERVER: IDLE, OTHER: IDLE}, 0.0),
        ({SERVER: IDLE}, None),
        ({}, None),
    ],
)
def test_silence_is_not_idleness(pages: dict[Target, Rows], in_flight: float | None) -> None:
    assert reading(REF, MEMBERS, pages).in_flight == in_flight


def test_a_pool_without_processes_has_nothing_in_flight() -> None:
    assert reading(REF, Members(), {}).in_flight == 0


@pytest.mark.parametrize(
    ("members", "pages", "dead"),
    [
        (MEMBERS, {PICKER: IDLE, OTHER: IDLE}, ""),
        (Members((), (PICKER,)), {PICKER: IDLE}, "no ready endpoint"),
        (Members((SERVER,), (target("picker", ready=False),)), {SERVER: IDLE}, "has no ready Pod"),
        (MEMBERS, {PICKER: IDLE}, "no endpoint of"),
        (MEMBERS, {SERVER: IDLE}, "does not answer"),
    ],
)
def test_who_is_dead(members: Members, pages: dict[Target, Rows], dead: str) -> None:
    found = reading(REF, members, pages).dead
    assert dead in found and bool(dead) == bool(found)


def test_samples_of_prometheus_prove_nothing_of_who_answers() -> None:
    found = reading(REF, MEMBERS, {}, proof=False)
    assert (found.dead, found.in_flight) == ("", None)
    sample = structs.replace(SERVER, key="server-a@10.0.0.1:8000")
    found = reading(REF, MEMBERS, {sample: IDLE, structs.replace(PICKER, key="picker@x"): IDLE}, proof=False)
    assert set(found.pages) == {"server-a@10.0.0.1:8000", "picker@x"}
    assert found.born["server-a@10.0.0.1:8000"] == 1.0


GOOD = b"vllm:num_requests_running 2\nvllm:num_requests_waiting 1\n"


@pytest.mark.parametrize(
    ("body", "headers", "status", "in_flight"),
    [
        (GOOD, {}, 200, 3.0),
        (GOOD, {}, 500, None),
        (GOOD, {"location": "/elsewhere"}, 302, None),
        (gzip.compress(b"#" * (64 << 20)), {"content-encoding": "gzip"}, 200, None),
        (b'vllm:num_requests_running{model_name="' + b"x" * (8 << 20) + b'"} 2\n' + GOOD, {}, 200, None),
        (GOOD + b"# more\n" * (3 << 20), {}, 200, None),
    ],
    ids=["good", "error", "redirect", "compressed", "long line", "long page"],
)
async def test_pages_of_servers_are_read_within_bounds(
    body: bytes, headers: dict[str, str], status: int, in_flight: float | None
) -> None:
    elsewhere = False

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal elsewhere
        elsewhere = elsewhere or request.path == "/elsewhere"
        answer = web.StreamResponse(status=status, headers=headers)
        await answer.prepare(request)
        with contextlib.suppress(ConnectionError):
            await answer.write(body)
        return answer

    app = web.Application()
    app.router.add_get("/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        served = structs.replace(SERVER, address="127.0.0.1", port=runner.addresses[0][1])
        async with HttpClient() as client:
            rows = await Measure(None, client, via="pod")._page(served)
        assert (None if rows is None else in_flight_at_server(rows)) == in_flight
        assert not elsewhere
    finally:
        await runner.cleanup()
