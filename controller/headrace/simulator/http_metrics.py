"""What a vLLM server's page says of its HTTP requests, and of its sleep: names, labels and buckets as recorded."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary

_FINE = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 7.5, 10.0),
    *(30.0, 60.0),
)
_COARSE = (0.1, 0.5, 1.0)
_SLEEP = (0.01, 0.1, 1.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_NOT_COUNTED = frozenset(("/metrics", "/health", "/load", "/ping", "/version", "/faults"))
_OPERATIONS = {"/sleep": "sleep", "/wake_up": "wake"}

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpMetrics:
    """The account of one server's requests, in its registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        by = ("handler", "method")
        self._requests = Counter("http_requests", "Requests.", (*by, "status"), registry=registry)
        self._asked = Summary("http_request_size_bytes", "Bytes of requests.", ("handler",), registry=registry)
        self._sent = Summary("http_response_size_bytes", "Bytes of responses.", ("handler",), registry=registry)
        self._fine = Histogram(
            "http_request_duration_highr_seconds", "Time of a request.", buckets=_FINE, registry=registry
        )
        self._coarse = Histogram(
            "http_request_duration_seconds", "Time of a request.", by, buckets=_COARSE, registry=registry
        )
        self._registry = registry
        self._sleeps: tuple[Histogram, Gauge] | None = None

    @web.middleware
    async def count(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Count a request that is answered."""
        began = time.perf_counter()
        response = await handler(request)
        resource = request.match_info.route.resource
        path = resource.canonical if resource is not None else "none"
        if path not in _NOT_COUNTED:
            seconds = time.perf_counter() - began
            self._requests.labels(path, request.method, f"{response.status // 100}xx").inc()
            self._asked.labels(path).observe(request.content_length or 0)
            self._sent.labels(path).observe(response.content_length or 0)
            self._fine.observe(seconds)
            self._coarse.labels(path, request.method).observe(seconds)
            if operation := _OPERATIONS.get(path):
                self._slept(operation, seconds)
        return response

    def _slept(self, operation: str, seconds: float) -> None:
        """An operation of sleep is done. A server that has had none has nothing of it on its page."""
        if self._sleeps is None:
            duration = Histogram(
                "vllm:sleep_mode_operation_duration_seconds",
                "Duration of one sleep-mode operation.",
                ("operation",),
                buckets=_SLEEP,
                registry=self._registry,
            )
            in_flight = Gauge(
                "vllm:sleep_mode_operations_in_flight",
                "Sleep-mode operations currently awaited.",
                ("operation",),
                registry=self._registry,
            )
            self._sleeps = duration, in_flight
        duration, in_flight = self._sleeps
        duration.labels(operation).observe(seconds)
        in_flight.labels(operation).set(0)
