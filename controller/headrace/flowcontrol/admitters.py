"""Admitters: the last word on requests of negative priority, once flow control has let them through.

Source: llm-d-router, probabilistic admitter."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Annotated, ClassVar, Protocol, runtime_checkable

from msgspec import Meta, field

from headrace.config.decode import OverZero, Parameters, Positive
from headrace.core import Request
from headrace.scheduling import EndpointState


@runtime_checkable
class Admitter(Protocol):
    """Turns requests of negative priority away."""

    type_name: ClassVar[str]

    def sheds(self, request: Request, states: Sequence[EndpointState], rng: Random) -> bool:
        """Whether this request, of negative priority, is to be refused."""


class ProbabilisticAdmitter(Parameters, frozen=True):
    """Sheds with probability min(1, saturation^power * k): none of an idle pool, all of a full one, no step between.

    Saturation is the mean of max(waiting / T, KV usage / K)."""

    type_name: ClassVar[str] = "probabilistic-admitter"
    queue_depth_threshold: Positive = 5
    kv_cache_threshold: OverZero = field(default=0.8, name="kvCacheUtilThreshold")
    power: Annotated[float, Meta(gt=0, le=100)] = 5.0
    k: OverZero = 300.0

    def sheds(self, request: Request, states: Sequence[EndpointState], rng: Random) -> bool:
        if not states:
            return False
        deep, full = self.queue_depth_threshold, self.kv_cache_threshold
        loads = (max(s.waiting / deep, s.kv_usage / full) if s.fresh else 1.0 for s in states)
        return rng.random() < self.probability(sum(loads) / len(states))

    def probability(self, saturation: float) -> float:
        """How likely a request is shed at this saturation."""
        return min(1.0, float(min(saturation, 1e6) ** self.power) * self.k)
