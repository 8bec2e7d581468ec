"""Running a profile: filter, score, pick.

Total score = sum of weight * clamp(score, 0..1), as the reference picker adds them up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol

from headrace.scheduling.facts import EndpointState, Facts
from headrace.scheduling.filters import AdapterAffinityFilter, SubsetFilter
from headrace.scheduling.health import HealthFilter
from headrace.scheduling.outcome import Outcome, Scores, Weighed
from headrace.scheduling.pickers import MaxScorePicker
from headrace.scheduling.plugin import Filter, Picker, Scorer, TakesNotes
from headrace.scheduling.quick import MOST_SHOWN, QuickProfile, quick_way
from headrace.scheduling.scorers import KvCacheUtilizationScorer, PrefixCacheScorer, QueueScorer
from headrace.scheduling.slots import Matches

_SUBSET = SubsetFilter()


@dataclass(frozen=True)
class WeightedScorer:
    """A scorer and its share in the total. `name` is the configured plugin's."""

    scorer: Scorer
    weight: float
    name: str


@dataclass(frozen=True)
class Profile:
    """A named sequence of filters, weighted scorers and one picker."""

    name: str
    filters: tuple[Filter, ...]
    scorers: tuple[WeightedScorer, ...]
    picker: Picker

    @cached_property
    def note_takers(self) -> tuple[TakesNotes, ...]:
        """The plugins that want to know what was picked; none of the usual ones does."""
        steps = (*self.filters, *(entry.scorer for entry in self.scorers), self.picker)
        return tuple(dict.fromkeys(step for step in steps if isinstance(step, TakesNotes)))

    @cached_property
    def quick(self) -> QuickProfile | None:
        """The quick way to the same picks, where the plugins are usual ones."""
        return quick_way(self.filters, self.scorers, self.picker)


def default_profile() -> Profile:
    """The reference picker's default (queue 2, kv-cache 2, prefix 3, max score), without servers that are not to be
    trusted, and with adapters kept where they are."""
    return Profile(
        name="default",
        filters=(HealthFilter(), AdapterAffinityFilter()),
        scorers=(
            WeightedScorer(QueueScorer(), 2.0, QueueScorer.type_name),
            WeightedScorer(KvCacheUtilizationScorer(), 2.0, KvCacheUtilizationScorer.type_name),
            WeightedScorer(PrefixCacheScorer(), 3.0, PrefixCacheScorer.type_name),
        ),
        picker=MaxScorePicker(),
    )


class Stopwatch(Protocol):
    """Told after each plugin; what it measures is the caller's."""

    def lap(self, extension_point: str, plugin_type: str, plugin_name: str) -> None:
        """This plugin is done. Extension points are the reference picker's: Filter, Scorer, Picker."""


def run(profile: Profile, states: Sequence[EndpointState], facts: Facts, stopwatch: Stopwatch | None = None) -> Outcome:
    """Pick among `states` for one request."""
    if isinstance(facts.prefix_matches, Matches):
        facts.prefix_matches = facts.prefix_matches.one_by_one()
    kept: Sequence[EndpointState] = _SUBSET.keep(states, facts)
    if not kept:
        return Outcome(reason="no endpoint is ready" if not states else "no ready endpoint is in the gateway's subset")
    for step in profile.filters:
        kept = step.keep(kept, facts)
        if stopwatch is not None:
            stopwatch.lap("Filter", step.type_name, step.type_name)
        if not kept:
            saturated = getattr(step, "saturates", False)
            return Outcome(reason=f"filter {step.type_name} left no endpoint", saturated=saturated)
    totals = [0.0] * len(kept)
    scores: Scores = {}
    for entry in profile.scorers:
        weight = entry.weight
        clamped = _clamped(entry.scorer.score(kept, facts))
        if stopwatch is not None:
            stopwatch.lap("Scorer", entry.scorer.type_name, entry.name)
        scores[entry.name] = clamped
        totals = [total + weight * s for total, s in zip(totals, clamped, strict=True)]
    picked = profile.picker.pick(list(zip(totals, kept, strict=True)), facts)
    if stopwatch is not None:
        stopwatch.lap("Picker", profile.picker.type_name, profile.picker.type_name)
    picks = tuple([state.key for _, state in picked])
    keys = tuple([state.key for state in kept])
    if len(keys) > MOST_SHOWN:
        at = keys.index(picks[0])
        weigh = partial(
            Weighed, keys[at : at + 1], (totals[at],), {name: s[at : at + 1] for name, s in scores.items()}, max(totals)
        )
    else:
        weigh = partial(Weighed, keys, tuple(totals), scores, max(totals))
    return Outcome(picks, state=picked[0][1], candidate_count=len(keys), weigh=weigh)


def _clamped(scores: Sequence[float]) -> Sequence[float]:
    """The scores within 0 to 1; what is no number is 0."""
    # Those of our own scorers are. A sum with something that is no number in it does not equal itself.
    if min(scores) >= 0.0 and max(scores) <= 1.0 and (total := sum(scores)) == total:
        return scores
    return [0.0 if score < 0.0 or score != score else 1.0 if score > 1.0 else score for score in scores]


def explain(profile: Profile, outcome: Outcome) -> str:
    """Why the first pick won, for humans: the parts of its total, and how many candidates it had against it."""
    if not outcome.picks:
        return outcome.reason
    if outcome.candidate_count == 1:
        return "the only candidate"
    weighed = outcome.weigh()
    at = weighed.candidates.index(outcome.picks[0])
    parts = [f"{w.name} {w.weight:g}*{weighed.scores[w.name][at]:.3f}" for w in profile.scorers]
    standing = f"{weighed.totals[at]:.3f} of {outcome.candidate_count} candidates, best {weighed.best:.3f}"
    return f"{' + '.join(parts) or 'no scorer'} = {standing}; {profile.picker.type_name}"
