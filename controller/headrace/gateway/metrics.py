"""What the controller counts, for Prometheus."""

from __future__ import annotations

from headrace.serving.metrics import MetricSet, counter, gauge, histogram

_OWN = "headrace_gateway"


class Metrics(MetricSet):
    """The metrics of one process."""

    translations = counter(f"{_OWN}_translations", "Hook calls, by result: ok or failed", "result")
    translation_seconds = histogram(
        f"{_OWN}_translation_duration_seconds",
        "Time of a hook call",
        buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
    )
    translation_notes = gauge(f"{_OWN}_translation_problems", "Problems noted by the last hook call")
    translation_lists = counter(
        f"{_OWN}_translation_lists",
        "Lists that hook calls made because the informers lacked an object or had no open watch",
        "kind",
    )
    nudges = counter(
        f"{_OWN}_retranslations_caused",
        "Times that Envoy Gateway was made to call because a translation was out of date",
    )
    model_requests = counter(
        f"{_OWN}_model_requests",
        "Bodies read for body-based routing, by whether they named a model: named, none, refused or malformed",
        "result",
    )
    model_seconds = counter(f"{_OWN}_model_seconds", "Time spent reading bodies for body-based routing")
    malformed_objects = counter(
        f"{_OWN}_malformed_objects",
        "Objects and watch events of the API server that could not be used, by kind",
        "kind",
    )
    pools = gauge(f"{_OWN}_pools", "InferencePools known, by API group", "group")
    discovery_streams = gauge(f"{_OWN}_discovery_streams", "Open EDS and SDS streams", "kind")
    discovery_pushes = counter(f"{_OWN}_discovery_pushes", "Resources sent to Envoys", "kind")
    discovery_refusals = counter(f"{_OWN}_discovery_refusals", "Resources that an Envoy refused", "kind")
    status_writes = counter(
        f"{_OWN}_status_writes", "Writes of pool status, by result: ok, conflict or failed", "result"
    )
