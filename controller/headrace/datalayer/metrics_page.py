"""A model server's /metrics page, read for the few series a pick needs.

Tolerant: a series that makes no sense (NaN, negative, unreadable) counts as missing; of a series that comes twice the
last one counts; series that differ in labels are added up (data parallel ranks), KV cache usage is averaged.
Source: Prometheus text exposition format 0.0.4; vLLM 0.32.0."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from headrace.datalayer.engines import Engine, Series


class NoMetrics(ValueError):  # noqa: N818
    """A page without any of the series that are looked for."""


@dataclass(frozen=True)
class ServerMetrics:
    """What a page said. Counts are requests, `kv_usage` is 0..1; None: not there."""

    waiting: int | None = None
    running: int | None = None
    kv_usage: float | None = None
    running_adapters: frozenset[str] = frozenset()
    waiting_adapters: frozenset[str] = frozenset()
    max_adapters: int = 0
    # Every adapter the server has ever reported: what it is asked for by these names is no base model.
    known_adapters: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()
    # Tokens in a KV cache block, and how many blocks there are; 0: unknown.
    block_size: int = 0
    num_blocks: int = 0
    # Metrics that the configuration names beyond the usual ones, by its own name for them.
    custom: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def cache_tokens(self) -> int:
        """How many tokens the KV cache holds; 0 where the page does not say."""
        return self.block_size * self.num_blocks


# Begins where a name does and never goes back on what it took: a search that did would take hours for a name as long
# as a page may be.
_LABEL = re.compile(r'(?<![a-zA-Z0-9_])([a-zA-Z_][a-zA-Z0-9_]*+)\s*+=\s*+"((?:[^"\\]|\\.)*+)"')
_LONGEST_KEPT = 4096
_RUNNING = "running_lora_adapters"
_ESCAPE = re.compile(r"\\(.)")
# No server counts more requests than this; what says so is broken, and must not overflow what adds it up.
_MOST_REQUESTS = 1_000_000_000


@lru_cache(maxsize=64)
def _line_pattern(engine: Engine) -> re.Pattern[str]:
    """Finds the lines of the wanted metrics; the rest of a page, most of it, is never split or decoded."""
    wanted = {series.name for series in engine.series}
    wanted |= {name for name in (engine.adapters, engine.cache_config) if name}
    alternatives = "|".join(re.escape(name) for name in sorted(wanted))
    return re.compile(rf'^({alternatives})(?:\{{((?:[^"}}\n]|"(?:[^"\\\n]|\\.)*")*)\}})?[ \t]+(\S+)', re.MULTILINE)


_Rows = dict[str, dict[str, float]]


def parse_page(page: bytes, engine: Engine) -> ServerMetrics:
    """The metrics of a page. Raises NoMetrics."""
    rows: _Rows = {}
    for found in _line_pattern(engine).finditer(page.decode("utf-8", "replace")):
        value = _number(found[3])
        if value is not None:
            rows.setdefault(found[1], {})[found[2] or ""] = value
    waiting = _count(rows, engine.waiting)
    running = _count(rows, engine.running)
    kv_usage = _share(rows, engine.kv_usage)
    if waiting is None and running is None and kv_usage is None:
        raise NoMetrics(f"none of the metrics of engine {engine.name} is on the page")
    adapter_rows = rows.get(engine.adapters, {})
    running_adapters, waiting_adapters, max_adapters = _adapters(adapter_rows)
    config = [_labels(text) for text in rows.get(engine.cache_config, ())]
    return ServerMetrics(
        waiting=waiting,
        running=running,
        kv_usage=kv_usage,
        running_adapters=running_adapters,
        waiting_adapters=waiting_adapters,
        max_adapters=max_adapters,
        known_adapters=frozenset(name for text in adapter_rows for name in _names(_labels(text).get(_RUNNING, ""))),
        models=_models(rows, engine.running),
        block_size=_whole(config[-1].get(engine.block_size_label, ""))
        if config
        else int(max(_matching(rows, engine.block_size), default=0)),
        num_blocks=sum(_whole(labels.get(engine.num_blocks_label, "")) for labels in config)
        or (_count(rows, engine.num_blocks) or 0),
        custom=_custom(rows, engine),
    )


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _matching(rows: _Rows, candidates: Iterable[Series]) -> list[float]:
    for series in candidates:
        found = rows.get(series.name)
        if not found:
            continue
        if not series.labels:
            return list(found.values())
        values = [value for text, value in found.items() if _has(text, series)]
        if values:
            return values
    return []


def _has(text: str, series: Series) -> bool:
    labels = _labels(text)
    return all(labels.get(name) == value for name, value in series.labels)


def _count(rows: _Rows, candidates: Iterable[Series]) -> int | None:
    values = _matching(rows, candidates)
    return int(min(sum(values), _MOST_REQUESTS)) if values else None


def _share(rows: _Rows, candidates: Iterable[Series]) -> float | None:
    values = _matching(rows, candidates)
    return min(1.0, sum(values) / len(values)) if values else None


def _custom(rows: _Rows, engine: Engine) -> dict[str, float]:
    """The further metrics a configuration names; one that has several series is added up."""
    found = ((name, _matching(rows, (series,))) for name, series in engine.custom)
    return {name: sum(values) for name, values in found if values}


def _adapters(series: dict[str, float]) -> tuple[frozenset[str], frozenset[str], int]:
    """Of `lora_requests_info` the newest series: its value is a time, and old label sets never go away."""
    if not series:
        return frozenset(), frozenset(), 0
    labels = _labels(max(series, key=lambda text: series[text]))
    return (
        _names(labels.get(_RUNNING, "")),
        _names(labels.get("waiting_lora_adapters", "")),
        _whole(labels.get("max_lora", "")),
    )


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(",") if name.strip())


def _models(rows: _Rows, candidates: Iterable[Series]) -> frozenset[str]:
    return frozenset(
        model
        for series in candidates
        for text in rows.get(series.name, ())
        if (model := _labels(text).get("model_name"))
    )


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 18 else 0


@lru_cache(maxsize=4096)
def _label_pairs(text: str) -> tuple[tuple[str, str], ...]:
    return _read_labels(text)


def _read_labels(text: str) -> tuple[tuple[str, str], ...]:
    pairs = ((found[1], found[2]) for found in _LABEL.finditer(text))
    return tuple((name, _ESCAPE.sub(lambda m: "\n" if m[1] == "n" else m[1], value)) for name, value in pairs)


def _labels(text: str) -> dict[str, str]:
    """The labels of a series, from the text between its braces."""
    # Long ones are kept for no one: a broken server's pages would fill the memory.
    return dict(_label_pairs(text) if len(text) <= _LONGEST_KEPT else _read_labels(text))
