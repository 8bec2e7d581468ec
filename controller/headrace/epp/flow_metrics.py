"""Metrics of admission, under the reference picker's names (v1.5.0)."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from headrace.flowcontrol import Outcome, Ticket

_PREFIX = "inference_extension_flow_control"
_WAITS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LOOKS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
_OTHER = "other"
# Flow and model are both named by clients: it is their pairs that are bounded.
_MOST_PAIRS = 1000


class _Pairs:
    """The pairs of flow and model that have series of their own; further ones are `other`."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, str]] = set()

    def __call__(self, ticket: Ticket) -> tuple[str, str]:
        pair = (ticket.flow, ticket.request.model)
        if pair not in self._seen:
            if len(self._seen) >= _MOST_PAIRS:
                return _OTHER, _OTHER
            self._seen.add(pair)
        return pair


class FlowControlMetrics:
    """What became of requests in admission, and how long they waited. An Observer of the flow controller."""

    def __init__(self, pool_name: str, registry: CollectorRegistry) -> None:
        self.pool_name = pool_name
        self.pairs = _Pairs()
        # The series in use: looking them up by their labels costs more than adding to them.
        self._settled_series: dict[tuple[str, str, int, Outcome | None], tuple[Histogram, Counter]] = {}
        self._enqueued_series: dict[tuple[str, int, Outcome | None], Histogram] = {}
        self._queued = Histogram(
            f"{_PREFIX}_request_queue_duration_seconds",
            "From a request's arrival in admission to its outcome.",
            ("fairness_id", "priority", "outcome", "inference_pool", "model_name", "target_model_name"),
            buckets=_WAITS,
            registry=registry,
        )
        self._enqueued = Histogram(
            f"{_PREFIX}_request_enqueue_duration_seconds",
            "The time it took to give a request its place, or to refuse it one.",
            ("fairness_id", "priority", "outcome"),
            buckets=_LOOKS,
            registry=registry,
        )
        self._looked = Histogram(
            f"{_PREFIX}_dispatch_cycle_duration_seconds",
            "The time it took to look for a request to let go.",
            buckets=_LOOKS,
            registry=registry,
        )
        self._outcomes = Counter(
            "headrace_epp_flow_control_requests_total",
            "Requests that admission has settled.",
            ("priority", "outcome"),
            registry=registry,
        )

    def settled(self, ticket: Ticket, seconds: float) -> None:
        """A request got its outcome."""
        flow, model = self.pairs(ticket)
        key = (flow, model, ticket.request.priority, ticket.outcome)
        series = self._settled_series.get(key)
        if series is None:
            priority, outcome = str(ticket.request.priority), (ticket.outcome or Outcome.CLOSED).value
            queued = self._queued.labels(flow, priority, outcome, self.pool_name, model, model)
            series = self._settled_series[key] = queued, self._outcomes.labels(priority, outcome)
        series[0].observe(seconds)
        series[1].inc()

    def enqueued(self, ticket: Ticket, seconds: float) -> None:
        """A request was given a place, or refused one."""
        key = (self.pairs(ticket)[0], ticket.request.priority, ticket.outcome)
        series = self._enqueued_series.get(key)
        if series is None:
            outcome = "NotYetFinalized" if ticket.outcome is None else ticket.outcome.value
            series = self._enqueued_series[key] = self._enqueued.labels(key[0], str(ticket.request.priority), outcome)
        series.observe(seconds)

    def looked(self, seconds: float) -> None:
        """The queue was looked at."""
        self._looked.observe(seconds)


class FlowControlCollector(Collector):
    """The queue as it is when somebody asks."""

    def __init__(
        self,
        metrics: FlowControlMetrics,
        waiting: Callable[[], Iterable[Ticket]],
        saturation: Callable[[], float],
    ) -> None:
        self._metrics = metrics
        self._waiting = waiting
        self._saturation = saturation

    def collect(self) -> Iterable[Metric]:
        """The queue's gauges."""
        labels = ("fairness_id", "priority", "inference_pool", "model_name", "target_model_name")
        size = GaugeMetricFamily(f"{_PREFIX}_queue_size", "Requests that wait in admission.", labels=labels)
        volume = GaugeMetricFamily(f"{_PREFIX}_queue_bytes", "Bytes of requests that wait.", labels=labels)
        counts: Counts[tuple[str, ...]] = Counts()
        sizes: Counts[tuple[str, ...]] = Counts()
        for ticket in self._waiting():
            flow, model = self._metrics.pairs(ticket)
            key = (flow, str(ticket.request.priority), self._metrics.pool_name, model, model)
            counts[key] += 1
            sizes[key] += ticket.request.body_size
        for values, count in counts.items():
            size.add_metric(values, count)
            volume.add_metric(values, sizes[values])
        yield size
        yield volume
        saturation = GaugeMetricFamily(
            f"{_PREFIX}_pool_saturation", "How full the pool is: 1 and more is full.", labels=("inference_pool",)
        )
        saturation.add_metric((self._metrics.pool_name,), self._saturation())
        yield saturation
