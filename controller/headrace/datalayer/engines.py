"""What model servers call their metrics.

Source: Gateway API Inference Extension, proposal 003 (model server protocol), and the servers' own documentation; the
parameters are those of the reference picker's core metrics extractor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from headrace.config.decode import Parameters, Refused, Text
from headrace.protocol.objects import ENGINE_LABELS

DEFAULT_ENGINE = "vllm"


@dataclass(frozen=True)
class Series:
    """A metric's name, and labels that its series must have."""

    name: str
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Engine:
    """Where an engine's /metrics page says what. Of several candidates the first one present counts."""

    name: str
    waiting: tuple[Series, ...]
    running: tuple[Series, ...]
    kv_usage: tuple[Series, ...]
    adapters: str = ""
    # Block size and number of blocks: labels of an info metric, or values of metrics of their own.
    cache_config: str = ""
    block_size_label: str = "block_size"
    num_blocks_label: str = "num_gpu_blocks"
    block_size: tuple[Series, ...] = ()
    num_blocks: tuple[Series, ...] = ()
    path: str = "/metrics"
    # What grows while the server works, added up; and how many answers have begun.
    progress: tuple[Series, ...] = ()
    first_tokens: tuple[Series, ...] = ()
    # Steps of the engine, tokens of prompts and how many of them the cache had, tokens written, and the seconds that
    # all answers have waited for their first token.
    steps: tuple[Series, ...] = ()
    prompt: tuple[Series, ...] = ()
    cached: tuple[Series, ...] = ()
    written: tuple[Series, ...] = ()
    waited: tuple[Series, ...] = ()
    # 0 while the server sleeps.
    awake: tuple[Series, ...] = ()
    # Further metrics, by the name the configuration gives them.
    custom: tuple[tuple[str, Series], ...] = ()

    @property
    def series(self) -> tuple[Series, ...]:
        """Every series that is read for its value."""
        values = (*self.waiting, *self.running, *self.kv_usage, *self.block_size, *self.num_blocks)
        health = (*self.progress, *self.first_tokens, *self.awake)
        work = (*self.steps, *self.prompt, *self.cached, *self.written, *self.waited)
        return (*values, *health, *work, *(series for _, series in self.custom))


def _trt(metric: str, kind: str, value: str) -> tuple[Series, ...]:
    return (Series(metric, ((kind, value),)),)


def _counters(*names: str) -> tuple[Series, ...]:
    return tuple(map(Series, names))


_TRT_BLOCKS = "nv_trt_llm_kv_cache_block_metrics"
_TRT_KIND = "kv_cache_block_type"

ENGINES: Mapping[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine(
            name="vllm",
            waiting=(Series("vllm:num_requests_waiting"),),
            running=(Series("vllm:num_requests_running"),),
            # The second is the name until vLLM 0.10.
            kv_usage=(Series("vllm:kv_cache_usage_perc"), Series("vllm:gpu_cache_usage_perc")),
            adapters="vllm:lora_requests_info",
            cache_config="vllm:cache_config_info",
            progress=_counters(
                "vllm:generation_tokens_total", "vllm:prompt_tokens_total", "vllm:request_success_total"
            ),
            first_tokens=(Series("vllm:time_to_first_token_seconds_count"),),
            steps=(Series("vllm:iteration_tokens_total_count"),),
            prompt=(Series("vllm:prompt_tokens_total"),),
            cached=(Series("vllm:prefix_cache_hits_total"),),
            written=(Series("vllm:generation_tokens_total"),),
            waited=(Series("vllm:time_to_first_token_seconds_sum"),),
            awake=(Series("vllm:engine_sleep_state", (("sleep_state", "awake"),)),),
        ),
        Engine(
            name="sglang",
            waiting=(Series("sglang:num_queue_reqs"),),
            running=(Series("sglang:num_running_reqs"),),
            kv_usage=(Series("sglang:token_usage"),),
            cache_config="sglang:cache_config_info",
            block_size_label="page_size",
            num_blocks_label="num_pages",
            progress=_counters("sglang:generation_tokens_total", "sglang:prompt_tokens_total"),
            first_tokens=(Series("sglang:time_to_first_token_seconds_count"),),
        ),
        Engine(
            name="triton-tensorrt-llm",
            waiting=_trt("nv_trt_llm_request_metrics", "request_type", "waiting"),
            running=_trt("nv_trt_llm_request_metrics", "request_type", "scheduled"),
            kv_usage=_trt(_TRT_BLOCKS, _TRT_KIND, "fraction"),
            block_size=_trt(_TRT_BLOCKS, _TRT_KIND, "tokens_per"),
            num_blocks=_trt(_TRT_BLOCKS, _TRT_KIND, "max"),
        ),
        Engine(
            name="trtllm-serve",
            waiting=(Series("trtllm_num_requests_waiting"),),
            running=(Series("trtllm_num_requests_running"),),
            kv_usage=(Series("trtllm_kv_cache_utilization"),),
            block_size=(Series("trtllm_kv_cache_tokens_per_block"),),
            num_blocks=(Series("trtllm_kv_cache_max_blocks"),),
            path="/prometheus/metrics",
        ),
        Engine(
            name="triton",
            waiting=(Series("nv_inference_pending_request_count"),),
            running=(Series("nv_inference_exec_count"),),
            kv_usage=(),
        ),
    )
}


