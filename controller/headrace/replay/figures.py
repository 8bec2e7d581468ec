"""What runs came to, in figures, and policies compared by them. Pure."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headrace.replay.run import Outcome

# The 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_NORMAL = 1.96


@dataclass(frozen=True)
class Figures:
    """Of one run. Times in seconds. `first_token` are the percentiles 0 to 100 of the time to the first token.

    `cached` is the share of prompt tokens that prefix caches had, `balance` the busiest server's share of the tokens
    computed, over the mean share: 1 is even. `goodput` is answers a second with their first token within `target`."""

    requests: int
    refused: int
    first_token_mean: float
    first_token: Sequence[float]
    whole_mean: float
    per_token_mean: float
    cached: float
    balance: float
    goodput: float
    seconds: float

    @property
    def p50(self) -> float:
        """The median time to the first token."""
        return self.first_token[50]

    @property
    def p90(self) -> float:
        """Its 90th percentile."""
        return self.first_token[90]

    @property
    def p99(self) -> float:
        """Its 99th percentile."""
        return self.first_token[99]


# What policies are compared by, as people know it, and as a field of Figures.
COMPARED = {
    "TTFT mean": "first_token_mean",
    "p50": "p50",
    "p90": "p90",
    "p99": "p99",
    "per token": "per_token_mean",
    "whole": "whole_mean",
}


def figures(outcome: Outcome, servers: int, target: float) -> Figures:
    """The figures of a run that answered at least one request."""
    answers = outcome.answers
    first = sorted(answer.first_token for answer in answers)
    work: Counter[int] = Counter()
    for answer in answers:
        work[answer.server] += answer.input_tokens - answer.cached_tokens + answer.output_tokens
    last = len(first) - 1
    return Figures(
        requests=len(answers),
        refused=outcome.refused,
        first_token_mean=statistics.fmean(first),
        first_token=[first[min(last, math.ceil(last * percent / 100))] for percent in range(101)],
        whole_mean=statistics.fmean(answer.whole for answer in answers),
        per_token_mean=statistics.fmean(answer.per_token for answer in answers),
        cached=sum(answer.cached_tokens for answer in answers) / sum(answer.input_tokens for answer in answers),
        balance=max(work.values()) * servers / sum(work.values()),
        goodput=sum(value <= target for value in first) / outcome.seconds,
        seconds=outcome.seconds,
    )


@dataclass(frozen=True)
class Ratio:
    """The geometric mean of paired runs' ratios, and its 95 % interval; of one pair, no interval is known."""

    mean: float
    low: float
    high: float


def ratio(of: Sequence[Figures], to: Sequence[Figures], field: str) -> Ratio:
    """How one policy's runs compare to another's, run by run, in one field of Figures."""
    pairs = zip(of, to, strict=True)
    logs = [math.log(max(getattr(a, field), 1e-9) / max(getattr(b, field), 1e-9)) for a, b in pairs]
    mean = statistics.fmean(logs)
    if len(logs) == 1:
        return Ratio(math.exp(mean), 0.0, math.inf)
    degrees = len(logs) - 1
    quantile = _T[degrees - 1] if degrees <= len(_T) else _NORMAL
    half = quantile * statistics.stdev(logs) / math.sqrt(len(logs))
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


# Runs by policy and number of servers, a run for each seed.
Runs = Mapping[tuple[str, int], Sequence[Figures]]


def mean(runs: Sequence[Figures], field: str) -> float:
    """The mean over runs."""
    return statistics.fmean(getattr(run, field) for run in runs)


def fewer_servers(runs: Runs, base: str, policy: str) -> tuple[int, int] | None:
    """With how many servers a policy gives the service that `base` gives with the largest fleet: TTFT's mean and 90th
    percentile are no worse, nor is the whole answer. Gives both numbers; None where it takes no fewer."""
    most = max(servers for _, servers in runs)
    fields = ("first_token_mean", "p90", "whole_mean")
    wanted = {field: mean(runs[base, most], field) for field in fields}
    enough = [
        servers
        for name, servers in runs
        if name == policy and all(mean(runs[name, servers], field) <= wanted[field] for field in fields)
    ]
    return (min(enough), most) if enough and min(enough) < most else None
