"""What gates count: pages of real servers, windows over restarts, histograms of different engines."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from headrace.core import Endpoint, Request
from headrace.datalayer.ledger import InFlight
from headrace.epp.metrics import Metrics
from headrace.replace.counters import (
    Counters,
    Histogram,
    Rows,
    RowsReader,
    Window,
    common,
    in_flight_at_server,
    picker_counters,
    server_counters,
)


def read_rows(page: bytes) -> Rows:
    reader = RowsReader()
    reader.feed(page)
    return reader.end()


def test_a_real_vllm_page(repository: Path) -> None:
    page = (repository / "tests/data/vllm-0.32.0-metrics.txt").read_bytes()
    found = server_counters(read_rows(page))
    assert found.ttft is not None and found.tpot is not None
    assert found.ttft.count == 36
    assert found.ttft.quantile(0.5) == 0.5 + 0.25 * (18 - 10) / 8
    assert in_flight_at_server(read_rows(page)) == 24, "waiting and running"


def test_our_own_pickers_page() -> None:
    metrics = Metrics("pool")
    endpoint = Endpoint(address="10.0.0.1", port=8000, pod_name="a", namespace="default")
    request = Request("id", model="llama", body_size=10)
    entry = InFlight("id", endpoint.key, "llama", 10, 0.0, attached=True, record=None)
    for status in (200, 200, 404, 500, 503):
        metrics.picked(request, endpoint)
        metrics.answered(entry, status)
    metrics.not_picked(request, 429, "queue full")
    found = picker_counters(read_rows(generate_latest(metrics.registry)))
    assert (found.requests, found.errors, found.server_errors) == (6, 4, 2)


def test_a_window_counts_what_came_and_survives_a_restart() -> None:
    window = Window().advanced({"a": Counters(100, 10, 1)})
    assert window.total == Counters()
    window = window.advanced({"a": Counters(130, 12, 2)})
    assert window.total == Counters(30, 2, 1)
    window = window.advanced({"a": Counters(5, 1, 1)})
    assert window.total == Counters(35, 3, 2), "a new process counts whole"
    window = window.advanced({"b": Counters(50, 0, 0), "c": Counters(7, 7, 7)}, born=["c"])
    assert window.total == Counters(42, 10, 9), "a process never seen gives its base line, a newborn everything"
    assert window.advanced({"a": Counters(6, 1, 1)}).total.requests == 43, "a page that was missed loses nothing"


def test_histograms_of_different_engines_are_compared_over_what_they_share() -> None:
    first = Histogram((0.1, 0.5, 1.0, 5.0), (1, 2, 3, 4, 5))
    second = Histogram((0.25, 0.5, 5.0, 10.0), (1, 1, 1, 1, 1))
    ours, theirs = common(first, second)
    assert ours == Histogram((0.5, 5.0), (3, 7, 5))
    assert theirs == Histogram((0.5, 5.0), (2, 1, 2))


def test_nonsense_is_left_out() -> None:
    running, waiting = b"vllm:num_requests_running", b"vllm:num_requests_waiting"
    page = b'%s{x="1"} NaN\n%s -1\n%s 3\n# HELP %s\n%s{} x\n\xff\xfe 1\n%s{le="} 1\nother 1\n' % (
        *(running, running, waiting, waiting, waiting, running),
    )
    assert read_rows(page) == {waiting.decode(): [({}, 3.0)]}
    assert server_counters(read_rows(b'vllm:time_to_first_token_seconds_bucket{le="1"} 4\n')).ttft is None, (
        "no +Inf, no histogram"
    )


@given(st.binary(max_size=2000))
def test_any_bytes_can_be_read(page: bytes) -> None:
    picker_counters(read_rows(page))
    server_counters(read_rows(page))
    in_flight_at_server(read_rows(page))


bounds = st.lists(st.sampled_from([0.01, 0.1, 0.25, 0.5, 1.0, 2.5]), unique=True, min_size=1).map(sorted)
histograms = bounds.flatmap(
    lambda found: st.lists(st.integers(0, 1000), min_size=len(found) + 1, max_size=len(found) + 1).map(
        lambda counts: Histogram(tuple(found), tuple(map(float, counts)))
    )
)


@given(histograms, histograms)
def test_adding_loses_no_observation(first: Histogram, second: Histogram) -> None:
    assert (first + second).count == first.count + second.count
    assert (first + Histogram()).count == first.count


@given(histograms, histograms, st.integers(0, 10**6), st.integers(0, 10**6))
def test_counters_are_kept_whole(first: Histogram, second: Histogram, requests: int, errors: int) -> None:
    counters = Counters(requests, errors, errors // 2, first, second)
    assert (counters + counters).since(counters) == counters


def test_a_picker_of_both_pools_tells_them_not_apart() -> None:
    picker, server = Counters(requests=5), Counters(ttft=Histogram())
    old = Window().advanced({"picker": picker, "server": server})
    assert not old.is_apart_from(Window().advanced({"picker": picker}))
    # Two pickers over the same servers count their own requests.
    assert old.is_apart_from(Window().advanced({"another": picker, "server": server}))
