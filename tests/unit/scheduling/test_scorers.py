"""Each scorer's formula, in numbers worked out by hand from the reference picker's documentation."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config.decode import decode
from headrace.scheduling.plugin import Scorer
from headrace.scheduling.scorers import (
    ActiveRequestScorer,
    EndpointAttributeScorer,
    KvCacheUtilizationScorer,
    LoadAwareScorer,
    LoraAffinityScorer,
    PrefixCacheScorer,
    QueueScorer,
    RunningRequestsScorer,
    TokenLoadScorer,
)

from .states import facts, state

A, B = frozenset({"a"}), frozenset({"b"})
K1, K2 = "10.0.0.1:8000", "10.0.0.2:8000"


def by_attribute(better: str = "lower", **normalization: object) -> EndpointAttributeScorer:
    algorithm = {"type": f"linear_{better}_is_better", "normalization": normalization}
    return decode({"attributeKey": "x", "algorithm": algorithm}, EndpointAttributeScorer, "")


TABLE: list[tuple[Scorer, list[dict[str, Any]], dict[str, Any], list[float]]] = [
    # (max - q) / (max - min), 1 where all are equal
    (QueueScorer(), [{"waiting": 0}, {"waiting": 5}, {"waiting": 10}], {}, [1.0, 0.5, 0.0]),
    (QueueScorer(), [{"waiting": 7}, {"waiting": 7}], {}, [1.0, 1.0]),
    (QueueScorer(), [{"waiting": 3}], {}, [1.0]),
    (RunningRequestsScorer(), [{"running": 2}, {"running": 4}, {"running": 3}], {}, [1.0, 0.0, 0.5]),
    # 1 - usage
    (KvCacheUtilizationScorer(), [{"kv_usage": 0.25}, {"kv_usage": 1.0}], {}, [0.75, 0.0]),
    # active 1.0; spare slot 0.8; waiting 0.6; else 0
    (LoraAffinityScorer(), [{"running_adapters": A, "max_adapters": 1}], {"model": "a"}, [1.0]),
    (LoraAffinityScorer(), [{"running_adapters": B, "max_adapters": 2}], {"model": "a"}, [0.8]),
    (
        LoraAffinityScorer(),
        [{"running_adapters": B, "waiting_adapters": A, "max_adapters": 2}],
        {"model": "a"},
        [0.6],
    ),
    (LoraAffinityScorer(), [{"running_adapters": B, "max_adapters": 1}], {"model": "a"}, [0.0]),
    (LoraAffinityScorer(), [{}], {"model": "a"}, [0.0]),
    # matched / total blocks
    (PrefixCacheScorer(), [{}, {}], {"matches": {K1: 3, K2: 4}, "blocks": 4}, [0.75, 1.0]),
    (PrefixCacheScorer(), [{}, {}], {"matches": {K2: 1}, "blocks": 4}, [0.0, 0.25]),
    (PrefixCacheScorer(), [{}], {}, [0.0]),
    (PrefixCacheScorer(), [{}], {"matches": {K1: 1}}, [0.0]),
    # (1 - w) * ratio + w * min(1, tokens / 8192)^2
    (PrefixCacheScorer(match_length_weight=0.5), [{}], {"matches": {K1: 64}, "blocks": 128}, [0.5 * 0.5 + 0.5 * 0.25]),
    (PrefixCacheScorer(match_length_weight=1.0), [{}], {"matches": {K1: 256}, "blocks": 256}, [1.0]),
    # 0.5 where idle, else 0.5 * (1 - min(q, T) / T)
    (LoadAwareScorer(), [{"waiting": 0}, {"waiting": 64}, {"waiting": 500}], {}, [0.5, 0.25, 0.0]),
    (LoadAwareScorer(10), [{"waiting": 5}], {}, [0.25]),
    # up to idleThreshold 1; else in proportion to the busiest, at most maxBusyScore
    (ActiveRequestScorer(), [{"in_flight": 0}, {"in_flight": 1}, {"in_flight": 4}], {}, [1.0, 0.75, 0.0]),
    (ActiveRequestScorer(1, 0.5), [{"in_flight": 1}, {"in_flight": 2}, {"in_flight": 4}], {}, [1.0, 0.25, 0.0]),
    (ActiveRequestScorer(), [{}, {}], {}, [1.0, 1.0]),
    # 1 - min(tokens in flight + uncached, T) / T; 256 bytes are 64 tokens, and a block
    (TokenLoadScorer(), [{}, {"in_flight_tokens": 4_194_304}], {}, [1.0, 0.0]),
    (
        TokenLoadScorer(1000),
        [{"in_flight_tokens": 100}, {}],
        {"prompt": b"x" * 512, "matches": {K2: 1}, "blocks": 2},
        [1 - (100 + 128) / 1000, 1 - 64 / 1000],
    ),
    (TokenLoadScorer(100), [{"in_flight_tokens": 5000}], {}, [0.0]),
    # a metric scaled over the candidates' range, or a fixed one
    (by_attribute(), [{"custom": {"x": 4.0}}, {"custom": {"x": 2.0}}, {}], {}, [0.0, 1.0, 0.0]),
    (
        by_attribute("higher"),
        [{"custom": {"x": 4.0}}, {"custom": {"x": 3.0}}, {"custom": {"x": 2.0}}],
        {},
        [1.0, 0.5, 0.0],
    ),
    (by_attribute(), [{"custom": {"x": 4.0}}, {"custom": {"x": 4.0}}], {}, [1.0, 1.0]),
    (
        by_attribute(fixedRange={"min": 0, "max": 10}),
        [{"custom": {"x": 4.0}}, {"custom": {"x": 40.0}}],
        {},
        [0.6, 0.0],
    ),
    (by_attribute(), [{}, {}], {}, [0.0, 0.0]),
]


@pytest.mark.parametrize(("scorer", "states", "request_facts", "expected"), TABLE)
def test_formulas(
    scorer: Scorer, states: list[dict[str, Any]], request_facts: dict[str, Any], expected: list[float]
) -> None:
    candidates = [state(number, **fields) for number, fields in enumerate(states, 1)]
    assert list(scorer.score(candidates, facts(**request_facts))) == pytest.approx(expected)


COUNTS = st.integers(0, 10**9)


@given(
    st.lists(st.tuples(COUNTS, COUNTS, COUNTS, st.floats(0, 1)), min_size=1, max_size=8),
    st.sampled_from([scorer for scorer, *_ in TABLE]),
)
def test_scores_stay_between_nought_and_one(rows: list[tuple[int, int, int, float]], scorer: Scorer) -> None:
    candidates = [
        state(number, waiting=waiting, running=running, in_flight=in_flight, kv_usage=usage)
        for number, (waiting, running, in_flight, usage) in enumerate(rows, 1)
    ]
    scores = scorer.score(candidates, facts(matches={K1: 2}, blocks=2))
    assert len(scores) == len(candidates)
    assert all(0.0 <= score <= 1.0 for score in scores)
