"""The /metrics page of every engine, and of one whose metrics a configuration names."""

from __future__ import annotations

import math

from headrace.config.decode import InvalidConfig, decode
from headrace.datalayer.engines import ENGINES, EngineParameters, parse_series
from headrace.datalayer.exposition import CostlyPage
from headrace.datalayer.metrics_page import NoMetrics, parse_page

from .reader import Reader

_CONFIG = {
    "name": "own",
    "queuedRequestsSpec": 'queue{kind="waiting"}',
    "runningRequestsSpec": "queue{kind=running}",
    "kvUsageSpec": "usage",
    "loraSpec": "vllm:lora_requests_info",
    "cacheInfoSpec": "vllm:cache_config_info",
    "cacheNumBlocksSpec": "blocks",
    "customMetrics": [{"attributeKey": "heat", "metricSpec": "heat"}],
}
OWN = decode({"engineConfigs": [_CONFIG]}, EngineParameters, "").engines().engines["own"]
CHOICES = [*ENGINES.values(), OWN]


def target(data: bytes) -> None:
    """One input."""
    reader = Reader(data)
    bits = reader.byte()
    engine = CHOICES[(bits >> 2 & 31) % len(CHOICES)]
    if bits & 2:
        spec(reader.piece().decode("utf-8", "replace"))
    page = reader.rest()
    if bits & 0x81 == 0x81:
        # A stretch of the page over and over: what is slow for long pages shows.
        edge = len(page) // 2
        page = page[:edge] + page[edge : edge + 64] * 1024 + page[edge + 64 :]
    try:
        metrics = parse_page(page, engine)
    except (NoMetrics, CostlyPage):
        return
    assert metrics.waiting is None or 0 <= metrics.waiting <= 1_000_000_000
    assert metrics.running is None or 0 <= metrics.running <= 1_000_000_000
    assert metrics.kv_usage is None or 0.0 <= metrics.kv_usage <= 1.0
    assert metrics.cache_tokens >= 0
    assert metrics.max_adapters >= 0
    assert "" not in metrics.running_adapters | metrics.waiting_adapters | metrics.known_adapters | metrics.models
    assert metrics.running_adapters <= metrics.known_adapters
    assert all(math.isfinite(value) for value in metrics.custom.values())


def spec(text: str) -> None:
    """A metric as a configuration names it."""
    series = parse_series(text)
    if series is not None:
        assert series.name
    try:
        decode({"engineConfigs": [{"name": "x", "queuedRequestsSpec": text}]}, EngineParameters, "").engines()
    except InvalidConfig as error:
        assert str(error)
