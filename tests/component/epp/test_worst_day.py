"""Eight clients, two simulated servers, a real Envoy with the gateway's retries, and one fault after the other.

From when the picker takes the server for what it is, no request fails; when the fault is over, traffic returns by
itself. How long either takes is not measured here."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .worst_day import CLIENTS, World, world


async def _sleep(w: World) -> None:
    await w.sick.post(w.session, "/sleep")


async def _wake(w: World) -> None:
    await w.sick.post(w.session, "/wake_up")


def _fault(name: str, value: Any) -> Callable[[World], Any]:
    async def change(w: World) -> None:
        await w.sick.post(w.session, "/faults", {name: value})

    return change


def _signal(number: signal.Signals) -> Callable[[World], Any]:
    async def change(w: World) -> None:
        w.sick.send(number)

    return change


async def _restart(w: World) -> None:
    await w.sick.end()
    await w.sick.start(w.session)


FAULTS = {
    "asleep": (_sleep, _wake, "asleep"),
    "engine stopped": (_fault("hang", True), _fault("hang", False), "no-progress"),
    "process stopped": (_signal(signal.SIGSTOP), _signal(signal.SIGCONT), "no-progress"),
    "killed": (_signal(signal.SIGKILL), _restart, ""),
    "drained": (_fault("drain", True), _fault("drain", False), ""),
    "answers 500": (_fault("500", True), _fault("500", False), ""),
    # Envoy has three retries at once: what comes beside them reaches its client.
    "answers 503": (_fault("503", True), _fault("503", False), ""),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_sick_server_draws_no_traffic_and_gets_it_back(tmp_path: Path, fault: str) -> None:
    begin, end, reason = FAULTS[fault]
    async with world(tmp_path) as w:
        w.ask()
        await w.wait(lambda: w.answered["sick", 200] > 10 and w.answered["well", 200] > 10)
        assert w.failed == []
        assert await w.health() == "good"
        await begin(w)
        await w.wait_health("suspect", "out")
        # Those that were sent before may be stuck, and are not waited for.
        assert len(w.failed) <= CLIENTS, w.failed[:3]
        await w.wait_health("out")
        found = (await w.picker.endpoints())[w.sick.key]
        assert not reason or found["health_reason"] == reason, (found, w.failed, w.answered)
        w.ask()
        w.failed.clear()
        w.answered.clear()
        await w.serves(200)
        assert w.failed == []
        assert {name for name, _ in w.answered} == {"well"}
        await end(w)
        await w.wait_health("good")
        before = w.answered["sick", 200]
        await w.wait(lambda: w.answered["sick", 200] > before + 20)
        assert w.failed == []


async def test_a_slow_server_is_not_a_sick_one(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.ask()
        await w.serves(50)
        await w.sick.post(w.session, "/faults", {"slow": 10})
        before = w.answered["sick", 200]
        await w.wait(lambda: w.answered["sick", 200] > before + 50)
        assert w.failed == []
        for state in ("out", "trial"):
            name = f'headrace_epp_endpoints_by_health{{state="{state}"}}'
            assert await w.picker.metric(name) == 0
