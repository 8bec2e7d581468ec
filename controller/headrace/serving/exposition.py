"""A registry's page, written in slices: a page of many series takes long, and others have their turn between.

Source: Prometheus text exposition format 0.0.4."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from itertools import islice

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

# About a millisecond.
SAMPLES_A_SLICE = 256
# What OpenMetrics shows beside a counter or a histogram is a gauge of its own here.
_CREATED = "_created"
_TYPES = {"info": "gauge", "stateset": "gauge", "gaugehistogram": "histogram", "unknown": "untyped"}
_SUFFIXES = {"counter": "_total", "info": "_info"}

# Name behind the metric's, labels, value.
_Row = tuple[str, Mapping[str, str], float]


async def page(registry: CollectorRegistry) -> AsyncIterator[bytes]:
    """The page in pieces; after each, others have had their turn."""
    for collector in list(registry._collector_to_names):
        for metric, rows in _families(collector):
            for piece in _written(metric, rows):
                yield piece
                await asyncio.sleep(0)


def _families(collector: Collector) -> Iterator[tuple[Metric, Iterator[_Row]]]:
    """The metrics of a collector. A metric with labels has its samples one by one; those of others are there at once:
    they are few."""
    if isinstance(collector, MetricWrapperBase):
        for metric in collector.describe():
            yield metric, ((sample[0], sample[1], sample[2]) for sample in collector._samples())
        return
    for metric in collector.collect():
        cut = len(metric.name)
        yield metric, ((sample.name[cut:], sample.labels, sample.value) for sample in metric.samples)


def _written(metric: Metric, rows: Iterator[_Row]) -> Iterator[bytes]:
    created: list[str] = []
    head = _head(metric.name + _SUFFIXES.get(metric.type, ""), metric, _TYPES.get(metric.type, metric.type))
    while taken := list(islice(rows, SAMPLES_A_SLICE)):
        lines = [_line(metric.name, row) for row in taken if row[0] != _CREATED]
        created += (_line(metric.name, row) for row in taken if row[0] == _CREATED)
        yield (head + "".join(lines)).encode()
        head = ""
    if head:
        yield head.encode()
    if created:
        created.insert(0, _head(metric.name + _CREATED, metric, "gauge"))
        for at in range(0, len(created), SAMPLES_A_SLICE):
            yield "".join(created[at : at + SAMPLES_A_SLICE]).encode()


def _head(name: str, metric: Metric, kind: str) -> str:
    text = metric.documentation.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def _line(name: str, row: _Row) -> str:
    suffix, labels, value = row
    shown = f"{{{_labels(labels.items())}}}" if labels else ""
    return f"{name}{suffix}{shown} {floatToGoString(value)}\n"  # type: ignore[no-untyped-call]


def _labels(labels: Iterable[tuple[str, str]]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in sorted(labels))


def _escaped(value: str) -> str:
    if "\\" in value or "\n" in value or '"' in value:
        return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return value
