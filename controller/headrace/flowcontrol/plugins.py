"""Every plugin type of admission that a configuration may name.

Names, parameters and defaults: Gateway API Inference Extension v1.5.0 and llm-d-router."""

from __future__ import annotations

from headrace.config.plugins import PluginType, accepted, plugin
from headrace.flowcontrol.admitters import ProbabilisticAdmitter
from headrace.flowcontrol.fairness import GlobalStrict, LeastAttainedService, RoundRobin
from headrace.flowcontrol.limits import PriorityHoldback, SoftReflectiveCeiling, StaticLimit
from headrace.flowcontrol.ordering import EarliestDeadlineFirst, FirstComeFirstServed, SloDeadline

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
    plugin(PriorityHoldback),
    plugin(SoftReflectiveCeiling),
    plugin(ProbabilisticAdmitter),
    accepted(
        "latency-slo-admitter",
        ignored=("latencyPredictionInfoProducerName",),
        note="it sheds nothing yet",
    ),
    # Eviction order is fixed: lowest negative priority first, newest first.
    accepted("eviction-sheddable-filter"),
    accepted("eviction-priority-then-time-ordering"),
)
