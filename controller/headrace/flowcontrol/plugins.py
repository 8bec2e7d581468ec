"""Every plugin type of admission that a configuration may name, and how its parameters are read.

Names, parameters and defaults: Gateway API Inference Extension v1.5.0 and llm-d-router."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from headrace.flowcontrol.admitters import LatencySloAdmitter, ProbabilisticAdmitter
from headrace.flowcontrol.fairness import GlobalStrict, LeastAttainedService, RoundRobin
from headrace.flowcontrol.limits import PriorityHoldback, SoftReflectiveCeiling, StaticLimit
from headrace.flowcontrol.ordering import EarliestDeadlineFirst, FirstComeFirstServed, SloDeadline
from headrace.scheduling import Parameters


def _least_attained_service(parameters: Parameters) -> LeastAttainedService:
    parameters.choice("strategy", "las", ("las",))
    # What idle flows got is forgotten after an hour, and when there are too many.
    parameters.ignore("evictionTtlSeconds", "evictionSweepSeconds")
    return LeastAttainedService(
        weight_service=parameters.number("lasWeightService", 0.8),
        weight_head_wait=parameters.number("lasWeightHeadWait", 0.2),
        half_life=parameters.number("lasHalfLifeSeconds", 60.0),
    )


def _holdback(parameters: Parameters) -> PriorityHoldback:
    parameters.choice("shape", "linear", ("linear",))
    if "minCeiling" not in parameters:
        raise parameters.refuse("minCeiling", "give the lowest band's ceiling, at least 0 and under 1")
    lowest = parameters.number("minCeiling", 0.0, at_most=1.0)
    highest = parameters.positive("maxCeiling", 1.0, at_most=1.0)
    if lowest >= highest:
        raise parameters.refuse("minCeiling", f"give less than maxCeiling ({highest:g})")
    return PriorityHoldback(lowest, highest, parameters.choice("domain", "rank", ("rank", "value")) == "value")


def _probabilistic(parameters: Parameters) -> ProbabilisticAdmitter:
    return ProbabilisticAdmitter(
        queue_depth_threshold=parameters.integer("queueDepthThreshold", 5, at_least=1),
        kv_cache_threshold=parameters.positive("kvCacheUtilThreshold", 0.8),
        power=parameters.positive("power", 5.0, at_most=100.0),
        k=parameters.positive("k", 300.0),
    )


def _latency(parameters: Parameters) -> LatencySloAdmitter:
    parameters.ignore("latencyPredictionInfoProducerName")
    return LatencySloAdmitter()


FACTORIES: Mapping[str, Callable[[Parameters], object]] = {
    GlobalStrict.type_name: lambda p: GlobalStrict(),
    RoundRobin.type_name: lambda p: RoundRobin(),
    LeastAttainedService.type_name: _least_attained_service,
    FirstComeFirstServed.type_name: lambda p: FirstComeFirstServed(),
    EarliestDeadlineFirst.type_name: lambda p: EarliestDeadlineFirst(),
    SloDeadline.type_name: lambda p: SloDeadline(),
    StaticLimit.type_name: lambda p: StaticLimit(p.number("threshold", 1.0)),
    PriorityHoldback.type_name: _holdback,
    SoftReflectiveCeiling.type_name: lambda p: SoftReflectiveCeiling(),
    ProbabilisticAdmitter.type_name: _probabilistic,
    LatencySloAdmitter.type_name: _latency,
    # Who is turned out for more important requests is fixed: the lowest priority below 0 first, its latest first.
    "eviction-sheddable-filter": lambda p: None,
    "eviction-priority-then-time-ordering": lambda p: None,
}
