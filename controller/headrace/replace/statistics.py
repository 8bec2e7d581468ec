"""The statistical tests of the gates: one-sided, each asking whether the new pool is worse. Pure.

Errors: Fisher's exact test, whose p-value is right at every sample size. Latencies: the Mann-Whitney U test on
bucketed observations, a bucket being a tie (tie-corrected normal approximation, continuity correction); it asks
nothing of the shape of the distribution, which is as well, since latencies have none that one could name."""

from __future__ import annotations

import math
from collections.abc import Iterable

from headrace.replace.counters import Histogram, common

# Terms this much smaller than the largest one change nothing that a double can show.
_NEGLIGIBLE = 1e-18


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def fisher_greater(errors_new: int, requests_new: int, errors_old: int, requests_old: int) -> float:
    """The chance of this many errors at the new pool or more, were both pools alike. 0..1.

    Errors beyond the requests count as requests: an error may be seen whose request came before the window."""
    requests_new, requests_old = max(requests_new, errors_new), max(requests_old, errors_old)
    errors, total = errors_new + errors_old, requests_new + requests_old
    if errors_new == 0 or requests_new == 0 or requests_old == 0:
        return 1.0
    whole = _log_choose(total, errors)
    most = min(errors, requests_new)
    return min(1.0, _tail(
        _log_choose(requests_new, k) + _log_choose(requests_old, errors - k) - whole
        for k in range(max(errors_new, errors - requests_old), most + 1)
    ))  # fmt: skip


def binomial_greater(errors: int, requests: int, rate: float) -> float:
    """The chance of this many errors or more among `requests`, were each one an error with chance `rate`. 0..1."""
    requests = max(requests, errors)
    if errors == 0 or rate >= 1.0:
        return 1.0
    if rate <= 0.0:
        return 0.0
    return min(1.0, _tail(
        _log_choose(requests, k) + k * math.log(rate) + (requests - k) * math.log1p(-rate)
        for k in range(errors, requests + 1)
    ))  # fmt: skip


def _tail(logarithms: Iterable[float]) -> float:
    """The sum of terms given by their logarithms, of which, past the mode, each is smaller than the last."""
    total, before = 0.0, -math.inf
    for logarithm in logarithms:
        term = math.exp(logarithm)
        total += term
        if logarithm < before and term < total * _NEGLIGIBLE:
            break
        before = logarithm
    return total


def mann_whitney_greater(new: Histogram, old: Histogram) -> float:
    """The chance that the new pool's observations rank this high or higher, were both pools alike. 0..1."""
    ours, theirs = common(new, old)
    m, n = ours.count, theirs.count
    if m <= 0 or n <= 0:
        return 1.0
    wins, below, ties = 0.0, 0.0, 0.0
    for mine, other in zip(ours.counts, theirs.counts, strict=True):
        wins += mine * (below + other / 2)
        below += other
        tied = mine + other
        ties += tied**3 - tied
    total = m + n
    variance = m * n / 12 * ((total + 1) - ties / (total * (total - 1))) if total > 1 else 0.0
    if variance <= 0:
        return 1.0
    return normal_tail((wins - m * n / 2 - 0.5) / math.sqrt(variance))


def normal_tail(z: float) -> float:
    """The chance that a standard normal variable is above `z`."""
    return 0.5 * math.erfc(z / math.sqrt(2))
