"""The quick way through a profile against the general one: equal picks, equal explanations."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, nan
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Request
from headrace.scheduling import EndpointState, Facts, Profile, default_profile, explain, run
from headrace.scheduling.columns import Columns
from headrace.scheduling.filters import AdapterAffinityFilter, PrefixCacheAffinityFilter
from headrace.scheduling.health import VERDICT, HealthFilter
from headrace.scheduling.pickers import MaxScorePicker, RandomPicker
from headrace.scheduling.plugin import Scorer
from headrace.scheduling.profile import WeightedScorer
from headrace.scheduling.quick import MOST_SHOWN
from headrace.scheduling.scorers import KvCacheUtilizationScorer, PrefixCacheScorer, QueueScorer, TokenLoadScorer
from headrace.scheduling.slots import Matches, Slots, any_of

from .states import state

KV = st.one_of(st.sampled_from([0.0, 0.1, 0.1 + 2**-55, 0.5, 1.0, 1.5, -1.0, nan, inf, -inf]), st.floats(0, 1))
STATES = st.lists(st.tuples(st.integers(0, 4), KV, st.integers(0, 3), st.booleans()), min_size=1, max_size=12).map(
    lambda rows: [
        state(number, waiting=waiting, kv_usage=kv, in_flight=in_flight, fresh=fresh)
        for number, (waiting, kv, in_flight, fresh) in enumerate(rows, 1)
    ]
)
MATCHES = st.dictionaries(st.integers(1, 13), st.integers(1, 6), max_size=12)
VERDICTS = st.dictionaries(st.integers(1, 13), st.integers(-1, 3), max_size=12)
WEIGHTS = st.tuples(*[st.sampled_from([0.0, 0.1, 1.0, 2.0, 3.0])] * 3)
KINDS: dict[str, Scorer] = {"q": QueueScorer(), "kv": KvCacheUtilizationScorer(), "p": PrefixCacheScorer()}


def profile(weights: Sequence[float] = (2.0, 2.0, 3.0), order: str = "q kv p", **changes: Any) -> Profile:
    scorers = tuple(
        WeightedScorer(KINDS[name], weight, name) for name, weight in zip(order.split(), weights, strict=False)
    )
    fields: dict[str, Any] = {
        "filters": (HealthFilter(max_waiting=2), AdapterAffinityFilter()),
        "scorers": scorers,
        "picker": MaxScorePicker(),
    }
    return Profile("p", **{**fields, **changes})


def columns(states: Sequence[EndpointState]) -> Columns:
    made = Columns(Slots())
    for one in states:
        made.put(made.slots.take(one.key), one)
    return made


def key(number: int) -> str:
    return state(number).key


def facts(matches: dict[int, int], blocks: int, verdict: dict[int, int], seed: int, **request: Any) -> Facts:
    made = Facts(Request("r", **request), 0.0, Random(seed))
    made.prefix_blocks = blocks
    made.prefix_matches = {key(number): length for number, length in matches.items()}
    if verdict:
        made.attributes[VERDICT] = {key(number): allowed for number, allowed in verdict.items()}
    return made


def grouped(matches: dict[str, int], slots: Slots) -> Matches:
    """The same as the index of prefixes gives it."""
    sets: dict[int, int] = {}
    for name, length in matches.items():
        if name in slots.of:
            sets[length] = sets.get(length, 0) | 1 << slots.of[name]
    return Matches(list(sets.items()), slots.shown())


@given(
    states=STATES,
    matches=MATCHES,
    blocks=st.integers(0, 6),
    verdict=VERDICTS,
    weights=WEIGHTS,
    order=st.sampled_from(["q kv p", "kv q p", "q p", "kv", "p", ""]),
    seed=st.integers(0, 9),
)
def test_both_ways_pick_the_same(
    states: list[EndpointState],
    matches: dict[int, int],
    blocks: int,
    verdict: dict[int, int],
    weights: tuple[float, ...],
    order: str,
    seed: int,
) -> None:
    asked = profile(weights, order)
    assert asked.quick is not None
    known = columns(states)
    general = run(asked, states, facts(matches, blocks, verdict, seed))
    for form in ("plain", "grouped"):
        given_facts = facts(matches, blocks, verdict, seed)
        if form == "grouped":
            given_facts.prefix_matches = grouped(dict(given_facts.prefix_matches), known.slots)
        quick = asked.quick.pick(known, given_facts)
        if quick is None:
            # Nobody is good: rare, and left to the general way.
            assert all(one.key in given_facts.attributes[VERDICT] for one in states)
            continue
        assert (quick.picks, quick.state, quick.candidate_count) == (
            general.picks,
            general.state,
            general.candidate_count,
        )
        assert quick.weigh() == general.weigh()
        assert explain(asked, quick) == explain(asked, general)


@given(STATES, st.lists(st.tuples(st.integers(0, 11), st.integers(0, 4), KV), max_size=20), st.integers(0, 11))
def test_columns_keep_in_step(states: list[EndpointState], changes: list[tuple[int, int, float]], gone: int) -> None:
    kept = columns(states)
    now = list(states)
    for number, waiting, kv in changes:
        at = number % len(now)
        now[at] = now[at]._replace(waiting=waiting, kv_usage=kv)
        kept.put(kept.slots.of[now[at].key], now[at])
    if len(now) > 1:
        left = now.pop(gone % len(now))
        kept.remove(kept.slots.of[left.key])
    fresh = columns(now)
    shown = [
        {
            waiting: {
                free: {held.by_slot[slot].key for slot in held.by_slot if members >> slot & 1}
                for free, members in bucket.sets.items()
            }
            for waiting, bucket in held.buckets.items()
        }
        for held in (kept, fresh)
    ]
    assert shown[0] == shown[1]
    assert all(bucket.free == sorted(bucket.sets) for bucket in kept.buckets.values())
    assert kept.everybody.bit_count() == len(now)


@pytest.mark.parametrize(
    "changes",
    [
        {"picker": RandomPicker()},
        {"picker": MaxScorePicker(max_endpoints=2)},
        {"filters": (PrefixCacheAffinityFilter(),)},
        {"filters": (HealthFilter(), HealthFilter(max_waiting=1))},
        {"scorers": (WeightedScorer(TokenLoadScorer(), 1.0, "t"),)},
        {"scorers": (WeightedScorer(QueueScorer(), -1.0, "q"),)},
        {"scorers": (WeightedScorer(QueueScorer(), nan, "q"),)},
        {"scorers": (WeightedScorer(QueueScorer(), 1.0, "q"), WeightedScorer(QueueScorer(), 1.0, "q2"))},
        {"scorers": (WeightedScorer(PrefixCacheScorer(), 1.0, "p"), WeightedScorer(QueueScorer(), 1.0, "q"))},
        {"scorers": (WeightedScorer(PrefixCacheScorer(match_length_weight=0.5), 1.0, "p"),)},
    ],
)
def test_other_profiles_have_no_quick_way(changes: dict[str, Any]) -> None:
    assert profile(**changes).quick is None


def test_what_the_quick_way_does_not_do() -> None:
    quick = default_profile().quick
    assert quick is not None
    known = columns([state(1), state(2)])
    assert quick.pick(known, facts({}, 0, {}, 1)) is not None
    assert quick.pick(known, facts({}, 0, {}, 1, subset=(key(1),))) is None
    adapters = facts({}, 0, {}, 1)
    adapters.is_adapter = True
    assert quick.pick(known, adapters) is None
    assert quick.pick(known, facts({}, 0, {1: 0, 2: 0}, 1)) is None
    assert quick.pick(columns([]), facts({}, 0, {}, 1)) is None


def test_of_a_large_pool_only_the_pick_is_shown() -> None:
    states = [state(number, waiting=number % 3) for number in range(1, MOST_SHOWN + 5)]
    asked = default_profile()
    assert asked.quick is not None
    quick, general = (
        asked.quick.pick(columns(states), facts({2: 3}, 4, {}, 5)),
        run(asked, states, facts({2: 3}, 4, {}, 5)),
    )
    assert quick is not None
    assert quick.picks == general.picks
    assert len(quick.weigh().candidates) == 1
    assert quick.weigh() == general.weigh()
    assert f"of {len(states)} candidates" in explain(asked, quick)


@given(st.sets(st.integers(0, 200), min_size=1), st.integers(0, 99))
def test_any_of_a_set_is_as_good_as_a_list(members: set[int], seed: int) -> None:
    ordered = sorted(members)
    rng = Random(seed)
    expected = ordered[int(rng.random() * len(ordered))] if len(ordered) > 1 else ordered[0]
    assert any_of(sum(1 << slot for slot in members), Random(seed)) == expected


def test_slots_are_given_again_when_all_have_released_them() -> None:
    slots = Slots()
    assert (slots.take("a"), slots.take("b"), slots.take("a")) == (0, 1, 0)
    kept = Matches([(2, 0b11)], slots.shown())
    slots.release("a")
    assert slots.take("c") == 2
    slots.release("a")
    assert slots.take("d") == 0
    assert dict(slots.of) == {"b": 1, "c": 2, "d": 0}
    # What was known then stays as it was.
    assert dict(kept) == {"a": 2, "b": 2}
    assert (len(kept), kept.get("d"), bool(kept)) == (2, None, True)
