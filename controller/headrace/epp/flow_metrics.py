"""Metrics of admission, under the reference picker's names (v1.5.0)."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from headrace.flowcontrol import Outcome, Ticket
from headrace.serving.metrics import CappedLabels, MetricSet, counter, gauges, histogram

_PREFIX, _OWN = "inference_extension_flow_control", "headrace_epp_flow_control"
_WAITS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LOOKS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)


class FlowControlMetrics(MetricSet):
    """What became of requests in admission, and how long they waited. An Observer of the flow controller."""

    _queued = histogram(
        f"{_PREFIX}_request_queue_duration_seconds",
        "From a request's arrival in admission to its outcome.",
        *("fairness_id", "priority", "outcome", "inference_pool", "model_name", "target_model_name"),
        buckets=_WAITS,
    ).by_series()
    _enqueued = histogram(
        f"{_PREFIX}_request_enqueue_duration_seconds",
        "The time it took to give a request its place, or to refuse it one.",
        *("fairness_id", "priority", "outcome"),
        buckets=_LOOKS,
    ).by_series()
    _looked = histogram(
        f"{_PREFIX}_dispatch_cycle_duration_seconds",
        "The time it took to look for a request to let go.",
        buckets=_LOOKS,
    )
    _outcomes = counter(
        "headrace_epp_flow_control_requests_total", "Requests that admission has settled.", "priority", "outcome"
    ).by_series()

    def __init__(self, pool_name: str, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self.pool_name = pool_name
        # Flow and model are both named by clients: it is their pairs that are bounded.
        self._pairs = CappedLabels()

    def pairs(self, ticket: Ticket) -> tuple[str, ...]:
        """Flow and model of a request, as labels."""
        return self._pairs(ticket.flow, ticket.request.model)

    def settled(self, ticket: Ticket, seconds: float) -> None:
        """A request got its outcome."""
        flow, model = self.pairs(ticket)
        priority, outcome = str(ticket.request.priority), (ticket.outcome or Outcome.CLOSED).value
        self._queued[flow, priority, outcome, self.pool_name, model, model].observe(seconds)
        self._outcomes[priority, outcome].inc()

    def enqueued(self, ticket: Ticket, seconds: float) -> None:
        """A request was given a place, or refused one."""
        outcome = "NotYetFinalized" if ticket.outcome is None else ticket.outcome.value
        self._enqueued[self.pairs(ticket)[0], str(ticket.request.priority), outcome].observe(seconds)

    def looked(self, seconds: float) -> None:
        """The queue was looked at."""
        self._looked.observe(seconds)


@dataclass(eq=False)
class FlowControlCollector(Collector):
    """The queue as it is when somebody asks."""

    metrics: FlowControlMetrics
    waiting: Callable[[], Iterable[Ticket]]
    saturation: Callable[[], float]

    def collect(self) -> Iterable[Metric]:
        """The queue's gauges."""
        labels = ("fairness_id", "priority", "inference_pool", "model_name", "target_model_name")
        pool = self.metrics.pool_name
        counts: Counts[tuple[str, ...]] = Counts()
        sizes: Counts[tuple[str, ...]] = Counts()
        for ticket in self.waiting():
            flow, model = self.metrics.pairs(ticket)
            key = (flow, str(ticket.request.priority), pool, model, model)
            counts[key] += 1
            sizes[key] += ticket.request.body_size
        yield gauges(f"{_PREFIX}_queue_size", "Requests that wait in admission.", counts, *labels)
        yield gauges(f"{_PREFIX}_queue_bytes", "Bytes of requests that wait.", sizes, *labels)
        text = "How full the pool is: 1 and more is full."
        yield gauges(f"{_PREFIX}_pool_saturation", text, {(pool,): self.saturation()}, "inference_pool")
