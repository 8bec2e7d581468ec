"""Prometheus metrics as tables: a class declares its metrics, each on a line; and labels whose values are bounded."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric

M = TypeVar("M")
L = TypeVar("L", bound=tuple[str, ...])

OTHER = "other"
MAX_LABEL_VALUES = 1000
MAX_UNCONFIRMED = 100
# Longer values are cut.
MAX_LABEL_CHARACTERS = 64


class Declared(Generic[M]):
    """A metric that every instance of a MetricSet has: `make` with a registry."""

    def __init__(self, make: Callable[[CollectorRegistry], M]) -> None:
        self.make = make

    def by_series(self) -> Declared[Series[M]]:
        """The same metric for a hot path, by its series."""
        return Declared(lambda registry: Series(self.make(registry)))

    def __get__(self, instance: MetricSet, owner: type[MetricSet]) -> M:
        # For the type checker: an instance has the metric itself under the same name, which is found first.
        raise AttributeError("only instances have metrics")


class Series(dict[tuple[str, ...], M]):
    """The series of a metric by their labels, kept: to look one up by `labels` costs more than to add to it."""

    def __init__(self, metric: Any) -> None:
        super().__init__()
        self._metric = metric

    def __missing__(self, labels: tuple[str, ...]) -> M:
        found: M = self._metric.labels(*labels)
        self[labels] = found
        return found

    def forget(self, **labels: str) -> None:
        """Remove the series with these values of labels."""
        self._metric.remove_by_labels(labels)
        self.clear()


class _Counter(Counter):
    """A counter of one event loop: adds without a lock, and without looking at what it is asked."""

    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        self._value._value += amount


class _Gauge(Gauge):
    """The same of a gauge."""

    def inc(self, amount: float = 1) -> None:
        self._value._value += amount

    def dec(self, amount: float = 1) -> None:
        self._value._value -= amount


class _Histogram(Histogram):
    """The same of a histogram. Its bucket is found by halves."""

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        self._sum._value += amount
        self._buckets[bisect_left(self._upper_bounds, amount)]._value += 1.0


def counter(name: str, text: str, *labels: str) -> Declared[Counter]:
    """Declare a counter."""
    return Declared(lambda registry: _Counter(name, text, labels, registry=registry))


def gauge(name: str, text: str, *labels: str) -> Declared[Gauge]:
    """Declare a gauge."""
    return Declared(lambda registry: _Gauge(name, text, labels, registry=registry))


def histogram(name: str, text: str, *labels: str, buckets: Sequence[float]) -> Declared[Histogram]:
    """Declare a histogram."""
    return Declared(lambda registry: _Histogram(name, text, labels, buckets=buckets, registry=registry))


class MetricSet:
    """The metrics that a class declares, made in a registry: by default in one of their own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry = registry or CollectorRegistry()
        for name, declared in vars(type(self)).items():
            if isinstance(declared, Declared):
                setattr(self, name, declared.make(registry))


def gauges(name: str, text: str, values: Mapping[L, float], *labels: str) -> Metric:
    """The gauges of one name as a collector gives them, by the values of their labels."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for of, value in values.items():
        family.add_metric(of, value)
    return family


class CappedLabels:
    """Values of labels that clients choose, one or several together: cut to a length, and bounded in number.

    Past the bound each of them is `other`. Several are bounded together, for alone they would allow their product.
    Where values are confirmed, those that are not may be inventions: they take only some of the places."""

    def __init__(self, limit: int = MAX_LABEL_VALUES, unconfirmed: int = MAX_UNCONFIRMED) -> None:
        self._limit = limit
        self._most_unconfirmed = unconfirmed
        self._seen: set[tuple[str, ...]] = set()
        self._confirmed: set[tuple[str, ...]] = set()

    def __call__(self, *values: str) -> tuple[str, ...]:
        """The values to label with."""
        if values in self._seen:
            return values
        values = tuple(value[:MAX_LABEL_CHARACTERS] for value in values)
        if values in self._seen:
            return values
        unconfirmed = len(self._seen) - len(self._confirmed)
        if len(self._seen) >= self._limit or (self._confirmed and unconfirmed >= self._most_unconfirmed):
            return (OTHER,) * len(values)
        self._seen.add(values)
        return values

    def confirm(self, *values: str) -> None:
        """These values are no invention of a client."""
        if values in self._confirmed:
            return
        values = tuple(value[:MAX_LABEL_CHARACTERS] for value in values)
        if values in self._seen or len(self._seen) < self._limit:
            self._seen.add(values)
            self._confirmed.add(values)
