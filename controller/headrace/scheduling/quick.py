"""The quick way through a profile of the usual plugins: the pick that `profile.run` would make, without a look at every
endpoint. What a prefix adds concerns few sets of endpoints, and of those with equally many requests waiting only the
ones with the emptiest caches can be the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from headrace.scheduling.columns import Bucket, Columns
from headrace.scheduling.facts import EndpointState, Facts
from headrace.scheduling.filters import AdapterAffinityFilter
from headrace.scheduling.health import VERDICT, HealthFilter
from headrace.scheduling.outcome import Outcome, Scores, Weighed
from headrace.scheduling.pickers import MaxScorePicker
from headrace.scheduling.plugin import Filter, Picker, Scorer
from headrace.scheduling.scorers import KvCacheUtilizationScorer, PrefixCacheScorer, QueueScorer
from headrace.scheduling.slots import Matches, any_of

_USUAL: tuple[type[Scorer], ...] = (QueueScorer, KvCacheUtilizationScorer, PrefixCacheScorer)
# Of a larger pool only the endpoint that was picked is shown to people.
MOST_SHOWN = 64


class Weight(Protocol):
    """A scorer, its share in the total, and its name."""

    @property
    def scorer(self) -> Scorer: ...
    @property
    def weight(self) -> float: ...
    @property
    def name(self) -> str: ...


class QuickProfile(NamedTuple):
    """The weights of the usual scorers, 0 for one that is not there, and their names in the profile's order.
    `max_waiting` is the health filter's, None without one."""

    queue: float
    cache: float
    prefix: float
    names: tuple[tuple[str, type[Scorer]], ...]
    max_waiting: int | None

    def pick(self, columns: Columns, facts: Facts) -> Outcome | None:
        """The pick for one request. None where it has to be made the general way: for an adapter, within a subset, and
        where there is nobody to pick, or nobody good."""
        members = columns.everybody
        if facts.is_adapter or facts.request.subset is not None or not members:
            return None
        verdict: Mapping[str, int] | None = facts.attributes.get(VERDICT)
        if verdict and self.max_waiting is not None:
            members = _healthy(columns, verdict, self.max_waiting)
            if not members:
                return None
        levels: dict[int, Bucket] | list[int] = columns.buckets
        if members != columns.everybody:
            levels = [level for level, bucket in columns.buckets.items() if bucket.members & members]
        low, high = min(levels), max(levels)
        blocks, matches = facts.prefix_blocks, facts.prefix_matches
        best, ties = -1.0, 0
        for length, some in ((0, members), *_groups(matches, columns)) if blocks and matches else ((0, members),):
            some &= members
            extra = self.prefix * min(1.0, length / blocks) if length else 0.0
            for level in levels:
                bucket = columns.buckets[level]
                if not bucket.members & some:
                    continue
                waits = self.queue * (1.0 if low == high else (high - level) / (high - low))
                sets = bucket.sets
                for free in reversed(bucket.free):
                    found = sets[free] & some
                    if found:
                        total = waits + self.cache * free + extra
                        if total < best:
                            break
                        if total > best:
                            best, ties = total, found
                        else:
                            ties |= found
        slot = any_of(ties, facts.rng)
        state, count = columns.by_slot[slot], members.bit_count()
        if count > MOST_SHOWN:
            shown = [state]
        elif members == columns.everybody:
            shown = list(columns.by_slot.values())
        else:
            shown = [state for slot, state in columns.by_slot.items() if members >> slot & 1]
        weigh = partial(self._weigh, shown, low, high, blocks, matches, best)
        return Outcome((state.key,), "", False, state, count, weigh)

    def _weigh(
        self,
        states: Sequence[EndpointState],
        low: int,
        high: int,
        blocks: int,
        matches: Mapping[str, int],
        best: float,
    ) -> Weighed:
        """What was weighed, for people."""
        span = high - low
        made: dict[type[Scorer], list[float]] = {
            QueueScorer: [(high - state.waiting) / span if span else 1.0 for state in states],
            KvCacheUtilizationScorer: [_share(1.0 - state.kv_usage) for state in states],
            PrefixCacheScorer: [_share(matches.get(state.key, 0) / blocks) if blocks else 0.0 for state in states],
        }
        scores: Scores = {name: made[kind] for name, kind in self.names}
        weights = dict(zip(_USUAL, (self.queue, self.cache, self.prefix), strict=True))
        totals = [sum(weights[kind] * made[kind][at] for _, kind in self.names) for at in range(len(states))]
        return Weighed(tuple([state.key for state in states]), tuple(totals), scores, best)


def quick_way(filters: Sequence[Filter], scorers: Sequence[Weight], picker: Picker) -> QuickProfile | None:
    """The quick way through these plugins; None where there is none."""
    kinds = [type(entry.scorer) for entry in scorers]
    health = [step for step in filters if isinstance(step, HealthFilter)]
    usual = (
        set(kinds) <= set(_USUAL)
        and len(set(kinds)) == len(kinds)
        # Sums depend on their order.
        and PrefixCacheScorer not in kinds[:-1]
        and all(entry.weight >= 0.0 for entry in scorers)
        and not any(getattr(entry.scorer, "match_length_weight", 0.0) for entry in scorers)
        and {type(step) for step in filters} <= {HealthFilter, AdapterAffinityFilter}
        and len(health) <= 1
        and isinstance(picker, MaxScorePicker)
        and picker.max_endpoints == 1
    )
    if not usual:
        return None
    weights = {kind: entry.weight for kind, entry in zip(kinds, scorers, strict=True)}
    names = tuple((entry.name, type(entry.scorer)) for entry in scorers)
    max_waiting = health[0].max_waiting if health else None
    queue, cache, prefix = (weights.get(kind, 0.0) for kind in _USUAL)
    return QuickProfile(queue, cache, prefix, names, max_waiting)


def _healthy(columns: Columns, verdict: Mapping[str, int], max_waiting: int) -> int:
    """The endpoints that a health filter keeps; none where it finds none good."""
    slots = columns.slots.of
    known = [
        (1 << slot, allowed, columns.by_slot[slot])
        for key, allowed in verdict.items()
        if (slot := slots.get(key)) in columns.by_slot
    ]
    good = columns.everybody
    for bit, _, _ in known:
        good &= ~bit
    if not good:
        return 0
    room = any(level <= max_waiting and bucket.members & good for level, bucket in columns.buckets.items())
    for bit, allowed, state in known:
        if state.in_flight < allowed if allowed >= 0 else not room:
            good |= bit
    return good


def _groups(matches: Mapping[str, int], columns: Columns) -> Sequence[tuple[int, int]]:
    """The sets of endpoints with equally many blocks."""
    if isinstance(matches, Matches) and matches.slots is columns.slots.of:
        return matches.groups
    sets: dict[int, int] = {}
    for key, length in matches.items():
        slot = columns.slots.of.get(key)
        if slot is not None:
            sets[length] = sets.get(length, 0) | 1 << slot
    return list(sets.items())


def _share(score: float) -> float:
    return 0.0 if score < 0.0 or score != score else min(1.0, score)
