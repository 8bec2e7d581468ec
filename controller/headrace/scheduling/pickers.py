"""Pickers under the reference picker's names: from scores to an ordered list.

Source: Gateway API Inference Extension v1.5.0, plugin documentation. Weighted random is A-Res: Efraimidis and Spirakis,
"Weighted random sampling with a reservoir" (2006)."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import ClassVar

from msgspec import field

from headrace.config.decode import Parameters, Positive
from headrace.scheduling.facts import Facts
from headrace.scheduling.plugin import Scored

_score = itemgetter(0)


class MaxScorePicker(Parameters, frozen=True):
    """The best score; ties are broken at random, or every tie would land on the same endpoint."""

    type_name: ClassVar[str] = "max-score-picker"
    max_endpoints: Positive = field(default=1, name="maxNumOfEndpoints")

    def pick(self, scored: Sequence[Scored], facts: Facts) -> Sequence[Scored]:
        if self.max_endpoints == 1:
            best = max(map(_score, scored))
            ties = [candidate for candidate in scored if candidate[0] == best]
            return [ties[0] if len(ties) == 1 else ties[int(facts.rng.random() * len(ties))]]
        shuffled = list(scored)
        facts.rng.shuffle(shuffled)
        shuffled.sort(key=_score, reverse=True)
        return shuffled[: self.max_endpoints]


class RandomPicker(Parameters, frozen=True):
    """Any candidate, all alike."""

    type_name: ClassVar[str] = "random-picker"
    max_endpoints: Positive = field(default=1, name="maxNumOfEndpoints")

    def pick(self, scored: Sequence[Scored], facts: Facts) -> Sequence[Scored]:
        return facts.rng.sample(list(scored), min(self.max_endpoints, len(scored)))


class WeightedRandomPicker(Parameters, frozen=True):
    """At random, in proportion to the scores: the largest of U^(1/score). Without any positive score, all alike."""

    type_name: ClassVar[str] = "weighted-random-picker"
    max_endpoints: Positive = field(default=1, name="maxNumOfEndpoints")

    def pick(self, scored: Sequence[Scored], facts: Facts) -> Sequence[Scored]:
        if not any(score > 0 for score, _ in scored):
            return RandomPicker(self.max_endpoints).pick(scored, facts)
        rng = facts.rng
        keyed = [
            (rng.random() ** (1.0 / score) if score > 0 else -rng.random(), number)
            for number, (score, _) in enumerate(scored)
        ]
        keyed.sort(reverse=True)
        return [scored[number] for _, number in keyed[: self.max_endpoints]]
