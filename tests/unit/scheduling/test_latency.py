"""Filter and scorer by predicted latency."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.scheduling import Facts
from headrace.scheduling.latency import PREDICTED, LatencyScorer, Predicted, Predictions, SloHeadroomTierFilter
from headrace.scheduling.scorers import TokenLoadScorer

from .states import facts, state

STATES = [state(number) for number in (1, 2, 3)]


def predicted(first_tokens: tuple[float, ...], **values: Any) -> Facts:
    """Facts where the endpoints' first tokens are predicted so; each token takes 10 ms."""
    made = facts(**values)
    of = {
        one.key: Predicted(queue=seconds, prefill=0.0, decode=0.0, token=0.01, work=0.0, answers=0)
        for one, seconds in zip(STATES, first_tokens, strict=True)
    }
    made.attributes[PREDICTED] = Predictions(lambda one, _: of[one.key])
    return made


def test_the_shortest_wait_is_best() -> None:
    scores = LatencyScorer(tpot_weight=0.0).score(STATES, predicted((0.2, 0.1, 0.4)))
    assert list(scores) == pytest.approx([0.5, 1.0, 0.25])


def test_work_counts_for_those_who_come_after_and_those_beside() -> None:
    made = facts()
    of = {
        "10.0.0.1:8000": Predicted(0.1, 0.1, 0.0, 0.01, work=0.1, answers=0),
        "10.0.0.2:8000": Predicted(0.0, 0.2, 0.0, 0.01, work=0.2, answers=0),
        "10.0.0.3:8000": Predicted(0.1, 0.1, 0.0, 0.01, work=0.1, answers=10),
    }
    made.attributes[PREDICTED] = Predictions(lambda one, _: of[one.key])
    first, second, third = LatencyScorer().score(STATES, made)
    assert first == 1.0
    assert first > second
    assert first > third


@pytest.mark.parametrize(("strategy", "best"), [("least", 1), ("most", 0)])
def test_objectives_are_met_where_they_can_be(strategy: Any, best: int) -> None:
    scores = LatencyScorer(strategy=strategy).score(STATES, predicted((0.1, 0.4, 0.6), slo_ttft_ms=500.0))
    assert max(range(3), key=scores.__getitem__) == best
    assert scores[2] < 0.5 <= min(scores[:2])


def test_where_none_can_meet_them_the_least_late_is_best() -> None:
    scores = LatencyScorer().score(STATES, predicted((0.7, 0.6, 0.9), slo_ttft_ms=500.0))
    assert max(range(3), key=scores.__getitem__) == 1
    scores = LatencyScorer().score(STATES, predicted((0.1, 0.1, 0.1), slo_ttft_ms=500.0, slo_tpot_ms=5.0))
    assert max(scores) < 0.5


def test_without_predictions_it_goes_by_token_load() -> None:
    states = [state(1, in_flight_tokens=5000), state(2)]
    made = facts(prompt=b"x" * 400)
    assert LatencyScorer().score(states, made) == TokenLoadScorer().score(states, made)


@pytest.mark.parametrize(
    ("epsilon", "slo", "kept"),
    [(0.0, 500.0, [0, 1]), (1.0, 500.0, [2]), (0.0, 50.0, [0, 1, 2]), (0.0, None, [0, 1, 2])],
)
def test_the_tier_that_meets_the_objectives_stays(epsilon: float, slo: float | None, kept: list[int]) -> None:
    found = SloHeadroomTierFilter(epsilon=epsilon).keep(STATES, predicted((0.1, 0.4, 0.6), slo_ttft_ms=slo))
    assert [STATES.index(one) for one in found] == kept
    assert SloHeadroomTierFilter().keep(STATES, facts(slo_ttft_ms=1.0)) == STATES
