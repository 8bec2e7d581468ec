"""What gates count, read from metrics pages and added up over Pods and time. Pure.

Errors come from the endpoint picker, which sees every response; latencies from the model servers' own histograms.
Counters of a process start at 0 when it does: a count that went down is a new process, and counts whole.
Source: Prometheus text exposition format 0.0.4; metric names of the reference picker (v1.5.0), vLLM and SGLang."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from msgspec import Struct, structs

from headrace.datalayer.exposition import CostlyPage, PageLimits, PageReader, Sample, read_labels

REQUESTS = ("inference_objective_request_total", "inference_model_request_total")
ERRORS = ("inference_objective_request_error_total", "inference_model_request_error_total")
# Of several names the first one on the page counts. Per request first: one request's tokens are no sample.
TTFT = ("vllm:time_to_first_token_seconds", "sglang:time_to_first_token_seconds", "trtllm_time_to_first_token_seconds")
TPOT = (
    "vllm:request_time_per_output_token_seconds",
    "vllm:time_per_output_token_seconds",
    "vllm:inter_token_latency_seconds",
    "sglang:time_per_output_token_seconds",
    "sglang:inter_token_latency_seconds",
    "trtllm_time_per_output_token_seconds",
)
IN_FLIGHT = ("headrace_epp_ledger_requests", "inference_objective_running_requests", "inference_model_running_requests")
RUNNING = ("vllm:num_requests_running", "sglang:num_running_reqs", "trtllm_num_requests_running")
WAITING = ("vllm:num_requests_waiting", "sglang:num_queue_reqs", "trtllm_num_requests_waiting")

# All that is counted: what only grows, and what comes and goes.
COUNTERS = (*REQUESTS, *ERRORS, *(f"{name}_bucket" for name in (*TTFT, *TPOT)))
GAUGES = (*IN_FLIGHT, *RUNNING, *WAITING)

# A busy picker's page has some thousand rows that count; nobody waits for the reader, so it may take its time.
_LIMITS = PageLimits(kept_bytes=8 << 20, cpu_seconds=1.0)
# What a row takes in memory beside the text of its labels.
_ROW_BYTES = 512


class Histogram(Struct, frozen=True):
    """Observations per bucket: `bounds` are the upper ones without infinity; `counts` has one more, for the rest."""

    bounds: tuple[float, ...] = ()
    counts: tuple[float, ...] = (0.0,)

    @property
    def count(self) -> float:
        """All observations."""
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """The value below which `share` of the observations are, by linear interpolation; None of nothing.

        Above the last bound it is that bound: a histogram says no more."""
        total = self.count
        if total <= 0 or not self.bounds:
            return None
        rank, below, low = share * total, 0.0, 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if count > 0 and below + count >= rank:
                return low + (bound - low) * (rank - below) / count
            below, low = below + count, bound
        return self.bounds[-1]

    def rebinned(self, bounds: tuple[float, ...]) -> Histogram:
        """The same observations in fewer buckets: `bounds` must be among this histogram's own."""
        wanted, counts, running = set(bounds), [], 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            running += count
            if bound in wanted:
                counts.append(running)
                running = 0.0
        return Histogram(bounds, (*counts, running + self.counts[-1]))

    def __add__(self, other: Histogram) -> Histogram:
        if not self.bounds or self.count == 0:
            return other
        if not other.bounds or other.count == 0:
            return self
        first, second = common(self, other)
        return Histogram(first.bounds, tuple(a + b for a, b in zip(first.counts, second.counts, strict=True)))

    def since(self, before: Histogram) -> Histogram:
        """What came after `before`; everything, if it is of an earlier process."""
        if before.bounds != self.bounds or any(a < b for a, b in zip(self.counts, before.counts, strict=True)):
            return self
        return Histogram(self.bounds, tuple(a - b for a, b in zip(self.counts, before.counts, strict=True)))


def common(first: Histogram, second: Histogram) -> tuple[Histogram, Histogram]:
    """Two histograms over the bounds that both have: different engines have different buckets."""
    if first.bounds == second.bounds:
        return first, second
    shared = tuple(sorted(set(first.bounds) & set(second.bounds)))
    return first.rebinned(shared), second.rebinned(shared)


