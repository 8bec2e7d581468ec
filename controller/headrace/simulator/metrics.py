"""The simulator's `/metrics`: names, types, labels and buckets of vLLM 0.32.0.

What a simulator does not have (external KV caches, multi-modal caches, sleep) is there with the value it has on an idle
vLLM, so that readers find the same page. Times are in real seconds, also with `--speedup`.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from math import inf

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from headrace.simulator.engine import Engine, StepReport
from headrace.simulator.http_metrics import HttpMetrics
from headrace.simulator.request import FinishReason, Sequence

CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"

_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
_ITERATION = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_INTER_TOKEN = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_LATENCY = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)

_COUNTERS: Mapping[str, str] = {
    "estimated_flops_per_gpu": "Estimated floating point operations per GPU (not simulated: 0).",
    "estimated_read_bytes_per_gpu": "Estimated bytes read from memory per GPU (not simulated: 0).",
    "estimated_write_bytes_per_gpu": "Estimated bytes written to memory per GPU (not simulated: 0).",
    "prefix_cache_queries": "Prefix cache queries, in tokens.",
    "prefix_cache_hits": "Prefix cache hits, in tokens.",
    "external_prefix_cache_queries": "External prefix cache queries, in tokens (not simulated: 0).",
    "external_prefix_cache_hits": "External prefix cache hits, in tokens (not simulated: 0).",
    "mm_cache_queries": "Multi-modal cache queries, in items (not simulated: 0).",
    "mm_cache_hits": "Multi-modal cache hits, in items (not simulated: 0).",
    "num_preemptions": "Preemptions.",
    "prompt_tokens": "Prompt tokens processed.",
    "prompt_tokens_cached": "Cached prompt tokens.",
    "generation_tokens": "Generated tokens.",
}
_LABELLED_COUNTERS: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "prompt_tokens_by_source": (
        "source",
        ("local_compute", "local_cache_hit", "external_kv_transfer"),
        "Prompt tokens by source.",
    ),
    "prompt_tokens_cached_by_source": (
        "source",
        ("device", "host", "p2p", "disk", "external_unspecified"),
        "Prefix cache hit tokens by the tier that supplied them.",
    ),
    "request_success": (
        "finished_reason",
        tuple(reason.value for reason in FinishReason),
        "Finished requests by reason.",
    ),
    "admission_rejections": (
        "reason",
        ("max_num_queued_reqs", "max_num_queued_tokens"),
        "Requests rejected by a queue limit (not simulated: 0).",
    ),
}
_HISTOGRAMS: Mapping[str, tuple[tuple[float, ...], str]] = {
    "request_prompt_tokens": (_TOKENS, "Prompt tokens of a request."),
    "request_generation_tokens": (_TOKENS, "Generated tokens of a request."),
    "iteration_tokens_total": (_ITERATION, "Tokens of an engine step."),
    "request_max_num_generation_tokens": (_TOKENS, "Most generation tokens requested."),
    "request_params_n": ((1, 2, 5, 10, 20), "The n parameter of a request."),
    "request_params_max_tokens": (_TOKENS, "The max_tokens parameter of a request."),
    "time_to_first_token_seconds": (_FIRST_TOKEN, "Time to first token in seconds."),
    "inter_token_latency_seconds": (_INTER_TOKEN, "Inter-token latency in seconds."),
    "request_time_per_output_token_seconds": (_INTER_TOKEN, "Mean time per output token of a request in seconds."),
    "e2e_request_latency_seconds": (_LATENCY, "Time from arrival to the last token in seconds."),
    "request_queue_time_seconds": (_LATENCY, "Time a request waited in seconds."),
    "request_inference_time_seconds": (_LATENCY, "Time a request ran in seconds."),
    "request_prefill_time_seconds": (_LATENCY, "Time of a request's prefill in seconds."),
    "request_decode_time_seconds": (_LATENCY, "Time of a request's decode in seconds."),
    "request_num_preemptions": ((1, 2, 3, 4, 5, 10, 20), "Preemptions of a request."),
    "request_prefill_kv_computed_tokens": (_TOKENS, "KV tokens computed in prefill, without cached ones."),
}


# Labels of cache_config_info that nothing here depends on, as a vLLM server without further flags has them.
_CACHE_CONFIG: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("cache_hit_alignment_tokens", "hash_block_size", "kv_cache_layout", "kv_offloading_size"),
            *("mamba_block_size", "mamba_page_size_padded", "prefix_match_unit", "skip_page_size_padded"),
        ),
        "None",
    ),
    **dict.fromkeys(
        (
            *("enable_mamba_shared_prefix_checkpoint", "is_attention_free", "kv_sharing_fast_prefill"),
            *("use_kda_recoverssm", "use_replayssm"),
        ),
        "False",
    ),
    **dict.fromkeys(("_block_size_resolved", "swa_bounded_replay", "user_specified_block_size"), "True"),
    "kv_cache_dtype_skip_layers": "[]",
    "kv_cache_memory_bytes": "None",
    "kv_offloading_backend": "native",
    "mamba_cache_dtype": "auto",
    "mamba_cache_mode": "none",
    "mamba_ssm_cache_dtype": "float32",
    "prefix_cache_retention_interval": "0",
    "replayssm_buffer_len": "16",
}


class BucketCounts:
    """Counts per bucket. prometheus_client's own takes one value a call; a step has hundreds of equal ones."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def add_samples(self, metric: Metric, labels: dict[str, str], created: float) -> None:
        cumulated = 0
        for bound, count in zip((*self.bounds, inf), self.counts, strict=True):
            cumulated += count
            le = "+Inf" if bound == inf else str(float(bound))
            metric.add_sample(f"{metric.name}_bucket", {**labels, "le": le}, cumulated)
        metric.add_sample(f"{metric.name}_count", labels, cumulated)
        metric.add_sample(f"{metric.name}_sum", labels, self.total)
        metric.add_sample(f"{metric.name}_created", labels, created)


