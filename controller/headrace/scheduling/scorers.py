"""Scorers under the reference picker's names and with its formulas.

Source: plugin documentation of Gateway API Inference Extension v1.5.0 and llm-d-router. A table test holds each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from msgspec import field

from headrace.config.decode import AnyNumber, Parameters, Positive, Refused, Share, Text, Whole
from headrace.scheduling.facts import EndpointState, Facts
from headrace.scheduling.plugin import ColdPick, Note
from headrace.scheduling.prefix import PrefixParameters
from headrace.scheduling.tokens import input_tokens


def spread(values: Sequence[int]) -> list[float]:
    """(max - v) / (max - min) for each value; 1 for all where they are equal."""
    low, high = min(values), max(values)
    if low == high:
        return [1.0] * len(values)
    span = high - low
    return [(high - value) / span for value in values]


class QueueScorer(Parameters, frozen=True):
    """Fewer waiting requests are better, relative to the candidates' range."""

    type_name: ClassVar[str] = "queue-scorer"

    def score(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[float]:
        return spread([state.waiting for state in states])


class RunningRequestsScorer(Parameters, frozen=True):
    """Fewer running requests are better, relative to the candidates' range."""

    type_name: ClassVar[str] = "running-requests-size-scorer"

    def score(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[float]:
        return spread([state.running for state in states])


class KvCacheUtilizationScorer(Parameters, frozen=True):
    """1 - used share of the KV cache."""

    type_name: ClassVar[str] = "kv-cache-utilization-scorer"

    def score(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[float]:
        return [1.0 - state.kv_usage for state in states]


class LoraAffinityScorer(Parameters, frozen=True):
    """1 where the adapter is in use, 0.8 where one more fits, 0.6 where it is only queued, else 0."""

    type_name: ClassVar[str] = "lora-affinity-scorer"

    def score(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[float]:
        model = facts.request.model
        scores = []
        for state in states:
            if model in state.running_adapters:
                scores.append(1.0)
            elif state.has_adapter_slot():
                scores.append(0.8)
            elif model in state.waiting_adapters:
                scores.append(0.6)
            else:
                scores.append(0.0)
        return scores


class PrefixCacheScorer(PrefixParameters, frozen=True):
    """Matched blocks / all blocks of the prompt. With `match_length_weight` w, llm-d's blend by the match's length:
    (1 - w) * ratio + w * min(1, matched tokens / scale)^2."""

    type_name: ClassVar[str] = "prefix-cache-scorer"
    match_length_weight: Share = 0.0
    match_length_scale_tokens: Positive = 8192

    def score(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[float]:
        blocks, matches = facts.prefix_blocks, facts.prefix_matches
        if not blocks or not matches:
            return [0.0] * len(states)
        weight = self.match_length_weight
        if not weight:
            return [matches.get(state.key, 0) / blocks for state in states]
        scores = []
        for state in states:
            matched = matches.get(state.key, 0)
            length = min(1.0, matched * facts.block_tokens / self.match_length_scale_tokens)
            scores.append((1 - weight) * matched / blocks + weight * length * length)
        return scores


class LoadAwareScorer(Parameters, frozen=True):
    """0.5 where nothing waits, else 0.5 * (1 - min(waiting, T) / T)."""

    type_name: ClassVar[str] = "load-aware-scorer"
    threshold: Positive = 128

    def score(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[float]:
        limit = self.threshold
        return [0.5 * (1.0 - min(state.waiting, limit) / limit) for state in states]


class ActiveRequestScorer(Parameters, frozen=True):
    """By the picker's own in-flight counts: 1 up to `idle_threshold`, else in proportion to the busiest, at most
    `max_busy_score`."""

    type_name: ClassVar[str] = "active-request-scorer"
    idle_threshold: Whole = 0
    max_busy_score: Share = 1.0

    def score(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[float]:
        most = max(state.in_flight for state in states)
        scores = []
        for state in states:
            if state.in_flight <= self.idle_threshold or not most:
                scores.append(1.0)
            else:
                scores.append((most - state.in_flight) / most * self.max_busy_score)
        return scores


class TokenLoadScorer(Parameters, frozen=True):
    """1 - min(tokens, T) / T, tokens being those in flight there and this request's that its cache does not have."""

    type_name: ClassVar[str] = "token-load-scorer"
    threshold_tokens: Positive = field(default=4_194_304, name="queueThresholdTokens")

    def score(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[float]:
        limit, own = self.threshold_tokens, input_tokens(facts.request)
        matches, block = facts.prefix_matches, facts.block_tokens
        scores = []
        for state in states:
            uncached = max(0, own - matches.get(state.key, 0) * block)
            scores.append(1.0 - min(state.in_flight_tokens + uncached, limit) / limit)
        return scores


class NoHitLruScorer(Parameters, frozen=True):
    """Spreads prompts that no cache has: 1 - rank / (candidates - 1), by how long ago an endpoint last got a
    prompt that its cache did not have, those that never did first. 0.5 for all where some cache has a part of it."""

    type_name: ClassVar[str] = "no-hit-lru-scorer"
    lru_size: Positive = 1024

    def score(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[float]:
        if self._hit(states, facts):
            return [0.5] * len(states)
        if len(states) == 1:
            return [1.0]
        last = facts.cold_picks
        order = sorted(range(len(states)), key=lambda at: last.get(states[at].key, -1))
        scores = [0.0] * len(states)
        for rank, at in enumerate(order):
            scores[at] = 1.0 - rank / (len(states) - 1)
        return scores

    def notes(self, picked: EndpointState, facts: Facts) -> Sequence[Note]:
        return () if facts.prefix_matches.get(picked.key) else (ColdPick(picked.key, self.lru_size),)

    def _hit(self, states: Sequence[EndpointState], facts: Facts) -> bool:
        matches = facts.prefix_matches
        return bool(matches) and any(matches.get(state.key, 0) for state in states)


class _FixedRange(Parameters, frozen=True):
    min: AnyNumber = 0.0
    max: AnyNumber = 0.0

    def __post_init__(self) -> None:
        if self.min >= self.max:
            raise Refused("max", "give a max over min")


class _Normalization(Parameters, frozen=True):
    fixed_range: _FixedRange | None = None
    adaptive_range: Parameters | None = None

    def __post_init__(self) -> None:
        if self.fixed_range is not None and self.adaptive_range is not None:
            raise Refused("adaptiveRange", "give fixedRange or adaptiveRange, not both")


class _Linear(Parameters, frozen=True):
    type: Literal["linear_lower_is_better", "linear_higher_is_better"]
    normalization: _Normalization = _Normalization()


class EndpointAttributeScorer(Parameters, frozen=True):
    """A metric of the configuration's own, scaled to 0..1 over a fixed range, or over the candidates' (1 where they are
    all equal). 0 for endpoints without the metric."""

    type_name: ClassVar[str] = "endpoint-attribute-scorer"
    attribute_key: Text
    algorithm: _Linear

    def score(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[float]:
        values = [state.custom.get(self.attribute_key) for state in states]
        known = [value for value in values if value is not None]
        if not known:
            return [0.0] * len(states)
        fixed = self.algorithm.normalization.fixed_range
        low, high = (fixed.min, fixed.max) if fixed is not None else (min(known), max(known))
        if low == high:
            return [0.0 if value is None else 1.0 for value in values]
        lower_is_better = self.algorithm.type == "linear_lower_is_better"
        scores = []
        for value in values:
            share = 0.0 if value is None else min(1.0, max(0.0, (value - low) / (high - low)))
            scores.append(1.0 - share if lower_is_better and value is not None else share)
        return scores
