"""Prometheus metrics: the reference picker's names (v1.5.0) where they fit, our own under `headrace_epp_`.

Labels whose values clients choose are bounded: further ones are counted as `other`."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client import Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from headrace.config.limits import ByteBudget
from headrace.core import Endpoint, Refusal, Request
from headrace.core.version import version
from headrace.datalayer.ledger import InFlight, Ledger
from headrace.datalayer.pool_state import PoolObserver, ResponseTotals
from headrace.datalayer.store import EndpointStore
from headrace.epp.director import Pick
from headrace.epp.flow_metrics import FlowControlMetrics
from headrace.epp.plugin_metrics import PluginDurations
from headrace.prefixes.approximate import PrefixIndex
from headrace.scheduling.tokens import BYTES_A_TOKEN
from headrace.serving.metrics import (
    MAX_LABEL_CHARACTERS,
    CappedLabels,
    Declared,
    MetricSet,
    Series,
    counter,
    gauge,
    gauges,
    histogram,
)

_FAST = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)
_LAG = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_REQUEST = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
_BYTES = tuple(float(64 * 4**n) for n in range(12))
_TOKENS = (1.0, *(float(8 * 2**n) for n in range(18)))
_TTFT = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
_PER_TOKEN = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
_RATIO = tuple(n / 10 for n in range(11))
_MOST_KEPT = 10_000

_MODEL = ("model_name", "target_model_name")
_OBJECTIVE, _EXTENSION, _OWN = "inference_objective", "inference_extension", "headrace_epp"


def _of_model(name: str, text: str, buckets: tuple[float, ...]) -> Declared[Series[Histogram]]:
    return histogram(f"{_OBJECTIVE}_{name}", text, *_MODEL, buckets=buckets).by_series()


class Metrics(MetricSet, PoolObserver):
    """Every metric of the process, in a registry of its own. Observes picks and the pool."""

    _requests = counter(f"{_OBJECTIVE}_request_total", "Requests picked for.", *_MODEL, "priority").by_series()
    _errors = counter(
        f"{_OBJECTIVE}_request_error_total",
        "Requests that were refused, or answered with a status of 400 or more.",
        *(*_MODEL, "error_code"),
    )
    _duration = _of_model("request_duration_seconds", "From the pick to the end of the response.", _REQUEST)
    _request_sizes = _of_model("request_sizes", "Request bodies in bytes.", _BYTES)
    _response_sizes = _of_model("response_sizes", "Response bodies in bytes, where they are observed.", _BYTES)
    _input_tokens = _of_model("input_tokens", "Prompt tokens, as servers report them.", _TOKENS)
    _output_tokens = _of_model("output_tokens", "Generated tokens, as servers report them.", _TOKENS)
    _cached_tokens = _of_model(
        "prompt_cached_tokens", "Prompt tokens taken from a server's prefix cache, as it reports them.", _TOKENS
    )
    _token_seconds = _of_model(
        "normalized_time_per_output_token_seconds", "From the pick to the end, for each output token.", _PER_TOKEN
    )
    _ttft = _of_model(
        "request_ttft_seconds", "From the pick to a streamed response's first piece, where bodies are observed.", _TTFT
    )
    _tpot = _of_model(
        "request_tpot_seconds", "A streamed response's time for each output token after the first.", _PER_TOKEN
    )
    _slo_violations = counter(
        f"{_OBJECTIVE}_request_slo_violation_total", "Responses slower than their request asked for.", *_MODEL, "type"
    )
    _last_request = gauge(
        f"{_OBJECTIVE}_inference_request_metric",
        "Of the last streamed response: seconds to its first piece (ttft), and for each later token (tpot).",
        *(*_MODEL, "type"),
    )
    _rewrites = counter(
        f"{_EXTENSION}_model_rewrite_decisions_total",
        "Requests sent to another model by an InferenceModelRewrite.",
        *("model_rewrite_name", "model_name", "target_model"),
    )
    _info = gauge(f"{_EXTENSION}_info", "What is running; always 1.", "commit", "build_ref")
    _scheduling_seconds = histogram(f"{_EXTENSION}_scheduler_e2e_duration_seconds", "A decision.", buckets=_FAST)
    _attempts = counter(
        f"{_EXTENSION}_scheduler_attempts_total",
        "Decisions, by their result and endpoint.",
        *("status", "target_model_name", "pod_name", "namespace", "port"),
    ).by_series()
    _prefix_hit_ratio = histogram(
        f"{_EXTENSION}_prefix_indexer_hit_ratio",
        "Blocks of a prompt expected in the picked endpoint's cache, of all its blocks.",
        buckets=_RATIO,
    )
    _prefix_hit_bytes = histogram(
        f"{_EXTENSION}_prefix_indexer_hit_bytes",
        "Bytes of a prompt expected in the picked endpoint's cache.",
        buckets=_BYTES,
    )
    streams = gauge(f"{_OWN}_streams_inflight", "ext_proc streams that are open.", "kind").by_series()
    _held_bodies = gauge(
        f"{_OWN}_held_body_bytes", "Bytes of request bodies that are held; beyond the limit requests are refused."
    )
    _held_bodies_limit = gauge(f"{_OWN}_held_body_bytes_limit", "The most of headrace_epp_held_body_bytes.")
    stream_errors = counter(f"{_OWN}_stream_errors_total", "Streams ended for an error.", "reason")
    closed_connections = counter(
        f"{_OWN}_http2_closed_connections_total",
        "Connections closed for what the peer did, by the error that it was told (--extproc-transport http2).",
        "error",
    )
    slow_callbacks = counter(
        f"{_OWN}_http2_slow_callbacks_total",
        "Reads that took more than 50 ms of CPU to handle: everybody else waited (--extproc-transport http2).",
    )
    _served_elsewhere = counter(
        f"{_OWN}_served_elsewhere_total", "Responses from another endpoint than the first one picked."
    )
    _unobserved = counter(f"{_OWN}_unobserved_requests_total", "Picks of which no stream ever told the end.")
    _failure_mode_answers = counter(
        f"{_OWN}_failure_mode_answers_total",
        "Picks not made in time, or failed, and answered by the pool's failure mode.",
        *("mode", "cause"),
    )
    _refused = counter(f"{_OWN}_refused_total", "Requests refused.", "reason")
    pages = counter(f"{_OWN}_metrics_pages_total", "Metrics pages asked of model servers.", "result")
    page_seconds = histogram(f"{_OWN}_metrics_page_seconds", "Time to get and read a metrics page.", buckets=_FAST)
    kv_event_batches = counter(
        f"{_OWN}_kv_event_batches_total", "Messages of servers about their KV caches, read or not.", "result"
    )
    tokenizations = counter(
        f"{_OWN}_tokenizations_total", "Text prompts whose tokens were asked for, told or not.", "result"
    )
    malformed_objects = counter(
        f"{_OWN}_malformed_objects",
        "Objects and watch events of the API server that could not be used, by kind.",
        "kind",
    )
    config_reloads = counter(f"{_OWN}_config_reloads_total", "Changed configuration files, taken up or not.", "result")
    loop_lag = histogram(
        f"{_OWN}_loop_lag_seconds",
        "By how much the event loop was late: what holds it up holds up every request.",
        buckets=_LAG,
    )
    task_failures = counter(
        f"{_OWN}_task_failures_total", "Background tasks that failed and were started again, by kind.", "task"
    )

    def __init__(self, pool_name: str) -> None:
        super().__init__()
        self.pool_name = pool_name
        self.flow_control = FlowControlMetrics(pool_name, self.registry)
        self.plugins = PluginDurations(self.registry)
        self._models = CappedLabels()
        # What counts a pick, by its models, priority and endpoint.
        self._of_picks: dict[
            tuple[tuple[str, ...], int, str], tuple[Callable[[], None], Callable[[float], None], Callable[[], None]]
        ] = {}
        self._info.labels("", f"headrace-{version()}").set(1)

    def show_budget(self, bodies: ByteBudget) -> None:
        """Show what is held of request bodies."""
        self._held_bodies.set_function(lambda: bodies.held)
        self._held_bodies_limit.set(bodies.most)

    def tokenized(self, ok: bool) -> None:
        """A server was asked for a prompt's tokens."""
        self.tokenizations.labels("ok" if ok else "error").inc()

    def decided(self, pick: Pick) -> None:
        """A pick is over: a PickObserver."""
        facts, state = pick.facts, pick.outcome.state
        if pick.failure is not None:
            self._failure_mode_answers.labels(pick.failure.mode.value, pick.failure.cause).inc()
        if isinstance(pick.answer, Refusal):
            self.not_picked(pick.request, pick.answer.status, pick.answer.reason.value)
        elif pick.entry is not None and pick.entry.record is not None:
            self.picked(pick.request, pick.entry.record.endpoint)
        if facts is not None and state is not None:
            self._scheduling_seconds.observe(pick.seconds)
            if facts.prefix_blocks:
                matched = facts.prefix_matches.get(state.key, 0)
                self._prefix_hit_ratio.observe(matched / facts.prefix_blocks)
                self._prefix_hit_bytes.observe(matched * facts.block_tokens * BYTES_A_TOKEN)

    def picked(self, request: Request, endpoint: Endpoint) -> None:
        """A request was sent to an endpoint."""
        names = self._models(request.asked_model or request.model, request.model)
        # One look for all of a pick's series.
        found = self._of_picks.get((names, request.priority, endpoint.key))
        if found is None:
            asked, target = names
            place = ("success", target, endpoint.pod_name, endpoint.namespace, str(endpoint.port))
            requests = self._requests[asked, target, str(request.priority)]
            found = (requests.inc, self._request_sizes[names].observe, self._attempts[place].inc)
            if len(self._of_picks) >= _MOST_KEPT:
                self._of_picks.clear()
            self._of_picks[names, request.priority, endpoint.key] = found
        count, size, attempt = found
        count()
        size(request.body_size)
        attempt()

    def not_picked(self, request: Request, status: int, reason: str) -> None:
        """A request was refused."""
        asked, target = self._models(request.asked_model or request.model, request.model)
        self._requests[asked, target, str(request.priority)].inc()
        self._errors.labels(asked, target, str(status)).inc()
        self._attempts["failure", target, "", "", ""].inc()
        self._refused.labels(reason).inc()

    def rewritten(self, rewrite: str, asked: str, target: str) -> None:
        """A rewrite object sent a request to another model."""
        self._rewrites.labels(rewrite[:MAX_LABEL_CHARACTERS], *self._models(asked, target)).inc()

    def answered(self, entry: InFlight, status: int, *, elsewhere: bool = False) -> None:
        if elsewhere:
            self._served_elsewhere.inc()
        if 0 < status < 400:
            self._models.confirm(entry.asked.model, entry.model)
        elif status >= 400:
            self._errors.labels(*self._models(entry.asked.model, entry.model), str(status)).inc()

    def first_token(self, entry: InFlight, seconds: float) -> None:
        names = self._models(entry.asked.model, entry.model)
        self._ttft[names].observe(seconds)
        self._last_request.labels(*names, "ttft").set(seconds)
        wanted = entry.asked.slo_ttft_ms
        if wanted is not None and seconds * 1000.0 > wanted:
            self._slo_violations.labels(*names, "ttft").inc()

    def responded(self, entry: InFlight, response: ResponseTotals, seconds: float, decode: float | None) -> None:
        names, usage = self._models(entry.asked.model, entry.model), response.usage
        self._response_sizes[names].observe(response.size)
        if usage is None:
            return
        self._input_tokens[names].observe(usage.input_tokens)
        self._output_tokens[names].observe(usage.output_tokens)
        self._cached_tokens[names].observe(usage.cached_tokens)
        if usage.output_tokens:
            self._token_seconds[names].observe(seconds / usage.output_tokens)
        if decode is None or usage.output_tokens < 2:
            return
        per_token = decode / (usage.output_tokens - 1)
        self._tpot[names].observe(per_token)
        self._last_request.labels(*names, "tpot").set(per_token)
        wanted = entry.asked.slo_tpot_ms
        if wanted is not None and per_token * 1000.0 > wanted:
            self._slo_violations.labels(*names, "tpot").inc()

    def finished(self, entry: InFlight, seconds: float) -> None:
        self._duration[self._models(entry.asked.model, entry.model)].observe(seconds)

    def unobserved(self, entry: InFlight) -> None:
        self._unobserved.inc()

    def endpoint_removed(self, endpoint: Endpoint) -> None:
        # Its series go with it, or a pool of short-lived Pods would pile them up.
        self._of_picks.clear()
        self._attempts.forget(pod_name=endpoint.pod_name, namespace=endpoint.namespace, port=str(endpoint.port))


