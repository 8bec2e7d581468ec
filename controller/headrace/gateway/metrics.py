"""What the controller counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """The metrics of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.translations = Counter(
            "headrace_gateway_translations", "Hook calls, by result: ok or failed", ["result"], registry=self.registry
        )
        self.translation_seconds = Histogram(
            "headrace_gateway_translation_duration_seconds",
            "Time of a hook call",
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
            registry=self.registry,
        )
        self.translation_notes = Gauge(
            "headrace_gateway_translation_problems", "Problems noted by the last hook call", registry=self.registry
        )
        self.translation_lists = Counter(
            "headrace_gateway_translation_lists",
            "Lists that hook calls made because the informers lacked an object or had no open watch",
            ["kind"],
            registry=self.registry,
        )
        self.nudges = Counter(
            "headrace_gateway_retranslations_caused",
            "Times that Envoy Gateway was made to call because a translation was out of date",
            registry=self.registry,
        )
        self.model_requests = Counter(
            "headrace_gateway_model_requests",
            "Bodies read for body-based routing, by whether they named a model: named, none, refused or malformed",
            ["result"],
            registry=self.registry,
        )
        self.model_seconds = Counter(
            "headrace_gateway_model_seconds", "Time spent reading bodies for body-based routing", registry=self.registry
        )
        self.malformed_objects = Counter(
            "headrace_gateway_malformed_objects",
            "Objects and watch events of the API server that could not be used, by kind",
            ["kind"],
            registry=self.registry,
        )
        self.pools = Gauge(
            "headrace_gateway_pools", "InferencePools known, by API group", ["group"], registry=self.registry
        )
        self.discovery_streams = Gauge(
            "headrace_gateway_discovery_streams", "Open EDS and SDS streams", ["kind"], registry=self.registry
        )
        self.discovery_pushes = Counter(
            "headrace_gateway_discovery_pushes", "Resources sent to Envoys", ["kind"], registry=self.registry
        )
        self.discovery_refusals = Counter(
            "headrace_gateway_discovery_refusals", "Resources that an Envoy refused", ["kind"], registry=self.registry
        )
        self.status_writes = Counter(
            "headrace_gateway_status_writes",
            "Writes of pool status, by result: ok, conflict or failed",
            ["result"],
            registry=self.registry,
        )
