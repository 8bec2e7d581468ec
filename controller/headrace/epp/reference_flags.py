"""Flags that exist because manifests of the reference picker have them: those without effect, and those refused.

Source: the reference picker's flags, v1.5.0."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from headrace.config.flags import flag, truth, whole
from headrace.config.values import duration
from headrace.protocol.objects import ENGINE_LABELS

_LEVELS = {"debug": 4, "info": 2, "warn": 1, "error": 1, "dpanic": 1, "panic": 1, "fatal": 1}

level = whole(fix="give a whole number, such as 2 or 4")


def _zap_level(text: str) -> int | None:
    if text.isdigit():
        return int(level(text))
    if text and text not in _LEVELS:
        raise ValueError("use debug, info, error, or a number over 0")
    return _LEVELS.get(text)


def _refused(text: str) -> None:
    raise ValueError(
        "this flag was removed from the reference picker too; leave it out: the metrics follow from the Pod's "
        f"label {ENGINE_LABELS[0]} (vllm, sglang, triton-tensorrt-llm, trtllm-serve)"
    )


def _ignored(why: str, parse: Any = str) -> Any:
    return flag(argparse.SUPPRESS, f"accepted; {why}", parse)


def _removed() -> Any:
    return flag(None, "refused, as by the reference picker since 1.4: see its error", _refused)


@dataclass(frozen=True, kw_only=True)
class ReferenceFlags:
    """None of them reaches the picker but the log level, which takes precedence over `-v`."""

    zap_log_level: int | None = flag("", "debug, info, error, or a number as of -v", _zap_level)
    health_checking: None = _ignored("gRPC health is always served, on the ext_proc port too", truth)
    enable_pprof: None = _ignored("Go's profiler has no counterpart here", truth)
    zap_devel: None = _ignored("logs are JSON lines", truth)
    zap_encoder: None = _ignored("logs are JSON lines")
    zap_stacktrace_level: None = _ignored("errors that are faults carry their traceback")
    zap_time_encoding: None = _ignored("times are RFC 3339")
    refresh_prometheus_metrics_interval: None = _ignored(
        "the pool's gauges are computed when they are asked for", duration
    )
    # As there, setting one of these is an error: the metric names follow from the engine.
    total_queued_requests_metric: None = _removed()
    total_running_requests_metric: None = _removed()
    kv_cache_usage_percentage_metric: None = _removed()
    lora_info_metric: None = _removed()
    cache_info_metric: None = _removed()
