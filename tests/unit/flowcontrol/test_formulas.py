"""Each detector's, policy's and admitter's formula, in numbers worked out by hand from the reference picker's text."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.flowcontrol.admitters import ProbabilisticAdmitter
from headrace.flowcontrol.fairness import MAX_FLOWS, LeastAttainedService, RoundRobin, Service
from headrace.flowcontrol.limits import PriorityHoldback, SoftReflectiveCeiling, StaticLimit, UsageLimit
from headrace.flowcontrol.ordering import (
    NEVER,
    EarliestDeadlineFirst,
    FirstComeFirstServed,
    Ordering,
    SloDeadline,
)
from headrace.scheduling import SaturationDetector
from headrace.scheduling.saturation import ConcurrencyDetector, UtilizationDetector

from .values import request, state

DETECTORS: list[tuple[SaturationDetector, list[dict[str, Any]], float]] = [
    # mean of max(waiting / 5, kv / 0.8)
    (UtilizationDetector(), [{"waiting": 5}, {"kv_usage": 0.4}], (1.0 + 0.5) / 2),
    (UtilizationDetector(), [{"waiting": 1, "kv_usage": 0.8}], 1.0),
    (UtilizationDetector(10, 0.5), [{"waiting": 15}, {"kv_usage": 0.25}, {}], (1.5 + 0.5 + 0.0) / 3),
    # without usable metrics an endpoint counts as full
    (UtilizationDetector(), [{"fresh": False}, {}], 0.5),
    (UtilizationDetector(), [], 1.0),
    # in flight / capacity
    (ConcurrencyDetector(), [{"in_flight": 50}, {"in_flight": 150}], 1.0),
    (ConcurrencyDetector(max_requests=4), [{"in_flight": 1}, {}], 1 / 8),
    (ConcurrencyDetector("tokens", max_tokens=100), [{"in_flight": 9, "in_flight_tokens": 50}], 0.5),
    # the mean of each endpoint's larger ratio
    (
        ConcurrencyDetector("hybrid", max_requests=10, max_tokens=100),
        [{"in_flight": 5, "in_flight_tokens": 10}, {"in_flight": 1, "in_flight_tokens": 90}],
        (0.5 + 0.9) / 2,
    ),
    (ConcurrencyDetector("hybrid"), [], 1.0),
]


@pytest.mark.parametrize(("detector", "states", "expected"), DETECTORS)
def test_saturation(detector: SaturationDetector, states: list[dict[str, Any]], expected: float) -> None:
    assert detector.saturation([state(n, **fields) for n, fields in enumerate(states)]) == pytest.approx(expected)


LIMITS: list[tuple[UsageLimit, float, list[int], int, list[float]]] = [
    (StaticLimit(), 0.3, [5, 0], 1, [1.0, 1.0]),
    (StaticLimit(0.7), 0.9, [5], 1, [0.7]),
    # equal steps by rank
    (PriorityHoldback(0.4, 0.9), 0.5, [10, 0, -1], 1, [0.9, 0.65, 0.4]),
    # in proportion to the values
    (PriorityHoldback(0.4, 0.9, domain="value"), 0.5, [10, 0, -10], 1, [0.9, 0.65, 0.4]),
    (PriorityHoldback(0.0, 1.0, domain="value"), 0.5, [4, 1, 0], 1, [1.0, 0.25, 0.0]),
    (PriorityHoldback(0.4, 0.9), 0.5, [3], 1, [0.9]),
    # 1 - rank * saturation / (bands - 1); at or over its ceiling a band is open every round(s / (1 - s))-th turn
    (SoftReflectiveCeiling(), 0.4, [2, 1, 0], 1, [1.0, 1.0, 1.0]),
    (SoftReflectiveCeiling(), 0.75, [2, 1, 0], 1, [1.0, 0.0, 0.0]),
    (SoftReflectiveCeiling(), 0.75, [2, 1, 0], 3, [1.0, 1.0, 1.0]),
    (SoftReflectiveCeiling(), 1.0, [2, 1, 0], 3, [1.0, 0.0, 0.0]),
    (SoftReflectiveCeiling(), 0.99, [0], 1, [1.0]),
]


@pytest.mark.parametrize(("limit", "saturation", "priorities", "turn", "expected"), LIMITS)
def test_ceilings(
    limit: UsageLimit, saturation: float, priorities: list[int], turn: int, expected: list[float]
) -> None:
    assert limit.ceilings(saturation, priorities, turn) == pytest.approx(expected)


@given(
    limit=st.sampled_from(
        [StaticLimit(), PriorityHoldback(0.2), PriorityHoldback(0.2, domain="value"), SoftReflectiveCeiling()]
    ),
    saturation=st.floats(0, 5),
    priorities=st.lists(st.integers(-9, 9), unique=True, max_size=5),
    turn=st.integers(0, 99),
)
def test_a_lower_band_never_has_the_higher_ceiling(
    limit: UsageLimit, saturation: float, priorities: list[int], turn: int
) -> None:
    ceilings = limit.ceilings(saturation, sorted(priorities, reverse=True), turn)
    assert len(ceilings) == len(priorities)
    assert all(a >= b - 1e-9 for a, b in pairwise(ceilings))


@pytest.mark.parametrize(
    ("ordering", "fields", "ttl", "expected"),
    [
        (FirstComeFirstServed(), {}, 5.0, 0.0),
        (EarliestDeadlineFirst(), {}, 5.0, 105.0),
        (EarliestDeadlineFirst(), {}, 0.0, NEVER),
        (SloDeadline(), {"slo_ttft_ms": 250.0}, 5.0, 100.25),
        (SloDeadline(), {"slo_ttft_ms": 5.5}, 5.0, 100.0055),
        (SloDeadline(), {"headers": {"x-slo-ttft-ms": "250"}}, 5.0, NEVER),
        (SloDeadline(), {}, 5.0, NEVER),
    ],
)
def test_order_keys(ordering: Ordering, fields: dict[str, Any], ttl: float, expected: float) -> None:
    assert ordering.order_key(request(**fields), 100.0, ttl) == expected


class Head:
    def __init__(self, came_at: float) -> None:
        self.head_came_at = came_at


def test_least_attained_service() -> None:
    service = Service()
    policy = LeastAttainedService(half_life=60.0)
    service.add("greedy", 300.0, 0.0, 60.0)
    service.add("modest", 100.0, 0.0, 60.0)
    # After a half life: 150 and 50, and nothing for the newcomer.
    assert service.of("greedy", 60.0, 60.0) == pytest.approx(150.0)
    flows = {"greedy": Head(10.0), "modest": Head(50.0), "newcomer": Head(59.0)}
    assert policy.choose(flows, service, 60.0) == "newcomer"
    del flows["newcomer"]
    # 0.8 * 1 for modest against 0.2 * 1 for the longer wait of greedy
    assert policy.choose(flows, service, 60.0) == "modest"
    assert LeastAttainedService(0.2, 0.8).choose(flows, service, 60.0) == "greedy"
    # All alike: whoever was served longest ago, which is the order they are given in.
    assert policy.choose({"b": Head(1.0), "a": Head(1.0)}, Service(), 60.0) == "b"


def test_service_without_decay_and_with_many_flows() -> None:
    service = Service()
    service.add("a", 10.0, 0.0, 0.0)
    assert service.of("a", 1e9, 0.0) == 10.0
    for number in range(MAX_FLOWS + 5):
        service.add(str(number), 1.0, 1.0, 0.0)
    assert len(service) == MAX_FLOWS
    service.forget(2.0)
    assert len(service) == 0


def test_round_robin_takes_the_one_served_longest_ago() -> None:
    assert RoundRobin().choose({"x": Head(9.0), "a": Head(1.0)}, Service(), 10.0) == "x"


def test_probabilistic_shedding() -> None:
    admitter = ProbabilisticAdmitter()
    # min(1, saturation^5 * 300)
    assert admitter.probability(0.2) == pytest.approx(0.2**5 * 300)
    assert admitter.probability(0.0) == 0.0
    assert admitter.probability(0.5) == 1.0
    assert admitter.probability(1e300) == 1.0
    rng = Random(1)
    states = [state(1, waiting=1), state(2, kv_usage=0.16)]
    shed = sum(admitter.sheds(request(priority=-1), states, rng) for _ in range(4000))
    assert shed / 4000 == pytest.approx(0.2**5 * 300, abs=0.02)
    assert not admitter.sheds(request(priority=-1), [], rng)
