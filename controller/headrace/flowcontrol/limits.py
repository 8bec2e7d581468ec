"""Usage limit policies: up to which saturation of the pool a priority band may still be served.

Source: llm-d-router, usage limit policies. The highest band comes first; a lower one never has the higher ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol, runtime_checkable

from headrace.config.decode import Number, Parameters, Refused, Share, ShareOverZero


@runtime_checkable
class UsageLimit(Protocol):
    """Gives each band its ceiling: at or over this saturation it waits."""

    type_name: ClassVar[str]

    def ceilings(self, saturation: float, priorities: Sequence[int], turn: int) -> list[float]:
        """A ceiling for each of the priorities, highest first. `turn` counts the calls."""


class StaticLimit(Parameters, frozen=True):
    """The same for all bands."""

    type_name: ClassVar[str] = "static-usage-limit-policy"
    threshold: Number = 1.0

    def ceilings(self, saturation: float, priorities: Sequence[int], turn: int) -> list[float]:
        return [self.threshold] * len(priorities)


class PriorityHoldback(Parameters, frozen=True):
    """From `max_ceiling` for the highest band down to `min_ceiling` for the lowest: in equal steps (`rank`), or in
    proportion to the priorities' values (`value`)."""

    type_name: ClassVar[str] = "priority-holdback-policy"
    min_ceiling: Share
    max_ceiling: ShareOverZero = 1.0
    domain: Literal["rank", "value"] = "rank"
    shape: Literal["linear"] = "linear"

    def __post_init__(self) -> None:
        if self.min_ceiling >= self.max_ceiling:
            raise Refused("minCeiling", f"give less than maxCeiling ({self.max_ceiling:g})")

    def ceilings(self, saturation: float, priorities: Sequence[int], turn: int) -> list[float]:
        if len(priorities) < 2:
            return [self.max_ceiling] * len(priorities)
        span = self.max_ceiling - self.min_ceiling
        if self.domain == "rank":
            step = span / (len(priorities) - 1)
            return [self.max_ceiling - at * step for at in range(len(priorities))]
        low, high = priorities[-1], priorities[0]
        return [self.min_ceiling + span * (priority - low) / (high - low) for priority in priorities]


class SoftReflectiveCeiling(Parameters, frozen=True):
    """Ceilings of 1 - rank * saturation / (bands - 1). A band at or over its own is open only every n-th turn,
    n = round(saturation / (1 - saturation)), so that its rate falls gradually; at 1 it is shut."""

    type_name: ClassVar[str] = "soft-reflective-ceiling-policy"

    def ceilings(self, saturation: float, priorities: Sequence[int], turn: int) -> list[float]:
        if len(priorities) < 2:
            return [1.0] * len(priorities)
        if saturation >= 1.0:
            return [1.0] + [0.0] * (len(priorities) - 1)
        period = max(1, round(saturation / (1.0 - saturation)))
        gated = 1.0 if turn % period == 0 else 0.0
        last = len(priorities) - 1
        return [1.0 if saturation < 1.0 - at * saturation / last else gated for at in range(len(priorities))]
