"""The hostile relatives: enough of each row, the same for a seed, and a sample of those that are only read."""

from __future__ import annotations

import contextlib

import pytest

from headrace.config.limits import STEP_BYTES
from headrace.datalayer.engines import ENGINES
from headrace.datalayer.exposition import CostlyPage, PageLimits
from headrace.datalayer.metrics_page import MetricsReader, NoMetrics
from headrace.extproc.body import MAX_BYTES
from headrace.extproc.body_scan import BodyScan
from headrace.prefixes.kv_events import MalformedEvents, read_parts
from headrace.prefixes.precise import PreciseIndex

from ...hostile.relatives import COUNT, MIB, ROWS, Body, Messages, Page, relatives

SEED = 7


@pytest.mark.parametrize("row", ROWS)
def test_there_are_enough_of_each_row_and_a_seed_makes_the_same(row: int) -> None:
    made = relatives(row, SEED)
    assert len({one.name for one in made}) == COUNT >= 30
    assert [one.name for one in relatives(row, SEED)] == [one.name for one in made]
    assert [one.name for one in relatives(row, SEED + 1)] != [one.name for one in made]


@pytest.mark.parametrize("one", relatives(2, SEED)[::2] + relatives(3, SEED)[::4], ids=lambda one: one.name[:60])
def test_a_body_is_read_in_bounded_steps(one: Body) -> None:
    scan = BodyScan()
    scan.feed(one.make()[:MAX_BYTES])
    before = 0
    while scan.step():
        assert scan.position - before <= STEP_BYTES + 16
        before = scan.position
    scan.end()
    assert scan.failed is None or str(scan.failed)


@pytest.mark.parametrize("one", relatives(7, SEED)[::2], ids=lambda one: one.name[:60])
def test_a_page_is_read_or_refused(one: Page) -> None:
    limits = PageLimits(cpu_seconds=60.0, page_bytes=MIB)
    with contextlib.closing(MetricsReader(ENGINES["vllm"], limits)) as reader:
        try:
            for piece in one.pieces():
                reader.feed(piece)
                if reader.cut:
                    break
            metrics = reader.end()
        except (CostlyPage, NoMetrics) as error:
            assert str(error)
            return
    assert len(metrics.models) <= 256
    assert len(metrics.known_adapters) <= 2 * 2048


@pytest.mark.parametrize("one", relatives(8, SEED)[::2], ids=lambda one: one.name[:60])
def test_messages_are_taken_in_parts_or_refused(one: Messages) -> None:
    index = PreciseIndex(max_blocks=10_000)
    index.add("a")
    try:
        for part in read_parts(one.frames()):
            assert sum(1 + len(getattr(event, "hashes", ())) for event in part.events) <= 2 * 512
            index.apply("a", part)
    except MalformedEvents as error:
        assert len(str(error)) < 1000
    assert len(index) <= 10_000