@dataclass(frozen=True)
class EngineSet:
    """The engines a pool's Pods may run, and how a Pod says which."""

    engines: Mapping[str, Engine] = field(default_factory=lambda: ENGINES)
    labels: tuple[str, ...] = ENGINE_LABELS
    default: str = DEFAULT_ENGINE

    def of(self, labels: Mapping[str, str]) -> Engine:
        """The engine a Pod's labels name; the default without a label, or with one that names none we know."""
        for label in self.labels:
            if label in labels:
                return self.engines.get(labels[label], self.engines[self.default])
        return self.engines[self.default]


def engine_of(labels: Mapping[str, str]) -> Engine:
    """The engine a Pod's labels name, of those that are known without configuration."""
    return EngineSet().of(labels)


_SPEC = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?")
_SPEC_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*(?:"([^"]*)"|([^",{}]*?))\s*(?:,|$)')


def parse_series(text: str) -> Series | None:
    """The series of `name` or `name{label=value,...}`, values with or without quotes. None where it is none."""
    found = _SPEC.fullmatch(text.strip())
    if found is None:
        return None
    labels: list[tuple[str, str]] = []
    at, inside = 0, found[2] or ""
    while at < len(inside.rstrip()):
        label = _SPEC_LABEL.match(inside, at)
        if label is None:
            return None
        labels.append((label[1], label[2] if label[2] is not None else label[3]))
        at = label.end()
    return Series(found[1], tuple(labels))


class _Specs(tuple[Series, ...]):
    """One series, or none."""

    @classmethod
    def of_config(cls, value: object) -> _Specs:
        series = parse_series(value) if isinstance(value, str) else None
        if series is None and not (isinstance(value, str) and not value.strip()):
            raise ValueError("give a metric, as name or name{label=value}")
        return cls((series,) if series else ())


class _CustomMetric(Parameters, frozen=True):
    attribute_key: Text
    metric_spec: _Specs

    def __post_init__(self) -> None:
        if not self.metric_spec:
            raise Refused("metricSpec", "give a metric, as name or name{label=value}")


class _EngineConfig(Parameters, frozen=True):
    name: Text
    queued_requests_spec: _Specs = _Specs()
    running_requests_spec: _Specs = _Specs()
    kv_usage_spec: _Specs = _Specs()
    lora_spec: _Specs = _Specs()
    cache_info_spec: _Specs = _Specs()
    cache_block_size_label_name: str = ""
    cache_num_blocks_label_name: str = ""
    cache_block_size_spec: _Specs = _Specs()
    cache_num_blocks_spec: _Specs = _Specs()
    custom_metrics: tuple[_CustomMetric, ...] = ()

    def __post_init__(self) -> None:
        if self.name == "default":
            raise Refused("name", "give another name: this one means whatever defaultEngine names")
        if not (self.queued_requests_spec or self.running_requests_spec or self.kv_usage_spec):
            raise Refused("queuedRequestsSpec", "name at least one of the metrics a pick goes by")

    def engine(self) -> Engine:
        # What a configuration cannot name is as the engine of this name has it.
        known = ENGINES.get(self.name) or Engine(self.name, (), (), ())
        return replace(
            known,
            waiting=self.queued_requests_spec,
            running=self.running_requests_spec,
            kv_usage=self.kv_usage_spec,
            adapters=self.lora_spec[0].name if self.lora_spec else "",
            cache_config=self.cache_info_spec[0].name if self.cache_info_spec else "",
            block_size_label=self.cache_block_size_label_name or "block_size",
            num_blocks_label=self.cache_num_blocks_label_name or "num_gpu_blocks",
            block_size=self.cache_block_size_spec,
            num_blocks=self.cache_num_blocks_spec,
            custom=tuple((metric.attribute_key, metric.metric_spec[0]) for metric in self.custom_metrics),
        )


class EngineParameters(Parameters, frozen=True):
    """A core-metrics-extractor's parameters."""

    engine_configs: tuple[_EngineConfig, ...] = ()
    default_engine: str = ""
    engine_label_key: str = ""

    def __post_init__(self) -> None:
        names = (*ENGINES, *(config.name for config in self.engine_configs))
        if self.default_engine and self.default_engine not in names:
            raise Refused("defaultEngine", f"name one of the engines: {', '.join(dict.fromkeys(names))}")

    def engines(self) -> EngineSet:
        """The engines that are given, and the known ones."""
        engines = {**ENGINES, **{config.name: config.engine() for config in self.engine_configs}}
        labels = (self.engine_label_key,) if self.engine_label_key else ENGINE_LABELS
        return EngineSet(engines, labels, self.default_engine or DEFAULT_ENGINE)
