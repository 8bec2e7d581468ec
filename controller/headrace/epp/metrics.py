"""Prometheus metrics: the reference picker's names (v1.5.0) where they fit, our own under `headrace_epp_`.

Labels whose values clients choose are capped at 1,000 values: the next ones are counted as `other`."""

from __future__ import annotations

import importlib.metadata
from collections import Counter as Counts
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from headrace.core import Endpoint, Request
from headrace.datalayer.ledger import InFlight, Ledger
from headrace.datalayer.store import EndpointStore
from headrace.epp.flow_metrics import FlowControlMetrics
from headrace.epp.plugin_metrics import PluginDurations
from headrace.extproc import Usage
from headrace.prefixes.approximate import PrefixIndex

MAX_LABEL_VALUES = 1000
OTHER = "other"

_FAST = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)
_REQUEST = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
_BYTES = tuple(float(64 * 4**n) for n in range(12))
_TOKENS = (1.0, *(float(8 * 2**n) for n in range(18)))
_TTFT = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
_PER_TOKEN = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
_RATIO = tuple(n / 10 for n in range(11))


class CappedLabel:
    """The values of one client-derived label; past the cap every new one is `other`."""

    def __init__(self, limit: int = MAX_LABEL_VALUES) -> None:
        self._limit = limit
        self._seen: set[str] = set()

    def __call__(self, value: str) -> str:
        if value in self._seen:
            return value
        if len(self._seen) >= self._limit:
            return OTHER
        self._seen.add(value)
        return value


class CappedModels:
    """The label pairs (model_name, target_model_name); past the cap every new pair is (`other`, `other`). Names of
    either side alone would allow their product."""

    def __init__(self, limit: int = MAX_LABEL_VALUES) -> None:
        self._limit = limit
        self._seen: set[tuple[str, str]] = set()

    def __call__(self, asked: str, target: str) -> tuple[str, str]:
        pair = (asked, target)
        if pair in self._seen:
            return pair
        if len(self._seen) >= self._limit:
            return (OTHER, OTHER)
        self._seen.add(pair)
        return pair


