"""Whether what was counted is what weights promise."""

from __future__ import annotations

import math


def is_likely(share: float, count: int, of: int) -> bool:
    """Whether `count` of `of` is a likely outcome of a share: 4.5 standard deviations, one in 100,000."""
    return abs(count - share * of) <= 4.5 * math.sqrt(of * share * (1 - share)) + 0.5
