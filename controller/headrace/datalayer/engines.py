"""What model servers call their metrics.

Source: Gateway API Inference Extension, proposal 003 (model server protocol), and the servers' own documentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Pod labels that name the engine; the first one found counts.
ENGINE_LABELS = ("inference.networking.k8s.io/engine-type", "llm-d.ai/engine-type")
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
    cache_config: str = ""
    block_size_label: str = "block_size"
    path: str = "/metrics"


def _trt(metric: str, kind: str, value: str) -> tuple[Series, ...]:
    return (Series(metric, ((kind, value),)),)


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
        ),
        Engine(
            name="triton-tensorrt-llm",
            waiting=_trt("nv_trt_llm_request_metrics", "request_type", "waiting"),
            running=_trt("nv_trt_llm_request_metrics", "request_type", "scheduled"),
            kv_usage=_trt("nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type", "fraction"),
        ),
        Engine(
            name="trtllm-serve",
            waiting=(Series("trtllm_num_requests_waiting"),),
            running=(Series("trtllm_num_requests_running"),),
            kv_usage=(Series("trtllm_kv_cache_utilization"),),
            path="/prometheus/metrics",
        ),
    )
}


def engine_of(labels: Mapping[str, str]) -> Engine:
    """The engine a Pod's labels name; vLLM without a label, or with one that names none we know."""
    for label in ENGINE_LABELS:
        if label in labels:
            return ENGINES.get(labels[label], ENGINES[DEFAULT_ENGINE])
    return ENGINES[DEFAULT_ENGINE]
