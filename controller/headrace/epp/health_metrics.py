"""The servers' health, and what is predicted of them, as metrics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from headrace.datalayer.health import Health
from headrace.datalayer.health_watch import HealthWatch
from headrace.prediction.watch import LatencyWatch
from headrace.serving.metrics import gauges


@dataclass(eq=False)
class HealthCollector(Collector):
    """What each endpoint is taken for, and how often that changed. Where a profile goes by predictions: what is learnt
    of each endpoint, and how wrong they are."""

    health: HealthWatch
    latency: LatencyWatch

    def collect(self) -> Iterable[Metric]:
        """The gauges and the counter."""
        servers = {(s.key, s.health.value, s.cause.value): 1.0 for s in self.health.ward.servers()}
        text = "1 for what an endpoint is taken for: good, suspect, out or trial, and why."
        yield gauges("headrace_epp_endpoint_health", text, servers, "endpoint", "state", "reason")
        counts = self.health.ward.counts()
        of_pool = {(state.value,): float(counts[state]) for state in Health}
        yield gauges("headrace_epp_endpoints_by_health", "Endpoints by what they are taken for.", of_pool, "state")
        changes = CounterMetricFamily(
            "headrace_epp_endpoint_health_changes",
            "Endpoints that were taken for something else, by what, and why.",
            labels=("state", "reason"),
        )
        for labels, count in self.health.changes.items():
            changes.add_metric(labels, count)
        yield changes

        if self.latency.wanted:
            text = "The mean error of predicted times to the first token, over the mean time."
            yield gauges("headrace_epp_predicted_first_token_error_ratio", text, {(): self.latency.errors.ratio})
            learnt = {
                (key, part): seconds
                for key, times in self.latency.step_times()
                for part, seconds in times._asdict().items()
            }
            text = "What a step of an engine is thought to take: itself, for each prompt token, for each token written."
            yield gauges("headrace_epp_learnt_step_seconds", text, learnt, "endpoint", "part")