class Metrics:
    """Every metric of the process, in a registry of its own."""

    def __init__(self, pool_name: str) -> None:
        self.registry = CollectorRegistry()
        self.pool_name = pool_name
        self.flow_control = FlowControlMetrics(pool_name, self.registry)
        self.plugins = PluginDurations(self.registry)
        self._models = CappedModels()
        self._by_model: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._durations: dict[tuple[str, str], Histogram] = {}
        self._attempts_to: dict[tuple[str, str], Counter] = {}
        model = ("model_name", "target_model_name")
        objective, extension, own = "inference_objective", "inference_extension", "headrace_epp"
        registry = self.registry
        self._requests = Counter(
            f"{objective}_request_total", "Requests picked for.", (*model, "priority"), registry=registry
        )
        self._errors = Counter(
            f"{objective}_request_error_total",
            "Requests that were refused, or answered with a status of 400 or more.",
            (*model, "error_code"),
            registry=registry,
        )
        self._duration = Histogram(
            f"{objective}_request_duration_seconds",
            "From the pick to the end of the response.",
            model,
            buckets=_REQUEST,
            registry=registry,
        )
        self._request_sizes = Histogram(
            f"{objective}_request_sizes", "Request bodies in bytes.", model, buckets=_BYTES, registry=registry
        )

        def of_model(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"{objective}_{name}", text, model, buckets=buckets, registry=registry)

        self._response_sizes = of_model("response_sizes", "Response bodies in bytes, where they are observed.", _BYTES)
        self._input_tokens = of_model("input_tokens", "Prompt tokens, as servers report them.", _TOKENS)
        self._output_tokens = of_model("output_tokens", "Generated tokens, as servers report them.", _TOKENS)
        self._cached_tokens = of_model(
            "prompt_cached_tokens", "Prompt tokens taken from a server's prefix cache, as it reports them.", _TOKENS
        )
        self._token_seconds = of_model(
            "normalized_time_per_output_token_seconds", "From the pick to the end, for each output token.", _PER_TOKEN
        )
        self._ttft = of_model(
            "request_ttft_seconds",
            "From the pick to a streamed response's first piece, where bodies are observed.",
            _TTFT,
        )
        self._tpot = of_model(
            "request_tpot_seconds", "A streamed response's time for each output token after the first.", _PER_TOKEN
        )
        self._slo_violations = Counter(
            f"{objective}_request_slo_violation_total",
            "Responses slower than their request asked for.",
            (*model, "type"),
            registry=registry,
        )
        self._last_request = Gauge(
            f"{objective}_inference_request_metric",
            "Of the last streamed response: seconds to its first piece (ttft), and for each later token (tpot).",
            (*model, "type"),
            registry=registry,
        )
        self._rewrites = Counter(
            f"{extension}_model_rewrite_decisions_total",
            "Requests sent to another model by an InferenceModelRewrite.",
            ("model_rewrite_name", "model_name", "target_model"),
            registry=registry,
        )
        info = Gauge(f"{extension}_info", "What is running; always 1.", ("commit", "build_ref"), registry=registry)
        info.labels("", f"headrace-{_version()}").set(1)
        self.scheduling_seconds = Histogram(
            f"{extension}_scheduler_e2e_duration_seconds", "A decision.", buckets=_FAST, registry=registry
        )
        self._attempts = Counter(
            f"{extension}_scheduler_attempts_total",
            "Decisions, by their result and endpoint.",
            ("status", "target_model_name", "pod_name", "namespace", "port"),
            registry=registry,
        )
        self.prefix_hit_ratio = Histogram(
            f"{extension}_prefix_indexer_hit_ratio",
            "Blocks of a prompt expected in the picked endpoint's cache, of all its blocks.",
            buckets=_RATIO,
            registry=registry,
        )
        self.prefix_hit_bytes = Histogram(
            f"{extension}_prefix_indexer_hit_bytes",
            "Bytes of a prompt expected in the picked endpoint's cache.",
            buckets=_BYTES,
            registry=registry,
        )
        self.streams = Gauge(f"{own}_streams_inflight", "ext_proc streams that are open.", ("kind",), registry=registry)
        self.stream_errors = Counter(
            f"{own}_stream_errors_total", "Streams ended for an error.", ("reason",), registry=registry
        )
        self.served_elsewhere = Counter(
            f"{own}_served_elsewhere_total",
            "Responses from another endpoint than the first one picked.",
            registry=registry,
        )
        self.unobserved = Counter(
            f"{own}_unobserved_requests_total", "Picks of which no stream ever told the end.", registry=registry
        )
        self.failure_mode_answers = Counter(
            f"{own}_failure_mode_answers_total",
            "Picks not made in time, or failed, and answered by the pool's failure mode.",
            ("mode", "cause"),
            registry=registry,
        )
        self.refused = Counter(f"{own}_refused_total", "Requests refused.", ("reason",), registry=registry)
        self.pages = Counter(
            f"{own}_metrics_pages_total", "Metrics pages asked of model servers.", ("result",), registry=registry
        )
        self.page_seconds = Histogram(
            f"{own}_metrics_page_seconds", "Time to get and read a metrics page.", buckets=_FAST, registry=registry
        )

        self.kv_event_batches = Counter(
            f"{own}_kv_event_batches_total",
            "Messages of servers about their KV caches, read or not.",
            ("result",),
            registry=registry,
        )
        self.tokenizations = Counter(
            f"{own}_tokenizations_total",
            "Text prompts whose tokens were asked for, told or not.",
            ("result",),
            registry=registry,
        )
        self.malformed_objects = Counter(
            f"{own}_malformed_objects",
            "Objects and watch events of the API server that could not be used, by kind.",
            ("kind",),
            registry=registry,
        )
        self.config_reloads = Counter(
            f"{own}_config_reloads_total",
            "Changed configuration files, taken up or not.",
            ("result",),
            registry=registry,
        )

    def picked(self, request: Request, endpoint: Endpoint) -> None:
        """A request was sent to an endpoint."""
        asked, target = self._models(request.asked_model or request.model, request.model)
        requests, sizes = self._of_model(asked, target, request.priority)
        requests.inc()
        sizes.observe(request.body_size)
        attempts = self._attempts_to.get((target, endpoint.key))
        if attempts is None:
            labels = ("success", target, endpoint.pod_name, endpoint.namespace, str(endpoint.port))
            attempts = self._attempts_to[target, endpoint.key] = self._attempts.labels(*labels)
        attempts.inc()

    def _of_model(self, asked: str, target: str, priority: int) -> tuple[Counter, Histogram]:
        """The series that every request of a model adds to; looking them up costs more than adding."""
        found = self._by_model.get((asked, target, priority))
        if found is None:
            found = self._requests.labels(asked, target, str(priority)), self._request_sizes.labels(asked, target)
            self._by_model[asked, target, priority] = found
        return found

    def not_picked(self, request: Request, status: int, reason: str) -> None:
        """A request was refused."""
        asked, target = self._models(request.asked_model or request.model, request.model)
        self._requests.labels(asked, target, str(request.priority)).inc()
        self._errors.labels(asked, target, str(status)).inc()
        self._attempts.labels("failure", target, "", "", "").inc()
        self.refused.labels(reason).inc()

    def rewritten(self, rewrite: str, asked: str, target: str) -> None:
        """A rewrite object sent a request to another model."""
        self._rewrites.labels(rewrite, *self._models(asked, target)).inc()

    def answered(self, entry: InFlight, status: int) -> None:
        """A model server answered with a status."""
        if status >= 400:
            self._errors.labels(*self._models(entry.asked.model, entry.model), str(status)).inc()

    def first_token(self, entry: InFlight, seconds: float) -> None:
        """A streamed response has begun, so long after the pick."""
        names = self._models(entry.asked.model, entry.model)
        self._ttft.labels(*names).observe(seconds)
        self._last_request.labels(*names, "ttft").set(seconds)
        wanted = entry.asked.slo_ttft_ms
        if wanted is not None and seconds * 1000.0 > wanted:
            self._slo_violations.labels(*names, "ttft").inc()

    def responded(
        self, entry: InFlight, size: int, usage: Usage | None, seconds: float, decode_seconds: float | None
    ) -> None:
        """A response that was seen to its end: `seconds` after the pick, `decode_seconds` after its first piece."""
        names = self._models(entry.asked.model, entry.model)
        self._response_sizes.labels(*names).observe(size)
        if usage is None:
            return
        self._input_tokens.labels(*names).observe(usage.input_tokens)
        self._output_tokens.labels(*names).observe(usage.output_tokens)
        self._cached_tokens.labels(*names).observe(usage.cached_tokens)
        if usage.output_tokens:
            self._token_seconds.labels(*names).observe(seconds / usage.output_tokens)
        if decode_seconds is None or usage.output_tokens < 2:
            return
        per_token = decode_seconds / (usage.output_tokens - 1)
        self._tpot.labels(*names).observe(per_token)
        self._last_request.labels(*names, "tpot").set(per_token)
        wanted = entry.asked.slo_tpot_ms
        if wanted is not None and per_token * 1000.0 > wanted:
            self._slo_violations.labels(*names, "tpot").inc()

    def ended(self, entry: InFlight, seconds: float) -> None:
        """A request is over."""
        names = self._models(entry.asked.model, entry.model)
        duration = self._durations.get(names)
        if duration is None:
            duration = self._durations[names] = self._duration.labels(*names)
        duration.observe(seconds)

    def forget(self, endpoint: Endpoint) -> None:
        """An endpoint left the pool: its series go with it, or a pool of short-lived Pods would pile them up."""
        self._attempts_to = {key: child for key, child in self._attempts_to.items() if key[1] != endpoint.key}
        self._attempts.remove_by_labels(
            {"pod_name": endpoint.pod_name, "namespace": endpoint.namespace, "port": str(endpoint.port)}
        )


