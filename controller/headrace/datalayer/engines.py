"""What model servers call their metrics.

Source: Gateway API Inference Extension, proposal 003 (model server protocol), and the servers' own documentation; the
parameters are those of the reference picker's core metrics extractor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from headrace.protocol.objects import ENGINE_LABELS
from headrace.scheduling import InvalidConfig, Parameters

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
    # Further metrics, by the name the configuration gives them.
    custom: tuple[tuple[str, Series], ...] = ()

    @property
    def series(self) -> tuple[Series, ...]:
        """Every series that is read for its value."""
        values = (*self.waiting, *self.running, *self.kv_usage, *self.block_size, *self.num_blocks)
        return (*values, *(series for _, series in self.custom))


def _trt(metric: str, kind: str, value: str) -> tuple[Series, ...]:
    return (Series(metric, ((kind, value),)),)


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
        ),
        Engine(
            name="sglang",
            waiting=(Series("sglang:num_queue_reqs"),),
            running=(Series("sglang:num_running_reqs"),),
            kv_usage=(Series("sglang:token_usage"),),
            cache_config="sglang:cache_config_info",
            block_size_label="page_size",
            num_blocks_label="num_pages",
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


def read_engines(parameters: Parameters) -> EngineSet:
    """The engines of a core-metrics-extractor's parameters: those given, and the known ones. Raises InvalidConfig."""
    engines = dict(ENGINES)
    for entry in parameters.objects("engineConfigs"):
        engine = _read_engine(entry)
        engines[engine.name] = engine
    default = parameters.text("defaultEngine") or DEFAULT_ENGINE
    if default not in engines:
        raise parameters.refuse("defaultEngine", f"name one of the engines: {', '.join(engines)}")
    label = parameters.text("engineLabelKey")
    return EngineSet(engines, (label,) if label else ENGINE_LABELS, default)


def _read_engine(entry: Parameters) -> Engine:
    name = entry.text("name", needed=True)
    if name == "default":
        raise entry.refuse("name", "give another name: this one means whatever defaultEngine names")
    known = ENGINES.get(name)
    custom = []
    for metric in entry.objects("customMetrics"):
        series = _series(metric, "metricSpec")
        if not series:
            raise metric.refuse("metricSpec", "give a metric, as name or name{label=value}")
        custom.append((metric.text("attributeKey", needed=True), series[0]))
        metric.finish()
    info = _series(entry, "cacheInfoSpec")
    adapters = _series(entry, "loraSpec")
    engine = Engine(
        name=name,
        waiting=_series(entry, "queuedRequestsSpec"),
        running=_series(entry, "runningRequestsSpec"),
        kv_usage=_series(entry, "kvUsageSpec"),
        adapters=adapters[0].name if adapters else "",
        cache_config=info[0].name if info else "",
        block_size_label=entry.text("cacheBlockSizeLabelName") or "block_size",
        num_blocks_label=entry.text("cacheNumBlocksLabelName") or "num_gpu_blocks",
        block_size=_series(entry, "cacheBlockSizeSpec"),
        num_blocks=_series(entry, "cacheNumBlocksSpec"),
        path=known.path if known is not None else "/metrics",
        custom=tuple(custom),
    )
    entry.finish()
    if not (engine.waiting or engine.running or engine.kv_usage):
        raise InvalidConfig(entry.at("queuedRequestsSpec"), "", "name at least one of the metrics a pick goes by")
    return engine


def _series(entry: Parameters, name: str) -> tuple[Series, ...]:
    text = entry.text(name)
    if not text.strip():
        return ()
    series = parse_series(text)
    if series is None:
        raise entry.refuse(name, "give a metric, as name or name{label=value}")
    return (series,)
