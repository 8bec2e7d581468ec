"""Prometheus metrics as tables: a class declares its metrics, each on a line; and labels whose values are bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric

M = TypeVar("M", bound=Counter | Gauge | Histogram)

OTHER = "other"
MAX_LABEL_VALUES = 1000
MAX_LABEL_CHARACTERS = 256


class Declared(Generic[M]):
    """A metric that every instance of a MetricSet has. `options` are those of its kind, as the buckets."""

    def __init__(self, kind: Callable[..., M], name: str, text: str, labels: Sequence[str], **options: Any) -> None:
        self._arguments = (name, text, labels)
        self._kind = kind
        self._options = options

    def made(self, registry: CollectorRegistry) -> M:
        """The metric itself, in a registry."""
        return self._kind(*self._arguments, registry=registry, **self._options)

    def __get__(self, instance: MetricSet, owner: type[MetricSet]) -> M:
        # For the type checker: an instance has the metric itself under the same name, which is found first.
        raise AttributeError("only instances have metrics")


def counter(name: str, text: str, *labels: str) -> Declared[Counter]:
    """Declare a counter."""
    return Declared(Counter, name, text, labels)


def gauge(name: str, text: str, *labels: str) -> Declared[Gauge]:
    """Declare a gauge."""
    return Declared(Gauge, name, text, labels)


def histogram(name: str, text: str, *labels: str, buckets: Sequence[float]) -> Declared[Histogram]:
    """Declare a histogram."""
    return Declared(Histogram, name, text, labels, buckets=buckets)


class MetricSet:
    """The metrics that a class declares, made in a registry: by default in one of their own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry = registry or CollectorRegistry()
        for name, declared in vars(type(self)).items():
            if isinstance(declared, Declared):
                setattr(self, name, declared.made(registry))


def gauges(name: str, text: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float]]) -> Metric:
    """The gauges of one name as a collector gives them: the values of their labels, and theirs."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for of, value in values:
        family.add_metric(of, value)
    return family


class CappedLabels:
    """Values of labels that clients choose, one or several together: bounded in number and in length.

    Past the bounds each of them is `other`. Several are bounded together, for alone they would allow their product."""

    def __init__(self, limit: int = MAX_LABEL_VALUES) -> None:
        self._limit = limit
        self._seen: set[tuple[str, ...]] = set()

    def __call__(self, *values: str) -> tuple[str, ...]:
        """The values to label with."""
        if values in self._seen:
            return values
        if len(self._seen) >= self._limit or max(map(len, values)) > MAX_LABEL_CHARACTERS:
            return (OTHER,) * len(values)
        self._seen.add(values)
        return values