class EngineMetrics(Collector):
    """Accounts for what the engine did, and shows it as vLLM would. An `EngineObserver`."""

    def __init__(
        self,
        engine: Engine,
        model_name: str,
        *,
        lora_enabled: bool,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._labels = {"model_name": model_name, "engine": "0"}
        self._lora_enabled = lora_enabled
        self._wall_clock = wall_clock
        self._created = wall_clock()
        self._counters: Counter[str] = Counter()
        self._labelled: Counter[tuple[str, str]] = Counter()
        self._histograms = {name: BucketCounts(bounds) for name, (bounds, _) in _HISTOGRAMS.items()}
        self._lora_seen: dict[str, float] = {}

    # ---- the engine's observer

    def on_step(self, report: StepReport) -> None:
        """Account for a step that ended."""
        count, labelled, histograms = self._counters, self._labelled, self._histograms
        histograms["iteration_tokens_total"].observe(report.num_tokens)
        count["num_preemptions"] += len(report.preempted)
        for sequence in report.started_sequences:
            if not sequence.num_preemptions:
                count["prefix_cache_queries"] += len(sequence.prompt)
                count["prefix_cache_hits"] += sequence.num_prefix_hits
                labelled["prompt_tokens_cached_by_source", "device"] += sequence.num_prefix_hits
        intervals: Counter[float] = Counter()
        for sequence in report.generated:
            if not sequence.pooling:
                count["generation_tokens"] += 1
            if sequence.token_interval is not None:
                intervals[sequence.token_interval] += 1
                continue
            hits = sequence.num_prefix_hits
            count["prompt_tokens"] += len(sequence.prompt)
            count["prompt_tokens_cached"] += hits
            labelled["prompt_tokens_by_source", "local_compute"] += len(sequence.prompt) - hits
            labelled["prompt_tokens_by_source", "local_cache_hit"] += hits
            histograms["time_to_first_token_seconds"].observe(report.ended - sequence.arrival)
        for interval, times in intervals.items():
            histograms["inter_token_latency_seconds"].observe(interval, times)
        if self._lora_enabled:
            # The real server writes the same list under both labels, and leaves every series it ever wrote.
            self._lora_seen[",".join(report.adapters)] = self._wall_clock()
            if self._engine.idle:
                self._lora_seen[""] = self._wall_clock()

    def on_left(self, sequence: Sequence) -> None:
        """A client left: vLLM counts that nowhere."""

    def on_finished(self, sequence: Sequence) -> None:
        """Account for a sequence that ended."""
        reason = sequence.finish_reason
        if reason is None or sequence.finished_at is None:
            raise ValueError("the sequence has not ended")
        self._labelled["request_success", reason.value] += 1
        written = sequence.num_output_tokens
        observed: dict[str, float] = {
            "request_prompt_tokens": len(sequence.prompt),
            "request_generation_tokens": written,
            "request_max_num_generation_tokens": sequence.limits.max_tokens,
            "request_params_n": sequence.num_choices,
            "request_params_max_tokens": sequence.limits.max_tokens,
            "e2e_request_latency_seconds": sequence.finished_at - sequence.arrival,
            "request_num_preemptions": sequence.num_preemptions,
        }
        scheduled, first, last = sequence.scheduled_at, sequence.first_token_at, sequence.last_token_at
        observed["request_queue_time_seconds"] = (sequence.finished_at if scheduled is None else scheduled) - (
            sequence.arrival
        )
        if scheduled is not None and first is not None and last is not None:
            observed["request_inference_time_seconds"] = last - scheduled
            observed["request_prefill_time_seconds"] = first - scheduled
            observed["request_decode_time_seconds"] = last - first
            observed["request_prefill_kv_computed_tokens"] = len(sequence.prompt) - sequence.num_prefix_hits
            if written > 1:
                observed["request_time_per_output_token_seconds"] = (last - first) / (written - 1)
        for name, value in observed.items():
            self._histograms[name].observe(value)

    # ---- the page

    def collect(self) -> Iterator[Metric]:
        """Yield every family of the page."""
        yield from self._collect_counters()
        yield from self._collect_gauges()
        for name, (_, help_text) in _HISTOGRAMS.items():
            metric = Metric(f"vllm:{name}", help_text, "histogram")
            self._histograms[name].add_samples(metric, self._labels, self._created)
            yield metric
        if self._lora_enabled:
            yield self._lora_requests_info()
        yield self._cache_config_info()

    def _collect_counters(self) -> Iterator[Metric]:
        for name, help_text in _COUNTERS.items():
            metric = Metric(f"vllm:{name}", help_text, "counter")
            metric.add_sample(f"vllm:{name}_total", self._labels, self._counters[name])
            metric.add_sample(f"vllm:{name}_created", self._labels, self._created)
            yield metric
        for name, (label, values, help_text) in _LABELLED_COUNTERS.items():
            labels = {"model_name": self._labels["model_name"]} if name == "admission_rejections" else self._labels
            metric = Metric(f"vllm:{name}", help_text, "counter")
            for value in values:
                metric.add_sample(f"vllm:{name}_total", {**labels, label: value}, self._labelled[name, value])
                metric.add_sample(f"vllm:{name}_created", {**labels, label: value}, self._created)
            yield metric

    def _collect_gauges(self) -> Iterator[Metric]:
        state = self._engine.state()
        yield self._gauge("num_requests_running", "Sequences in the batch.", {(): state.num_running})
        yield self._gauge("num_requests_waiting", "Sequences that wait.", {(): state.num_waiting})
        yield self._gauge(
            "num_requests_waiting_by_reason",
            "Sequences that wait: for capacity, or deferred for want of a LoRA slot.",
            {
                ("reason", "capacity"): state.num_waiting_capacity,
                ("reason", "deferred"): state.num_waiting_deferred,
            },
        )
        yield self._gauge(
            "engine_sleep_state",
            "Engine sleep state: 1 for what it is.",
            {
                ("sleep_state", name): float(self._engine.sleep_level == level)
                for level, name in enumerate(("awake", "weights_offloaded", "discard_all"))
            },
        )
        yield self._gauge("kv_cache_usage_perc", "KV cache usage, 0 to 1.", {(): state.kv_cache_usage})

    def _gauge(self, name: str, help_text: str, values: Mapping[tuple[str, ...], float]) -> Metric:
        metric = Metric(f"vllm:{name}", help_text, "gauge")
        for label, value in values.items():
            extra = {label[0]: label[1]} if label else {}
            metric.add_sample(metric.name, self._labels | extra, value)
        return metric

    def _lora_requests_info(self) -> Metric:
        metric = Metric("vllm:lora_requests_info", "Adapters of running requests; the value is a time.", "gauge")
        for adapters, seen in self._lora_seen.items():
            labels = {
                "max_lora": str(self._engine.settings.max_loras),
                "running_lora_adapters": adapters,
                "waiting_lora_adapters": adapters,
            }
            metric.add_sample(metric.name, labels, seen)
        return metric

    def _cache_config_info(self) -> Metric:
        settings = self._engine.settings
        metric = Metric("vllm:cache_config_info", "Information of the engine's cache configuration.", "gauge")
        concurrency = settings.kv_cache_tokens / settings.context_length
        metric.add_sample(
            metric.name,
            {
                **_CACHE_CONFIG,
                "engine": "0",
                "block_size": str(settings.block_size),
                "effective_attention_block_size": str(settings.block_size),
                "cache_dtype": "auto",
                "enable_prefix_caching": str(settings.enable_prefix_caching),
                "gpu_memory_utilization": "0.9",
                "kv_cache_max_concurrency": str(concurrency),
                "kv_cache_size_tokens": str(settings.num_gpu_blocks * settings.block_size),
                "num_cpu_blocks": "None",
                "num_gpu_blocks": str(settings.num_gpu_blocks),
                "num_gpu_blocks_override": "None",
                "prefix_caching_hash_algo": "xxh3_64",
                "sliding_window": "None",
            },
            1,
        )
        return metric


class MetricsPage:
    """The whole page: the engine's metrics and those of the process."""

    def __init__(self, metrics: EngineMetrics) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        GCCollector(self._registry)
        PlatformCollector(self._registry)
        ProcessCollector(registry=self._registry)
        self._registry.register(metrics)
        self.http = HttpMetrics(self._registry)

    def render(self) -> bytes:
        """The page as it is now."""
        return generate_latest(self._registry)
