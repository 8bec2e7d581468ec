"""Spans of picks: whose trace they are part of, which are kept, and what they tell. No I/O; `otlp.py` sends them.

Source: W3C Trace Context (traceparent, tracestate) and OpenTelemetry's samplers. Written for this one span a request:
without --tracing nothing of it runs, with it a request that is not sampled costs a header's parse."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from headrace.core import Decision, Refusal, Request

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MOST_TRACESTATE = 512
_MOST_TEXT = 256

Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Where in a trace we are called from: ids as numbers, 128 and 64 bits."""

    trace_id: int
    span_id: int
    sampled: bool
    state: str = ""


@dataclass(slots=True)
class Span:
    """One pick. Times are nanoseconds since 1970. `error` says what failed, "" where nothing did."""

    name: str
    context: TraceContext
    parent_id: int
    start_ns: int
    end_ns: int = 0
    attributes: dict[str, Value] = field(default_factory=dict)
    error: str = ""


def read_traceparent(headers: Mapping[str, str]) -> TraceContext | None:
    """The trace that a request is part of; None where it is of none, or says so in no way that can be read."""
    text = headers.get("traceparent")
    if text is None:
        return None
    match = _TRACEPARENT.fullmatch(text.strip())
    if match is None or match[1] == "ff" or (match[1] == "00" and match[5]):
        return None
    trace_id, span_id = int(match[2], 16), int(match[3], 16)
    if not trace_id or not span_id:
        return None
    state = headers.get("tracestate", "").strip()
    return TraceContext(trace_id, span_id, bool(int(match[4], 16) & 1), state if len(state) <= _MOST_TRACESTATE else "")


@dataclass(frozen=True, slots=True)
class Sampler:
    """Which traces are kept: a share of them, told by their ids. `by_parent`: as the caller has decided, where there is
    one."""

    ratio: float
    by_parent: bool = True

    def keeps(self, trace_id: int, parent: TraceContext | None) -> bool:
        """Whether a span of this trace is kept."""
        if self.by_parent and parent is not None:
            return parent.sampled
        return trace_id & 0xFFFF_FFFF_FFFF_FFFF < round(self.ratio * (1 << 64))


def of_pick(
    pool: str, request: Request, outcome: Decision | Refusal | None, candidates: int, pod: str
) -> tuple[dict[str, Value], str]:
    """What a pick's span tells, and what failed. Nothing of the prompt. No outcome: the client went before there was
    one."""
    attributes: dict[str, Value] = {
        "headrace.pool": pool,
        "headrace.request_id": request.request_id,
        "gen_ai.request.model": request.asked_model or request.model,
        "headrace.target_model": request.model,
        "headrace.priority": request.priority,
        "headrace.candidates": candidates,
    }
    if pod:
        attributes["k8s.pod.name"] = pod
    if outcome is None:
        attributes["headrace.outcome"] = "cancelled"
    elif isinstance(outcome, Refusal):
        attributes["headrace.outcome"] = outcome.reason.value
        attributes["http.response.status_code"] = outcome.status
        return attributes, outcome.message if outcome.status >= 500 else ""
    else:
        attributes["headrace.outcome"] = "picked" if outcome.endpoints else "failed-open"
        attributes["headrace.endpoint"] = outcome.destination
    return attributes, ""


class Tracer:
    """Makes spans, and keeps those that ended until somebody takes them. Bounded: what is over is dropped.

    `wall_ns` gives nanoseconds since 1970."""

    def __init__(self, sampler: Sampler, *, wall_ns: Callable[[], int], rng: Random, most_kept: int = 2048) -> None:
        # Called when a span has ended.
        self.on_ended: Callable[[], None] = lambda: None
        self.dropped = 0
        self._sampler = sampler
        self._wall_ns = wall_ns
        self._rng = rng
        self._most_kept = most_kept
        self._ended: deque[Span] = deque()

    def __len__(self) -> int:
        return len(self._ended)

    def start(self, name: str, headers: Mapping[str, str]) -> Span | None:
        """A span of the trace that these headers name, or of a new one; None where it is not kept."""
        parent = read_traceparent(headers)
        trace_id = parent.trace_id if parent is not None else self._rng.getrandbits(128) or 1
        if not self._sampler.keeps(trace_id, parent):
            return None
        state = parent.state if parent is not None else ""
        context = TraceContext(trace_id, self._rng.getrandbits(64) or 1, True, state)
        return Span(name, context, parent.span_id if parent is not None else 0, self._wall_ns())

    def end(self, span: Span, attributes: Mapping[str, Value], error: str = "") -> None:
        """It is over. Texts that a client has written are cut to 256 characters."""
        span.end_ns = max(self._wall_ns(), span.start_ns)
        for name, value in attributes.items():
            span.attributes[name] = value[:_MOST_TEXT] if isinstance(value, str) else value
        span.error = error
        if len(self._ended) >= self._most_kept:
            self.dropped += 1
            return
        self._ended.append(span)
        self.on_ended()

    def take(self, most: int) -> list[Span]:
        """So many of the spans that ended, oldest first; they are the taker's."""
        return [self._ended.popleft() for _ in range(min(most, len(self._ended)))]
