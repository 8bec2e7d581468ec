"""What a profile made of the candidates for one request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from headrace.scheduling.facts import EndpointState

# By scorer name, each candidate's clamped and unweighted score.
Scores = dict[str, Sequence[float]]


class Weighed(NamedTuple):
    """The candidates that are shown to people, with their totals and scores in the same order. `best` is the best total
    of all candidates."""

    candidates: tuple[str, ...] = ()
    totals: tuple[float, ...] = ()
    scores: Scores = {}
    best: float = 0.0


_NOTHING = Weighed()


class Outcome(NamedTuple):
    """`picks` are endpoint keys, best first; empty where no candidate was left. `reason` says in words why.
    `saturated`: there were candidates, and all of them were too full. `weigh` gives what was weighed, for those who ask
    later; `candidate_count` is how many candidates there were."""

    picks: tuple[str, ...] = ()
    reason: str = ""
    saturated: bool = False
    # The endpoint that was picked, as it was.
    state: EndpointState | None = None
    candidate_count: int = 0
    weigh: Callable[[], Weighed] = lambda: _NOTHING