@dataclass(eq=False)
class PoolCollector(Collector):
    """Metrics of the pool as it is when somebody asks."""

    pool_name: str
    store: EndpointStore
    ledger: Ledger
    index: PrefixIndex

    def __post_init__(self) -> None:
        self._model = CappedLabels()

    def collect(self) -> Iterable[Metric]:
        """The pool's gauges."""
        states = self.store.snapshot()
        pool, count = self.pool_name, len(states)

        def of_pool(name: str, text: str, total: float) -> Metric:
            return gauges(f"inference_pool_{name}", text, {(pool,): total}, "name")

        def mean(name: str, text: str, total: float) -> Metric:
            return of_pool(f"average_{name}", text, total / count if count else 0.0)

        yield of_pool("ready_pods", "Endpoints that are ready.", count)
        yield mean("kv_cache_utilization", "Mean used share of KV cache.", sum(s.kv_usage for s in states))
        yield mean("queue_size", "Mean number of waiting requests.", sum(s.waiting for s in states))
        yield mean("running_requests", "Mean number of running requests.", sum(s.running for s in states))
        queues: Counts[tuple[str, ...]] = Counts()
        for state in states:
            # A Pod has an endpoint for each of the pool's ports.
            queues[pool, state.endpoint.pod_name] += state.waiting
        yield gauges("inference_pool_per_pod_queue_size", "Waiting requests.", queues, "name", "model_server_pod")
        in_flight = {(state.key,): state.in_flight for state in states}
        yield gauges(f"{_OWN}_inflight_requests", "Requests sent and not seen to end.", in_flight, "endpoint")
        fresh = {(state.key,): float(state.fresh) for state in states}
        yield gauges(f"{_OWN}_endpoint_metrics_fresh", "1 where the server's metrics are usable.", fresh, "endpoint")
        blocks = {(): len(self.index)}
        yield gauges(f"{_EXTENSION}_prefix_indexer_size", "Distinct blocks in the prefix index.", blocks)
        running: Counts[tuple[str, ...]] = Counts()
        for model, number in self.ledger.by_model().items():
            running[self._model(model)] += number
        yield gauges(f"{_OBJECTIVE}_running_requests", "Requests in flight.", running, "model_name")
        yield gauges(f"{_OWN}_ledger_requests", "Requests in the in-flight account.", {(): len(self.ledger)})
