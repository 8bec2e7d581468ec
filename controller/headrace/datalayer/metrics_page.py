"""A model server's /metrics page, read for the few series a pick needs.

Tolerant: a series that makes no sense (NaN, negative, unreadable) counts as missing; of a series that comes twice the
last one counts; series that differ in labels are added up (data parallel ranks), KV cache usage is averaged.
Source: Prometheus text exposition format 0.0.4; vLLM 0.32.0."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from headrace.config.limits import ByteBudget
from headrace.datalayer.engines import Engine, Series
from headrace.datalayer.exposition import DEFAULT_LIMITS, PageLimits, PageReader, Sample, read_labels, unescape


class NoMetrics(ValueError):  # noqa: N818
    """A page without any of the series that are looked for."""


class Work(NamedTuple):
    """What a server has done so far: steps of its engine, prompt tokens that its cache did not have, tokens written,
    answers begun, and the seconds that these had waited for their first token, in all."""

    steps: float
    prompt: float
    written: float
    first_tokens: float
    waited: float


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
    # A number that grows with what the server does, and how many answers have begun; None where the page does not say.
    progress: float | None = None
    first_tokens: float | None = None
    work: Work | None = None
    asleep: bool = False
    # Metrics that the configuration names beyond the usual ones, by its own name for them.
    custom: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def cache_tokens(self) -> int:
        """How many tokens the KV cache holds; 0 where the page does not say."""
        return self.block_size * self.num_blocks


_LONGEST_KEPT = 4096
# What a row takes in memory beside its text.
_ROW_BYTES = 128
_RUNNING = "running_lora_adapters"
# Of the label sets of `lora_requests_info`, thousands on the page of a server that has served many adapters.
_RUNNING_LABEL = re.compile(rf'(?<![a-zA-Z0-9_]){_RUNNING}\s*+=\s*+"((?:[^"\\]++|\\.)*+)"')
# Names of adapters that are known of one server, and the length of each.
_MOST_ADAPTERS = 2048
# A server has one, and some aliases.
_MOST_MODELS = 256
_MOST_NAME = 256
# No server counts more requests than this; what says so is broken, and must not overflow what adds it up.
_MOST_REQUESTS = 1_000_000_000

_Rows = dict[str, dict[str, float]]


@lru_cache(maxsize=64)
def _wanted(engine: Engine) -> tuple[str, ...]:
    """The names of the metrics that are read."""
    wanted = {series.name for series in engine.series}
    wanted |= {name for name in (engine.adapters, engine.cache_config) if name}
    return tuple(sorted(wanted))


class MetricsReader:
    """Reads one page as it arrives. `clock` gives seconds of CPU time. `kept` is the budget of what is kept of all
    pages: call `close` in the end."""

    def __init__(
        self,
        engine: Engine,
        limits: PageLimits = DEFAULT_LIMITS,
        *,
        clock: Callable[[], float] = time.thread_time,
        kept: ByteBudget | None = None,
    ) -> None:
        self._engine = engine
        self._page = PageReader(_wanted(engine), limits, clock=clock, kept=kept)
        self._rows: _Rows = {}
        # The newest label set of the adapters and its value, and every name in an older one.
        self._newest = ("", -1.0)
        self._adapters: set[str] = set()

    @property
    def cut(self) -> str:
        """Says that the page was too long, and is read in part only; "" if it was not."""
        return self._page.cut

    def feed(self, piece: bytes) -> None:
        """The next piece of the page. Raises CostlyPage."""
        self._take(self._page.feed(piece))

    def end(self) -> ServerMetrics:
        """The metrics of the page. Raises NoMetrics, CostlyPage."""
        self._take(self._page.end())
        return self._metrics()

    def close(self) -> None:
        """The page is read, or given up."""
        self._page.close()

    def _take(self, samples: Iterable[Sample]) -> None:
        adapters = self._engine.adapters
        for name, labels, value in samples:
            if name == adapters:
                self._take_adapters(labels, value)
                continue
            series = self._rows.setdefault(name, {})
            if labels not in series:
                self._page.keep(len(labels) + _ROW_BYTES)
            series[labels] = value

    def _take_adapters(self, labels: str, value: float) -> None:
        """The value is a time, and old label sets never go away: of them only the names are kept."""
        if value > self._newest[1]:
            self._newest = (labels, value)
        found = _RUNNING_LABEL.search(labels)
        if found is None or len(self._adapters) >= _MOST_ADAPTERS:
            return
        new = [name for name in found[1].split(",") if name not in self._adapters and len(name) <= _MOST_NAME]
        del new[_MOST_ADAPTERS - len(self._adapters) :]
        if new:
            self._page.keep(sum(map(len, new)) + _ROW_BYTES * len(new))
            self._adapters.update(new)

    def _metrics(self) -> ServerMetrics:
        engine, rows = self._engine, self._rows
        waiting = _count(rows, engine.waiting)
        running = _count(rows, engine.running)
        kv_usage = _share(rows, engine.kv_usage)
        if waiting is None and running is None and kv_usage is None:
            raise NoMetrics(f"none of the metrics of engine {engine.name} is on the page")
        newest = dict(read_labels(self._newest[0]))
        running_adapters = _names(newest.get(_RUNNING, ""))
        config = [_labels(text) for text in rows.get(engine.cache_config, ())]
        return ServerMetrics(
            waiting=waiting,
            running=running,
            kv_usage=kv_usage,
            running_adapters=running_adapters,
            waiting_adapters=_names(newest.get("waiting_lora_adapters", "")),
            max_adapters=_whole(newest.get("max_lora", "")),
            known_adapters=running_adapters | {name for text in self._adapters for name in _names(unescape(text))},
            models=_models(rows, engine.running),
            block_size=_whole(config[-1].get(engine.block_size_label, ""))
            if config
            else int(max(_matching(rows, engine.block_size), default=0)),
            num_blocks=sum(_whole(labels.get(engine.num_blocks_label, "")) for labels in config)
            or (_count(rows, engine.num_blocks) or 0),
            progress=_sum(rows, *((series,) for series in engine.progress)),
            first_tokens=_sum(rows, engine.first_tokens),
            work=_work(rows, engine),
            asleep=_sum(rows, engine.awake) == 0.0,
            custom=_custom(rows, engine),
        )


def parse_page(page: bytes, engine: Engine) -> ServerMetrics:
    """The metrics of a whole page. Raises NoMetrics, CostlyPage."""
    reader = MetricsReader(engine)
    reader.feed(page)
    return reader.end()


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


def _sum(rows: _Rows, *all_of: Sequence[Series]) -> float | None:
    values = [value for candidates in all_of for value in _matching(rows, candidates)]
    return sum(values) if values else None


def _work(rows: _Rows, engine: Engine) -> Work | None:
    wanted = (engine.steps, engine.prompt, engine.written, engine.first_tokens, engine.waited)
    found = [value for series in wanted if (value := _sum(rows, series)) is not None]
    if len(found) < len(wanted):
        return None
    steps, prompt, *others = found
    return Work(steps, prompt - (_sum(rows, engine.cached) or 0.0), *others)


def _share(rows: _Rows, candidates: Iterable[Series]) -> float | None:
    values = _matching(rows, candidates)
    return min(1.0, sum(values) / len(values)) if values else None


def _custom(rows: _Rows, engine: Engine) -> dict[str, float]:
    """The further metrics a configuration names; one that has several series is added up."""
    found = ((name, _matching(rows, (series,))) for name, series in engine.custom)
    return {name: sum(values) for name, values in found if values}


def _names(text: str) -> frozenset[str]:
    # Interned: the servers of a pool have mostly the same.
    names = (sys.intern(found) for name in text.split(",") if (found := name.strip()) and len(found) <= _MOST_NAME)
    return frozenset(islice(names, _MOST_ADAPTERS))


def _models(rows: _Rows, candidates: Iterable[Series]) -> frozenset[str]:
    named = (
        model
        for series in candidates
        for text in islice(rows.get(series.name, ()), _MOST_MODELS)
        if (model := _labels(text).get("model_name")) and len(model) <= _MOST_NAME
    )
    return frozenset(islice(named, _MOST_MODELS))


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 18 else 0


@lru_cache(maxsize=1024)
def _label_pairs(text: str) -> tuple[tuple[str, str], ...]:
    return read_labels(text)


def _labels(text: str) -> dict[str, str]:
    """The labels of a series, from the text between its braces."""
    # Long ones are kept for no one: a broken server's pages would fill the memory.
    return dict(_label_pairs(text) if len(text) <= _LONGEST_KEPT else read_labels(text))
