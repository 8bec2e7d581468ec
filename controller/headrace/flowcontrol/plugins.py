"""Every plugin type of admission that a configuration may name.

Names, parameters and defaults: Gateway API Inference Extension v1.5.0 and llm-d-router."""

from __future__ import annotations

from typing import Literal

from headrace.config.decode import Parameters, Refused, Share, ShareOverZero
from headrace.config.plugins import PluginType, accepted, plugin
from headrace.flowcontrol.admitters import ProbabilisticAdmitter
from headrace.flowcontrol.fairness import GlobalStrict, LeastAttainedService, RoundRobin
from headrace.flowcontrol.limits import PriorityHoldback, SoftReflectiveCeiling, StaticLimit
from headrace.flowcontrol.ordering import EarliestDeadlineFirst, FirstComeFirstServed, SloDeadline


class _Holdback(Parameters, frozen=True):
    """`minCeiling` is the lowest band's."""

    min_ceiling: Share
    max_ceiling: ShareOverZero = 1.0
    domain: Literal["rank", "value"] = "rank"
    shape: Literal["linear"] = "linear"

    def __post_init__(self) -> None:
        if self.min_ceiling >= self.max_ceiling:
            raise Refused("minCeiling", f"give less than maxCeiling ({self.max_ceiling:g})")

    def policy(self) -> PriorityHoldback:
        """The policy that these ask for."""
        return PriorityHoldback(self.min_ceiling, self.max_ceiling, self.domain == "value")


PLUGINS = (
    plugin(GlobalStrict),
    plugin(RoundRobin),
    # The service of idle flows is forgotten after an hour, and when there are too many.
    PluginType(
        LeastAttainedService.type_name, LeastAttainedService, ignored=("evictionTtlSeconds", "evictionSweepSeconds")
    ),
    plugin(FirstComeFirstServed),
    plugin(EarliestDeadlineFirst),
    plugin(SloDeadline),
    plugin(StaticLimit),
    PluginType(PriorityHoldback.type_name, _Holdback, _Holdback.policy),
    plugin(SoftReflectiveCeiling),
    plugin(ProbabilisticAdmitter),
    accepted(
        "latency-slo-admitter",
        ignored=("latencyPredictionInfoProducerName",),
        note="it sheds nothing: nothing predicts latencies",
    ),
    # Eviction order is fixed: lowest negative priority first, newest first.
    accepted("eviction-sheddable-filter"),
    accepted("eviction-priority-then-time-ordering"),
)
