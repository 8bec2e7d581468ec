"""Filters, pickers and whole profiles."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.scheduling import EndpointState, Facts, Profile, default_profile, explain, run
from headrace.scheduling.filters import AdapterAffinityFilter, SubsetFilter
from headrace.scheduling.pickers import MaxScorePicker, RandomPicker, WeightedRandomPicker
from headrace.scheduling.plugin import Picker
from headrace.scheduling.profile import WeightedScorer
from headrace.scheduling.scorers import QueueScorer

from .states import facts, state


@pytest.mark.parametrize(
    ("subset", "kept"),
    [
        (None, [1, 2]),
        ((), []),
        (("10.0.0.1:8000",), [1]),
        (("10.0.0.1:8001",), []),
        (("10.0.0.2",), [2]),
        (("10.0.0.1", "10.0.0.2:8000", "10.0.0.3"), [1, 2]),
        (("nonsense", ":", "[::1"), []),
    ],
)
def test_the_subset(subset: tuple[str, ...] | None, kept: list[int]) -> None:
    states = [state(1), state(2)]
    found = SubsetFilter().keep(states, facts(subset=subset))
    assert [s.key for s in found] == [f"10.0.0.{n}:8000" for n in kept]


ADAPTER = frozenset({"adapter"})
OTHER = frozenset({"other"})


def test_an_adapters_requests_stay_where_it_is() -> None:
    running = state(1, max_adapters=2, running_adapters=ADAPTER, waiting=5)
    resident = state(2, max_adapters=2, resident_adapters=ADAPTER, running_adapters=OTHER)
    free = state(3, max_adapters=2, running_adapters=OTHER)
    full = state(4, max_adapters=1, resident_adapters=OTHER)
    silent = state(5)
    keep = AdapterAffinityFilter(queue_slack=8).keep
    asked = facts(model="adapter", is_adapter=True)
    assert keep([running, resident, free, full], asked) == [resident]
    assert keep([running, free, full], asked) == [running]
    assert keep([free, full], asked) == [free]
    assert keep([full], asked) == [full]
    at_work = full._replace(running_adapters=OTHER)
    assert keep([at_work, full], asked) == [full]
    assert keep([at_work], asked) == [at_work]
    # A server without any adapter yet says nothing of them: it is as free as any.
    assert keep([free, silent, full], asked) == [free, silent]
    # Not where it is much longer queued than the rest.
    assert keep([running._replace(waiting=20), free, full], asked) == [free]
    assert keep([full, free._replace(waiting=20)], asked) == [full]
    # Two that take turns in one slot part, where a third has two homes: found with three servers of one slot each.
    turns = state(6, max_adapters=1, resident_adapters=OTHER, running_adapters=ADAPTER | OTHER)
    homes = [state(n, max_adapters=1, resident_adapters=frozenset({"third"})) for n in (7, 8)]
    assert keep([turns, *homes], asked) == homes
    assert keep([turns, homes[0]], asked) == [turns]
    # Where more adapters take turns than there are slots, no slot is at rest.
    third, fourth = frozenset({"third"}), frozenset({"fourth"})
    crowded = state(9, max_adapters=1, resident_adapters=OTHER | third, running_adapters=OTHER | third)
    taken = state(10, max_adapters=1, resident_adapters=fourth, running_adapters=fourth)
    assert keep([crowded, taken], asked) == [crowded, taken]
    # What is not known to be an adapter passes.
    assert keep([running, free, full], facts(model="adapter")) == [running, free, full]


def test_totals_are_weighted_sums_of_clamped_scores() -> None:
    class Odd:
        type_name = "odd"

        def score(self, states: object, facts: object) -> list[float]:
            return [float("nan"), -3.0, 7.0]

    profile = Profile(
        "p", (), (WeightedScorer(Odd(), 2.0, "odd"), WeightedScorer(QueueScorer(), 3.0, "q")), MaxScorePicker()
    )
    states = [state(1, waiting=0), state(2, waiting=2), state(3, waiting=1)]
    outcome = run(profile, states, facts())
    assert outcome.weigh().totals == pytest.approx((3.0, 0.0, 2.0 + 1.5))
    assert outcome.picks == ("10.0.0.3:8000",)
    assert "odd 2*1.000 + q 3*0.500 = 3.500" in explain(profile, outcome)


def test_the_default_profile() -> None:
    states = [
        state(1, waiting=0, kv_usage=0.5),
        state(2, waiting=4, kv_usage=0.0),
        state(3, waiting=2, kv_usage=0.0),
    ]
    outcome = run(default_profile(), states, facts(matches={"10.0.0.2:8000": 1}, blocks=2))
    assert outcome.weigh().totals == pytest.approx((2 + 1, 0 + 2 + 1.5, 1 + 2))
    assert outcome.picks == ("10.0.0.2:8000",)


def test_nothing_to_pick_from_has_a_reason() -> None:
    assert run(default_profile(), [], facts()).reason == "no endpoint is ready"
    assert "subset" in run(default_profile(), [state(1)], facts(subset=())).reason


PICKERS = [MaxScorePicker, RandomPicker, WeightedRandomPicker]


@pytest.mark.parametrize("picker", PICKERS)
@given(scores=st.lists(st.floats(0, 7), min_size=1, max_size=6), wanted=st.integers(1, 8), seed=st.integers(0, 99))
def test_pickers_give_distinct_candidates(picker: type[Picker], scores: list[float], wanted: int, seed: int) -> None:
    scored = [(score, state(number)) for number, score in enumerate(scores, 1)]
    picked = picker(wanted).pick(scored, facts(seed))  # type: ignore[call-arg]
    assert len(picked) == min(wanted, len(scored))
    assert len({candidate.key for _, candidate in picked}) == len(picked)
    if picker is MaxScorePicker:
        assert [score for score, _ in picked] == sorted(scores, reverse=True)[: len(picked)]


def shares(picker: Picker, scores: list[float]) -> list[float]:
    scored = [(score, state(number)) for number, score in enumerate(scores, 1)]
    rng_facts = facts(seed=3)
    counts = Counter(picker.pick(scored, rng_facts)[0][1].key for _ in range(4000))
    return [counts[candidate.key] / 4000 for _, candidate in scored]


def test_ties_are_shared_and_weights_are_followed() -> None:
    assert shares(MaxScorePicker(), [1.0, 1.0, 0.5]) == pytest.approx([0.5, 0.5, 0.0], abs=0.05)
    assert shares(RandomPicker(), [1.0, 0.0]) == pytest.approx([0.5, 0.5], abs=0.05)
    assert shares(WeightedRandomPicker(), [3.0, 1.0, 0.0]) == pytest.approx([0.75, 0.25, 0.0], abs=0.05)
    assert shares(WeightedRandomPicker(), [0.0, 0.0]) == pytest.approx([0.5, 0.5], abs=0.05)


def test_the_same_facts_make_the_same_decision() -> None:
    states = [state(number) for number in range(1, 9)]
    picks = {run(default_profile(), states, facts(seed=5)).picks for _ in range(5)}
    assert len(picks) == 1
    assert Random(5).random() == Random(5).random()


@pytest.mark.parametrize(
    ("made", "kept"),
    [([0.0, 1.0], [0.0, 1.0]), ([2.0, -1.0], [1.0, 0.0]), ([0.5, math.nan], [0.5, 0.0]), ([math.nan, 0.5], [0.0, 0.5])],
)
def test_scores_are_kept_within_0_and_1(made: list[float], kept: list[float]) -> None:
    class Fixed:
        type_name: ClassVar[str] = "fixed"

        def score(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[float]:
            return made

    profile = Profile("p", (), (WeightedScorer(Fixed(), 1.0, "fixed"),), MaxScorePicker())
    assert run(profile, [state(1), state(2)], facts()).weigh().scores == {"fixed": kept}
