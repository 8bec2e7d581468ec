"""Going by predicted latency. Names and parameters of the reference picker's plugins: llm-d-router."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, NamedTuple

from msgspec import field

from headrace.config.decode import Number, Parameters, Share
from headrace.scheduling.facts import EndpointState, Facts
from headrace.scheduling.scorers import TokenLoadScorer

# The attribute with the request's Predictions. It is not there where nothing is predicted.
PREDICTED = "predicted-latency"
# An answer of so many tokens is taken as usual, where the time for each counts.
_ANSWER_TOKENS = 80
_BY_LOAD = TokenLoadScorer()


class Predicted(NamedTuple):
    """Seconds. The first token comes after `queue + prefill + decode`: the prompts before this one, its own, and the
    steps in which they are computed, with the answers written beside. Then each token takes `token`. `work` is what the
    prompt costs the server, which delays each of the `answers` that it writes."""

    queue: float
    prefill: float
    decode: float
    token: float
    work: float
    answers: int

    @property
    def first_token(self) -> float:
        """The time to the first token."""
        return self.queue + self.prefill + self.decode

    def headroom(self, first_token_ms: float | None, token_ms: float | None) -> float:
        """The share of the objectives that is left, the smaller one; below 0 where one is missed."""
        asked = ((first_token_ms, self.first_token), (token_ms, self.token))
        return min((1.0 - 1000.0 * seconds / most for most, seconds in asked if most), default=0.0)


class Predictions:
    """What one request would wait at endpoints, each predicted once. `found` has them by endpoint key."""

    def __init__(self, predict: Callable[[EndpointState, Facts], Predicted]) -> None:
        self._predict = predict
        self.found: dict[str, Predicted] = {}

    def of(self, states: Sequence[EndpointState], facts: Facts) -> list[Predicted]:
        """The predictions for these endpoints, in their order."""
        found = self.found
        for state in states:
            if state.key not in found:
                found[state.key] = self._predict(state, facts)
        return [found[state.key] for state in states]


class LatencyScorer(Parameters, frozen=True):
    """By what the request would wait, and what it makes others wait: the least of the candidates over each one's own.

    The wait is `ttft_weight` times the time to the first token and `tpot_weight` times that of 80 more tokens. The work
    that its prompt gives a server delays the prompts that come after it (`others_weight`, how many of them) and each
    answer that is written there (`answers_weight`). A request with objectives (`x-slo-ttft-ms`, `x-slo-tpot-ms`) goes
    to a server that meets them: with strategy `least` to the one that has the least to spare, so that others are left
    for requests that need them, with `most` to the best. Where nothing is predicted: as token-load-scorer."""

    type_name: ClassVar[str] = "latency-scorer"
    ttft_weight: Number = 0.8
    tpot_weight: Number = 0.2
    others_weight: Number = 0.2
    answers_weight: Number = 0.05
    strategy: Literal["least", "most"] = field(default="least", name="headroomSelectionStrategy")

    def score(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[float]:
        predictions: Predictions | None = facts.attributes.get(PREDICTED)
        if predictions is None:
            return _BY_LOAD.score(states, facts)
        found = predictions.of(states, facts)
        costs = [self._cost(one) for one in found]
        least = min(costs)
        scores = [least / cost if cost > 0 else 1.0 for cost in costs]
        request = facts.request
        first_token, token = request.slo_ttft_ms, request.slo_tpot_ms
        if not first_token and not token:
            return scores
        rooms = [one.headroom(first_token, token) for one in found]
        # Upper half: those that meet the objectives. Of those that miss them, the least late.
        if self.strategy == "least":
            met = [1.0 - 0.5 * room for room in rooms]
        else:
            met = [0.5 + 0.5 * score for score in scores]
        return [good if room >= 0 else 0.5 / (1.0 - room) - 1e-9 for room, good in zip(rooms, met, strict=True)]

    def _cost(self, one: Predicted) -> float:
        first_token = one.first_token + (self.others_weight + self.answers_weight * one.answers) * one.work
        return self.ttft_weight * first_token + self.tpot_weight * _ANSWER_TOKENS * one.token


class SloHeadroomTierFilter(Parameters, frozen=True):
    """Keeps the endpoints that are predicted to meet the request's objectives, where there are some; with a probability
    of `epsilon`, the others. All, where it has no objectives or nothing is predicted."""

    type_name: ClassVar[str] = "slo-headroom-tier-filter"
    epsilon: Share = field(default=0.01, name="epsilonExploreNeg")

    def keep(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[EndpointState]:
        predictions: Predictions | None = facts.attributes.get(PREDICTED)
        asked = (facts.request.slo_ttft_ms, facts.request.slo_tpot_ms)
        if predictions is None or not any(asked):
            return states
        meets = [one.headroom(*asked) >= 0 for one in predictions.of(states, facts)]
        if all(meets) or not any(meets):
            return states
        wanted = facts.rng.random() >= self.epsilon
        return [state for state, met in zip(states, meets, strict=True) if met is wanted]
