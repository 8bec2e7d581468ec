"""What is lost from the moment a picker fails until Envoy has noticed, of a pool that fails open: counted, printed.

A picker of ours is asked for its health, and a buffered request can always go on without a pick: nothing is lost.
Somebody else's is noticed by its failures, and gets bodies streamed, which Envoy cannot take back: some are lost."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections import Counter
from dataclasses import dataclass, field

import pytest

from ...hang import HANG_SECONDS
from .network import ipv4
from .test_failures import KEYS, SMALL, Failing, failing
from .world import World

PER_SECOND, AT_ONCE = 50, 8
# How many answers of each kind the load goes on for, at least.
ENOUGH = 100


@dataclass
class Window:
    """What became of requests, by kind, and when the last failure was, in seconds from the start."""

    answers: Counter[str] = field(default_factory=Counter)
    last_failure: float = 0.0
    worst: float = 0.0

    def failures(self, kind: str) -> int:
        """How many of a kind were not answered 200."""
        return sum(count for what, count in self.answers.items() if what.startswith(kind) and not what.endswith("200"))


def counted(world: World) -> dict[str, int]:
    """Envoy's own counters of picks, summed over listeners."""
    found: Counter[str] = Counter()
    stats = (world.admin("/stats?format=json&filter=ext_proc.headrace_pick") or {}).get("stats", [])
    for stat in stats:
        kind = stat.get("name", "").rpartition(".")[2]
        if kind in ("failure_mode_allowed", "streams_failed", "message_timeouts"):
            found[kind] += stat["value"]
    return dict(found)


async def measured(pool_of: Failing) -> Window:
    """Requests at a steady rate, every other a GET, until Envoy has noticed and enough of both kinds were served."""
    window = Window()
    started = time.monotonic()

    async def one(number: int) -> None:
        kind, body = ("GET", None) if number % 2 else ("POST", SMALL)
        sent = time.monotonic()
        status, seen, _ = await pool_of.client.ask(pool_of.name, body=body)
        window.answers[f"{kind} {status}"] += 1
        window.worst = max(window.worst, time.monotonic() - sent)
        if status == 200:
            assert seen["server"] in KEYS
        else:
            window.last_failure = time.monotonic() - started

    def enough() -> bool:
        return all(window.answers[f"{kind} 200"] >= ENOUGH for kind in ("GET", "POST"))

    async def client() -> None:
        while not (noticed.done() and enough()):
            await one(next(numbers))
            await asyncio.sleep(AT_ONCE / PER_SECOND)

    numbers = itertools.count()
    noticed = asyncio.create_task(pool_of.wait_noticed())
    async with asyncio.timeout(HANG_SECONDS):
        await asyncio.gather(noticed, *(client() for _ in range(AT_ONCE)))
    return window


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "other"])
@pytest.mark.parametrize("how", ["killed", "stopped", "refuses TLS"])
async def test_what_a_failing_picker_costs(world: World, how: str, ours: bool) -> None:
    async with failing(world, "FailOpen", ours=ours) as pool_of:
        server = None
        before = counted(world)
        if how == "refuses TLS":
            server = await asyncio.start_server(lambda _, writer: writer.close(), ipv4(8), 9002)
            pool_of.place_picker(ipv4(8))
        else:
            pool_of.picker.kill(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        try:
            window = await measured(pool_of)
        finally:
            if how == "stopped":
                pool_of.picker.kill(signal.SIGCONT)
            if server is not None:
                server.close()
        after = {name: value - before.get(name, 0) for name, value in counted(world).items()}
        print(
            f"picker {'of ours' if ours else 'of others'}, {how}: {dict(window.answers)},"
            f" last failure after {window.last_failure:.1f} s, slowest answer {window.worst:.1f} s; Envoy: {after}"
        )
        # Envoy counts what it let pass without a pick.
        assert after["failure_mode_allowed"] > 0
        assert window.failures("GET") == 0
        if ours:
            assert window.failures("POST") == 0