class PoolCollector(Collector):
    """Metrics of the pool as it is when somebody asks."""

    def __init__(self, pool_name: str, store: EndpointStore, ledger: Ledger, index: PrefixIndex) -> None:
        self._pool_name = pool_name
        self._store = store
        self._ledger = ledger
        self._index = index
        self._model = CappedLabel()

    def collect(self) -> Iterable[Metric]:
        """The pool's gauges."""
        states = self._store.snapshot()
        count = len(states)

        def gauge(name: str, text: str, value: float) -> Metric:
            family = GaugeMetricFamily(f"inference_pool_{name}", text, labels=("name",))
            family.add_metric((self._pool_name,), value)
            return family

        def mean(total: float) -> float:
            return total / count if count else 0.0

        yield gauge("ready_pods", "Endpoints that are ready.", count)
        yield gauge(
            "average_kv_cache_utilization", "Mean used share of KV cache.", mean(sum(s.kv_usage for s in states))
        )
        yield gauge("average_queue_size", "Mean number of waiting requests.", mean(sum(s.waiting for s in states)))
        yield gauge(
            "average_running_requests", "Mean number of running requests.", mean(sum(s.running for s in states))
        )
        queue = GaugeMetricFamily(
            "inference_pool_per_pod_queue_size", "Waiting requests.", labels=("name", "model_server_pod")
        )
        in_flight = GaugeMetricFamily(
            "headrace_epp_inflight_requests", "Requests sent and not seen to end.", labels=("endpoint",)
        )
        fresh = GaugeMetricFamily(
            "headrace_epp_endpoint_metrics_fresh", "1 where the server's metrics are usable.", labels=("endpoint",)
        )
        for state in states:
            queue.add_metric((self._pool_name, state.endpoint.pod_name), state.waiting)
            in_flight.add_metric((state.key,), state.in_flight)
            fresh.add_metric((state.key,), 1.0 if state.fresh else 0.0)
        yield queue
        yield in_flight
        yield fresh
        size = GaugeMetricFamily("inference_extension_prefix_indexer_size", "Distinct blocks in the prefix index.")
        size.add_metric((), len(self._index))
        yield size
        running = GaugeMetricFamily(
            "inference_objective_running_requests", "Requests in flight.", labels=("model_name",)
        )
        counts: Counts[str] = Counts()
        for model, number in self._ledger.by_model().items():
            counts[self._model(model)] += number
        for model, number in counts.items():
            running.add_metric((model,), number)
        yield running
        total = GaugeMetricFamily("headrace_epp_ledger_requests", "Requests in the in-flight account.")
        total.add_metric((), len(self._ledger))
        yield total


def _version() -> str:
    try:
        return importlib.metadata.version("headrace")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
