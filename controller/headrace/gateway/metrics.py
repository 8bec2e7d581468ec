"""What the controller counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_PREFIX = "headrace_gateway_"


class Metrics:
    """The metrics of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.translations = self._counter("translations", "Hook calls, by result: ok or failed", "result")
        self.translation_seconds = Histogram(
            f"{_PREFIX}translation_duration_seconds",
            "Time of a hook call",
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
            registry=self.registry,
        )
        self.translation_notes = self._gauge("translation_problems", "Problems noted by the last hook call")
        lists = "Lists that hook calls made because the informers lacked an object or had no open watch"
        self.translation_lists = self._counter("translation_lists", lists, "kind")
        nudges = "Times that Envoy Gateway was made to call because a translation was out of date"
        self.nudges = self._counter("retranslations_caused", nudges)
        bodies = "Bodies read for body-based routing, by whether they named a model: named, none, refused or malformed"
        self.model_requests = self._counter("model_requests", bodies, "result")
        self.model_seconds = self._counter("model_seconds", "Time spent reading bodies for body-based routing")
        malformed = "Objects and watch events of the API server that could not be used, by kind"
        self.malformed_objects = self._counter("malformed_objects", malformed, "kind")
        self.pools = self._gauge("pools", "InferencePools known, by API group", "group")
        self.discovery_streams = self._gauge("discovery_streams", "Open EDS and SDS streams", "kind")
        self.discovery_pushes = self._counter("discovery_pushes", "Resources sent to Envoys", "kind")
        self.discovery_refusals = self._counter("discovery_refusals", "Resources that an Envoy refused", "kind")
        writes = "Writes of pool status, by result: ok, conflict or failed"
        self.status_writes = self._counter("status_writes", writes, "result")

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(_PREFIX + name, meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(_PREFIX + name, meaning, labels, registry=self.registry)
