"""How full the pool is: the reference picker's saturation detectors, which are filters of endpoints too.

Source: Gateway API Inference Extension v1.5.0 and llm-d-router, utilization and concurrency detectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Protocol, runtime_checkable

from msgspec import Meta, field

from headrace.config.decode import Duration, Number, Parameters, Positive, Refused, ShareOverZero
from headrace.scheduling.facts import EndpointState, Facts


@runtime_checkable
class SaturationDetector(Protocol):
    """Says how full a set of endpoints is: 0 idle, 1 and more full. Without any endpoint it is 1."""

    type_name: ClassVar[str]

    def saturation(self, states: Sequence[EndpointState]) -> float:
        """The set's saturation."""


class UtilizationDetector(Parameters, frozen=True):
    """The mean over the endpoints of max(waiting / T, KV usage / K). An endpoint without usable metrics counts as 1.

    As a filter it keeps endpoints below T and K, each enlarged by `headroom`; all of them, if none is."""

    type_name: ClassVar[str] = "utilization-detector"
    # A pool that is full is to be told apart from one that does not fit.
    saturates: ClassVar[bool] = True
    queue_depth_threshold: Positive = 5
    kv_cache_threshold: ShareOverZero = field(default=0.8, name="kvCacheUtilThreshold")
    headroom: Number = 0.0
    # When metrics are too old is one decision for the whole picker: --metrics-staleness-threshold.
    metrics_staleness_threshold: Duration = Duration(0.2)

    def saturation(self, states: Sequence[EndpointState]) -> float:
        if not states:
            return 1.0
        deep, full = self.queue_depth_threshold, self.kv_cache_threshold
        return sum(max(s.waiting / deep, s.kv_usage / full) if s.fresh else 1.0 for s in states) / len(states)

    def keep(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[EndpointState]:
        deep = self.queue_depth_threshold * (1.0 + self.headroom)
        full = self.kv_cache_threshold * (1.0 + self.headroom)
        return [s for s in states if s.fresh and s.waiting < deep and s.kv_usage < full] or states


class ConcurrencyDetector(Parameters, frozen=True):
    """What the picker has in flight over what the endpoints may have: in requests, in tokens, or, with `hybrid`, the
    mean over the endpoints of the larger of both.

    As a filter it keeps endpoints below their limit, enlarged by `headroom`."""

    type_name: ClassVar[str] = "concurrency-detector"
    saturates: ClassVar[bool] = True
    mode: Literal["requests", "tokens", "hybrid"] = field(default="requests", name="concurrencyMode")
    max_requests: Positive = field(default=100, name="maxConcurrency")
    max_tokens: Positive = field(default=1_000_000, name="maxTokenConcurrency")
    headroom: Number = 0.0

    def saturation(self, states: Sequence[EndpointState]) -> float:
        if not states:
            return 1.0
        count = len(states)
        if self.mode == "requests":
            return sum(s.in_flight for s in states) / (count * self.max_requests)
        if self.mode == "tokens":
            return sum(s.in_flight_tokens for s in states) / (count * self.max_tokens)
        return sum(max(s.in_flight / self.max_requests, s.in_flight_tokens / self.max_tokens) for s in states) / count

    def keep(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[EndpointState]:
        requests = int(self.max_requests * (1.0 + self.headroom)) if self.mode != "tokens" else None
        tokens = int(self.max_tokens * (1.0 + self.headroom)) if self.mode != "requests" else None
        return [
            s
            for s in states
            if (requests is None or s.in_flight < requests) and (tokens is None or s.in_flight_tokens < tokens)
        ]


class Condition(Parameters, frozen=True):
    """A metric of an endpoint, and the most that it may be."""

    metric: Literal["active-requests", "running-requests", "waiting-queue", "kv-cache-utilization"]
    max_value: Annotated[float, Meta(ge=0)]

    def __post_init__(self) -> None:
        if self.metric == "kv-cache-utilization" and self.max_value > 1:
            raise Refused("maxValue", "give a number of at least 0 and at most 1")


class UtilizationFilter(Parameters, frozen=True):
    """Keeps the endpoints that are at or below every limit."""

    type_name: ClassVar[str] = "utilization-filter"
    saturates: ClassVar[bool] = True
    conditions: Annotated[tuple[Condition, ...], Meta(min_length=1)]
    fallback_on_empty: bool = False

    def keep(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[EndpointState]:
        kept = [s for s in states if all(_metric(s, c.metric) <= c.max_value for c in self.conditions)]
        return states if not kept and self.fallback_on_empty else kept


def _metric(state: EndpointState, name: str) -> float:
    if name == "active-requests":
        return state.in_flight
    if name == "running-requests":
        return state.running
    return state.waiting if name == "waiting-queue" else state.kv_usage
