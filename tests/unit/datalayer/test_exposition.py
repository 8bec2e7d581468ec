"""Metrics pages read as they arrive: whatever the pieces, and within their limits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config.limits import ByteBudget
from headrace.datalayer.exposition import CostlyPage, PageLimits, PageReader, Sample, read_labels

REAL_PAGE = (Path(__file__).parent / "data" / "vllm-0.32.0-under-load.txt").read_bytes()
NAMES = ("vllm:num_requests_running", "vllm:lora_requests_info", "vllm:e2e_request_latency_seconds_bucket")


def read(pieces: Sequence[bytes], names: Sequence[str] = ("a",), **limits: float) -> list[Sample]:
    # No time passes: a machine that does a lot else changes nothing.
    reader = PageReader(names, PageLimits(**limits), clock=lambda: 0.0)  # type: ignore[arg-type]
    return [*(found for piece in pieces for found in reader.feed(piece)), *reader.end()]


@given(st.lists(st.integers(0, len(REAL_PAGE)), max_size=6))
def test_a_page_may_arrive_in_any_pieces(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(REAL_PAGE)]
    pieces = [REAL_PAGE[a:b] for a, b in pairwise(edges)]
    whole = read([REAL_PAGE], NAMES)
    assert {found.name for found in whole} == set(NAMES)
    assert read(pieces, NAMES) == whole


def test_byte_by_byte() -> None:
    page = 'a{x="é}\\"\n"} 1\na{x="é}\\""} 2\n# a 3\nb 4\na 5'.encode()
    found = read([bytes([byte]) for byte in page])
    assert found == [Sample("a", 'x="é}\\""', 2.0), Sample("a", "", 5.0)]
    assert read_labels(found[0].labels) == (("x", 'é}"'),)


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
@pytest.mark.parametrize("ended", [True, False])
def test_a_long_line_is_refused(size: int, ended: bool) -> None:
    line = b'a{x="' + b"x" * (8 << 20) + b'"} 1' + b"\n" * ended
    # As a server sends it: fed no further than needed.
    pieces = (line[at : at + size] for at in range(0, len(line), size))
    reader = PageReader(("a",), clock=lambda: 0.0)
    fed = 0
    with pytest.raises(CostlyPage, match="a line has over 65536 bytes"):
        for piece in pieces:
            fed += len(piece)
            list(reader.feed(piece))
    assert fed <= 65_536 + max(size, 32 << 10)


def test_a_line_of_the_limit_passes_wherever_it_begins() -> None:
    page = b"b 1\n" * 20_000 + b'a{x="' + b"x" * 993 + b'"} 1\n' + b"b 1\n"
    assert [found.value for found in read([page], line_bytes=1002)] == [1.0]
    assert [found.value for found in read([page[at : at + 7] for at in range(0, len(page), 7)], line_bytes=1002)] == [1]
    with pytest.raises(CostlyPage):
        read([page[at : at + 7] for at in range(0, len(page), 7)], line_bytes=1001)


def test_a_long_page_is_cut_at_its_last_whole_line() -> None:
    reader = PageReader(("a",), PageLimits(page_bytes=12))
    assert [found.value for found in reader.feed(b"a 1\na 2\na 34\na 5\n")] == [1.0, 2.0]
    assert not list(reader.feed(b"\na 6\n"))
    assert not list(reader.end())
    assert "12 bytes" in reader.cut


def test_cpu_time_is_bounded_and_counts_the_consumer() -> None:
    now = 0.0
    reader = PageReader(("a",), PageLimits(cpu_seconds=1.0), clock=lambda: now)
    for _ in reader.feed(b"a 1\na 1\n"):
        now += 0.5
    now += 100.0  # of others
    with pytest.raises(CostlyPage, match="1000 ms"):
        for _ in reader.feed(b"a 1\n"):
            now += 0.1


def test_what_is_kept_is_bounded() -> None:
    reader = PageReader(("a",), PageLimits(kept_bytes=10))
    reader.keep(10)
    with pytest.raises(CostlyPage, match="10 bytes"):
        reader.keep(1)


def test_what_is_kept_of_all_pages_has_one_budget() -> None:
    budget = ByteBudget(100, small=100)
    first, second = (PageReader(("a",), PageLimits(kept_bytes=80), kept=budget) for _ in range(2))
    first.keep(60)
    second.keep(40)
    with pytest.raises(CostlyPage, match="other servers"):
        second.keep(1)
    second.close()
    first.keep(20)
    assert budget.held == 80
    first.close()
    first.close()
    assert budget.held == 0


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1", "many", "1e999", "0x10"])
def test_values_that_make_no_sense_are_left_out(value: str) -> None:
    assert read([f"a {value}\na 3\n".encode()]) == [Sample("a", "", 3.0)]


@pytest.mark.parametrize(
    "labels", [b"a" * 60_000, b"a " * 30_000, b'a="' * 15_000 + b'"' * 15_000, b"a=" * 30_000, b'"' * 60_001]
)
def test_odd_labels_take_linear_time(labels: bytes) -> None:
    # With a pattern that goes back on what it took this would take hours; here the limit of CPU time would end it.
    page = (b"a{%s} 3\n" % labels) * 20
    for found in read([page], cpu_seconds=5.0):
        read_labels(found.labels)
