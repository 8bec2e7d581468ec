"""The page of a registry: that of the library, written in slices."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, Info, Summary, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from headrace.serving import exposition
from headrace.serving.exposition import SAMPLES_A_SLICE, page
from headrace.serving.loop_lag import watch_lag
from headrace.serving.metrics import gauges

from ...turns import counted_turns


class Own(Collector):
    """A collector that is no metric."""

    def collect(self) -> Iterable[Metric]:
        yield gauges("own", "Made when asked.", {("a",): 1.0, ("b",): float("nan")}, "which")
        yield gauges("nothing", "No samples.", {}, "which")


def registry_of(values: list[str]) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(Own())
    counter = Counter("asked", "How often,\nand \\ why.", ("who", "a"), registry=registry)
    histogram = Histogram("seconds", "Time.", ("who",), buckets=(0.1, 1.0), registry=registry)
    Gauge("level", "Level.", registry=registry).set(1e300)
    Counter("never", "Not counted.", ("who",), registry=registry)
    Summary("size", "Size.", registry=registry).observe(3)
    Info("build", "Build.", registry=registry).info({"version": "1"})
    Enum("mood", "Mood.", states=["good", "bad"], registry=registry).state("bad")
    for number, value in enumerate(values):
        counter.labels(value, "x").inc(number)
        histogram.labels(value).observe(number / 10)
    return registry


async def collected(registry: CollectorRegistry) -> list[bytes]:
    return [piece async for piece in page(registry)]


@given(st.lists(st.text(alphabet='a"\\\né=,{}', max_size=5), max_size=5), st.integers(1, 5))
def test_it_is_the_librarys(values: list[str], a_slice: int) -> None:
    registry = registry_of(values)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(exposition, "SAMPLES_A_SLICE", a_slice)
        pieces = asyncio.run(collected(registry))
    assert b"".join(pieces) == generate_latest(registry)
    # What a metric is stands at its beginning, once.
    assert all(piece.count(b"# TYPE") <= 1 for piece in pieces)


async def test_others_have_their_turn_after_each_slice() -> None:
    registry = registry_of([str(number) for number in range(1000)])
    async with counted_turns() as turns:
        pieces = await collected(registry)
    assert len(pieces) > 5 * 1000 // SAMPLES_A_SLICE
    assert turns.count >= len(pieces)
    assert max(piece.count(b"\n") for piece in pieces) <= SAMPLES_A_SLICE + 2


async def test_the_lag_of_the_loop_is_how_late_a_task_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    seen: list[float] = []
    enough = asyncio.Event()
    late = iter([0.0, 0.25, -0.05])

    async def sleep(seconds: float) -> None:
        nonlocal now
        delay = next(late, None)
        if delay is None:
            enough.set()
            await asyncio.Event().wait()
        now += seconds + (delay or 0.0)

    monkeypatch.setattr("headrace.serving.loop_lag.asyncio.sleep", sleep)
    task = asyncio.create_task(watch_lag(seen.append, lambda: now))
    await enough.wait()
    task.cancel()
    assert seen == [pytest.approx(0.0), pytest.approx(0.25), 0.0]
