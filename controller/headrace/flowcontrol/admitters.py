"""Admitters: the last word on requests of negative priority, once flow control has let them through.

Source: llm-d-router, probabilistic and latency SLO admitters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Annotated, ClassVar, Protocol, runtime_checkable

from msgspec import Meta, field

from headrace.config.decode import OverZero, Parameters, Positive
from headrace.core import Request
from headrace.protocol import http
from headrace.scheduling import EndpointState, Prediction


@runtime_checkable
class Admitter(Protocol):
    """Turns requests of negative priority away."""

    type_name: ClassVar[str]

    def sheds(
        self, request: Request, states: Sequence[EndpointState], predictions: Mapping[str, Prediction], rng: Random
    ) -> bool:
        """Whether this request, of negative priority, is to be refused."""


class ProbabilisticAdmitter(Parameters, frozen=True):
    """Sheds with probability min(1, saturation^power * k): none of an idle pool, all of a full one, no step between.

    Saturation is the mean of max(waiting / T, KV usage / K)."""

    type_name: ClassVar[str] = "probabilistic-admitter"
    queue_depth_threshold: Positive = 5
    kv_cache_threshold: OverZero = field(default=0.8, name="kvCacheUtilThreshold")
    power: Annotated[float, Meta(gt=0, le=100)] = 5.0
    k: OverZero = 300.0

    def sheds(
        self, request: Request, states: Sequence[EndpointState], predictions: Mapping[str, Prediction], rng: Random
    ) -> bool:
        if not states:
            return False
        deep, full = self.queue_depth_threshold, self.kv_cache_threshold
        loads = (max(s.waiting / deep, s.kv_usage / full) if s.fresh else 1.0 for s in states)
        return rng.random() < self.probability(sum(loads) / len(states))

    def probability(self, saturation: float) -> float:
        """How likely a request is shed at this saturation."""
        return min(1.0, float(min(saturation, 1e6) ** self.power) * self.k)


class LatencySloAdmitter(Parameters, frozen=True):
    """Sheds a request with a latency objective where no endpoint should meet it, none is idle, and none is cold (KV
    usage under 2 %). Without predictions it sheds none."""

    type_name: ClassVar[str] = "latency-slo-admitter"

    def sheds(
        self, request: Request, states: Sequence[EndpointState], predictions: Mapping[str, Prediction], rng: Random
    ) -> bool:
        if not any(_over_zero(request.headers.get(name, "")) for name in (*http.SLO_TTFT_MS, *http.SLO_TPOT_MS)):
            return False
        known = [predictions[state.key] for state in states if state.key in predictions]
        if not known or any(prediction.meets_objectives for prediction in known):
            return False
        return not any(state.kv_usage < 0.02 or not state.running for state in states)


def _over_zero(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False
