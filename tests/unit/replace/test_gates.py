"""Statistics against values that can be looked up or enumerated, and the verdicts built on them."""

from __future__ import annotations

import random
from fractions import Fraction
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import GA_GROUP
from headrace.replace.counters import Counters, Histogram
from headrace.replace.gates import FAIL, INSUFFICIENT, PASS, enough, hopeless, judge, table
from headrace.replace.plan import Plan, PoolRef
from headrace.replace.statistics import binomial_greater, fisher_greater, mann_whitney_greater

BOUNDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


def plan(**changes: object) -> Plan:
    return Plan(old=PoolRef(GA_GROUP, "default", "old"), new=PoolRef(GA_GROUP, "default", "new"), **changes)  # type: ignore[arg-type]


def latencies(seed: int, mean: float, count: int) -> Histogram:
    rng = random.Random(seed)
    counts = [0] * (len(BOUNDS) + 1)
    for _ in range(count):
        value = rng.lognormvariate(0, 0.5) * mean
        counts[sum(value > bound for bound in BOUNDS)] += 1
    return Histogram(BOUNDS, tuple(map(float, counts)))


def counted(requests: int, errors: int = 0, server: int = 0, *, mean: float = 0.08, seed: int = 1) -> Counters:
    return Counters(requests, errors, server, latencies(seed, mean, requests), latencies(seed + 1, mean / 4, requests))


def test_fisher_is_the_tea_tasting_lady() -> None:
    assert fisher_greater(3, 4, 1, 4) == pytest.approx(17 / 70)
    assert fisher_greater(4, 4, 0, 4) == pytest.approx(1 / 70)
    assert fisher_greater(0, 4, 4, 4) == 1.0


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 12), st.integers(0, 12))
def test_fisher_is_the_enumerated_tail(errors_new: int, good_new: int, errors_old: int, good_old: int) -> None:
    new, old = errors_new + good_new, errors_old + good_old
    errors = errors_new + errors_old
    if not new or not old:
        return
    exact = sum(
        Fraction(comb(new, k) * comb(old, errors - k), comb(new + old, errors))
        for k in range(errors_new, min(errors, new) + 1)
        if errors - k <= old
    )
    assert fisher_greater(errors_new, new, errors_old, old) == pytest.approx(float(exact), abs=1e-12)


def test_fisher_is_quick_and_sound_on_large_windows() -> None:
    assert fisher_greater(5000, 500_000, 5000, 500_000) == pytest.approx(0.5, abs=0.01)
    assert fisher_greater(6000, 500_000, 5000, 500_000) < 1e-20


@given(st.integers(0, 15), st.integers(0, 15), st.floats(0.001, 0.999))
def test_binomial_is_the_enumerated_tail(errors: int, good: int, rate: float) -> None:
    n = errors + good
    exact = sum(comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(errors, n + 1))
    assert binomial_greater(errors, n, rate) == pytest.approx(exact, abs=1e-9)


def test_mann_whitney_against_a_worked_example() -> None:
    """Values 1..5 against 3..7: U of the second is 20.5 of 25, ties at 3, 4 and 5."""
    bounds = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    old = Histogram(bounds, (1, 1, 1, 1, 1, 0, 0))
    new = Histogram(bounds, (0, 0, 1, 1, 1, 1, 1))
    variance = 25 / 12 * (11 - 3 * (8 - 2) / 90)
    z = (20.5 - 12.5 - 0.5) / variance**0.5
    assert z == pytest.approx(1.5811, abs=0.0001)
    assert mann_whitney_greater(new, old) == pytest.approx(0.0569, abs=0.0001)


def test_tests_rarely_cry_wolf() -> None:
    alarms = sum(
        mann_whitney_greater(latencies(seed, 0.08, 200), latencies(seed + 10_000, 0.08, 400)) < 0.01
        for seed in range(400)
    )
    assert alarms <= 12, "4 are expected at this level; 12 would be a chance of one in 1,000"


def test_alike_pools_pass() -> None:
    result = judge(plan(), 5, 60, counted(2000, 20, 2), counted(100, 1, 0, seed=5))
    assert result.verdict == PASS, result
    assert len(result.checks) == 4


@pytest.mark.parametrize(
    ("new", "what"),
    [
        (counted(100, 50, 50), "server errors"),
        (counted(100, 20, 0), "errors: 20.00 %"),
        (counted(100, mean=0.8, seed=3), "TTFT p90"),
        (Counters(100, 0, 0, latencies(1, 0.08, 100), latencies(2, 0.2, 100)), "time per output token p90"),
    ],
)
def test_a_worse_pool_fails_and_the_reason_says_why(new: Counters, what: str) -> None:
    result = judge(plan(), 5, 60, counted(2000, 20, 2), new)
    assert result.verdict == FAIL
    assert what in result.reason


def test_a_slower_pool_within_what_is_tolerated_passes() -> None:
    new = counted(2000, mean=0.1, seed=9)
    assert judge(plan(max_ttft_ratio=1.8, max_tpot_ratio=1.8), 50, 60, counted(2000), new).verdict == PASS


def test_absolute_limits_hold_without_anything_to_compare_with() -> None:
    result = judge(plan(max_ttft=0.05), 100, 60, Counters(), counted(500))
    assert result.verdict == FAIL
    assert "over the limit of 0.05 s" in result.reason


def test_too_few_requests_are_no_verdict() -> None:
    result = judge(plan(), 1, 60, counted(2000), counted(10))
    assert result.verdict == INSUFFICIENT
    assert "30 are needed" in result.reason
    assert not enough(plan(), counted(10))
    assert enough(plan(), counted(30))


def test_without_traffic_at_the_old_pool_its_last_window_is_the_measure() -> None:
    slow = counted(500, mean=0.8, seed=4)
    assert judge(plan(), 100, 60, Counters(), slow).verdict == PASS
    result = judge(plan(), 100, 60, Counters(), slow, reference=counted(2000))
    assert result.verdict == FAIL
    assert result.reference


def test_a_pool_of_errors_is_not_waited_out() -> None:
    assert hopeless(plan(), Counters(3, 3, 3))
    assert not hopeless(plan(), Counters(2, 2, 2)), "two may be chance"
    assert not hopeless(plan(), Counters(1000, 12, 12)), "the gate's end will say"
    assert not hopeless(plan(max_error_rate=0.0), Counters(30, 30, 30))


def test_results_are_shown() -> None:
    result = judge(plan(), 5, 60, counted(2000, 20, 2), counted(100, 1, 0, seed=5))
    lines = table(result)
    assert lines[0].startswith("5 % at the new pool: pass, 2000 requests at the old and 100 at the new pool in 60 s")
    assert len(lines) == 6
