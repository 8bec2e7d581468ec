"""Ordering policies: which request of a flow goes first.

Source: Gateway API Inference Extension v1.5.0 and llm-d-router, ordering policies."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from headrace.config.decode import Parameters
from headrace.core import Request

NEVER = float("inf")


@runtime_checkable
class Ordering(Protocol):
    """Gives each request its place: the smallest key goes first, of equal keys the one that came first."""

    type_name: ClassVar[str]

    def order_key(self, request: Request, now: float, ttl: float) -> float:
        """The key of a request that comes at `now` and may wait `ttl` seconds (0: any time)."""


class FirstComeFirstServed(Parameters, frozen=True):
    """In the order in which they came."""

    type_name: ClassVar[str] = "fcfs-ordering-policy"

    def order_key(self, request: Request, now: float, ttl: float) -> float:
        return 0.0


class EarliestDeadlineFirst(Parameters, frozen=True):
    """By the end of their time to live; requests without one come last."""

    type_name: ClassVar[str] = "edf-ordering-policy"

    def order_key(self, request: Request, now: float, ttl: float) -> float:
        return now + ttl if ttl > 0 else NEVER


class SloDeadline(Parameters, frozen=True):
    """By when their first token is wanted: arrival plus the time to first token asked for; those that ask for none come
    last."""

    type_name: ClassVar[str] = "slo-deadline-ordering-policy"

    def order_key(self, request: Request, now: float, ttl: float) -> float:
        return NEVER if request.slo_ttft_ms is None else now + request.slo_ttft_ms / 1000.0