class Counters(Struct, frozen=True):
    """Counts of one process, or of a pool over a window. `errors` are statuses of 400 and more, `server_errors` of 500.

    A histogram is None where no page has it."""

    requests: float = 0.0
    errors: float = 0.0
    server_errors: float = 0.0
    ttft: Histogram | None = None
    tpot: Histogram | None = None

    def __add__(self, other: Counters) -> Counters:
        return Counters(
            self.requests + other.requests,
            self.errors + other.errors,
            self.server_errors + other.server_errors,
            _sum(self.ttft, other.ttft),
            _sum(self.tpot, other.tpot),
        )

    def since(self, before: Counters) -> Counters:
        """What came after `before`; everything, if a count went down."""
        if self.requests < before.requests or self.errors < before.errors:
            before = structs.replace(before, requests=0.0, errors=0.0, server_errors=0.0)
        return Counters(
            self.requests - before.requests,
            self.errors - before.errors,
            max(0.0, self.server_errors - before.server_errors),
            _difference(self.ttft, before.ttft),
            _difference(self.tpot, before.tpot),
        )


def _sum(first: Histogram | None, second: Histogram | None) -> Histogram | None:
    if first is None or second is None:
        return first or second
    return first + second


def _difference(now: Histogram | None, before: Histogram | None) -> Histogram | None:
    return now if now is None or before is None else now.since(before)


class Window(Struct, frozen=True):
    """A pool's counts since a moment: `last` is the newest page of each process, `total` what came since the start."""

    total: Counters = Counters()
    last: Mapping[str, Counters] = {}

    def advanced(self, pages: Mapping[str, Counters], born: Iterable[str] = ()) -> Window:
        """With newer pages. `born` are processes known to have started within the window: they count whole.

        Others that are seen for the first time only give their base line; those that are gone keep what they gave."""
        total, newborn = self.total, frozenset(born)
        for source, page in pages.items():
            before = self.last.get(source)
            if before is not None:
                total += page.since(before)
            elif source in newborn:
                total += page
        return Window(total, {**self.last, **pages})

    def is_apart_from(self, other: Window) -> bool:
        """Whether no process counts requests for both: one picker may serve both, as where a pool changes its group."""
        return not any(self.last[source].requests for source in self.last.keys() & other.last.keys())


# ---- pages -----------------------------------------------------------------------------------------------------------

Rows = dict[str, list[tuple[dict[str, str], float]]]


class RowsReader:
    """Reads the samples that are counted of one page, as it arrives."""

    def __init__(self) -> None:
        self._page = PageReader((*COUNTERS, *GAUGES), _LIMITS)
        self._rows: Rows = {}

    def feed(self, piece: bytes) -> None:
        """The next piece. Raises CostlyPage: a page that is known in part counts for nothing."""
        self._take(self._page.feed(piece))
        if self._page.cut:
            raise CostlyPage(self._page.cut)

    def end(self) -> Rows:
        """The samples by metric name. Lines that make no sense are left out. Raises CostlyPage."""
        self._take(self._page.end())
        return self._rows

    def _take(self, samples: Iterable[Sample]) -> None:
        for name, labels, value in samples:
            self._page.keep(len(labels) + _ROW_BYTES)
            self._rows.setdefault(name, []).append((dict(read_labels(labels)), value))


def picker_counters(rows: Rows) -> Counters:
    """Requests and errors of an endpoint picker's page."""
    errors = _first(rows, ERRORS)
    return Counters(
        requests=sum(value for _, value in _first(rows, REQUESTS)),
        errors=sum(value for _, value in errors),
        server_errors=sum(value for labels, value in errors if labels.get("error_code", "").startswith("5")),
    )


def server_counters(rows: Rows) -> Counters:
    """Latency histograms of a model server's page."""
    return Counters(ttft=_histogram(rows, TTFT), tpot=_histogram(rows, TPOT))


def in_flight_at_picker(rows: Rows) -> float:
    """Requests that an endpoint picker has sent and not seen to end."""
    return sum(value for _, value in _first(rows, IN_FLIGHT))


def in_flight_at_server(rows: Rows) -> float:
    """Requests that a model server has, waiting and running."""
    return sum(value for names in (RUNNING, WAITING) for _, value in _first(rows, names))


def _first(rows: Rows, names: Iterable[str]) -> list[tuple[dict[str, str], float]]:
    return next((rows[name] for name in names if name in rows), [])


def _histogram(rows: Rows, names: Iterable[str]) -> Histogram | None:
    buckets = next((rows[f"{name}_bucket"] for name in names if f"{name}_bucket" in rows), None)
    if buckets is None:
        return None
    cumulated: dict[float, float] = {}
    for labels, value in buckets:
        try:
            bound = float(labels.get("le", ""))
        except ValueError:
            continue
        # Series that differ in other labels (models, data parallel ranks) are added up.
        cumulated[bound] = cumulated.get(bound, 0.0) + value
    bounds = sorted(cumulated)
    if not bounds or bounds[-1] != math.inf:
        return None
    counts, before = [], 0.0
    for bound in bounds:
        counts.append(max(0.0, cumulated[bound] - before))
        before = max(before, cumulated[bound])
    return Histogram(tuple(bounds[:-1]), tuple(counts))
