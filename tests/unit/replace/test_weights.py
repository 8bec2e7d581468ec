"""The weights of a rule at every share: exact, others' proportions kept, and back to what they were."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from headrace.core import GA_GROUP
from headrace.replace.plan import PoolRef
from headrace.replace.weights import (
    MAX_WEIGHT,
    Swap,
    Unsplittable,
    final_refs,
    introduced,
    refs_at,
    restored,
    weight_of,
)

OLD = PoolRef(GA_GROUP, "default", "old")
NEW = PoolRef(GA_GROUP, "default", "new")
SWAP = Swap(OLD, NEW, "default")


def pool(name: str, weight: int | None = 1, **more: Any) -> dict[str, Any]:
    found = {"group": GA_GROUP, "kind": "InferencePool", "name": name, **more}
    return found if weight is None else {**found, "weight": weight}


def service(name: str, weight: int = 1) -> dict[str, Any]:
    return {"group": "", "kind": "Service", "name": name, "port": 80, "weight": weight}


def share_of(refs: Any, name: str) -> Fraction:
    total = sum(weight_of(ref) for ref in refs)
    return Fraction(sum(weight_of(ref) for ref in refs if ref["name"] == name), total)


@pytest.mark.parametrize(
    ("percent", "kept", "moved"), [(0, 1, 0), (1, 99, 1), (5, 19, 1), (25, 3, 1), (50, 1, 1), (100, 0, 1)]
)
def test_a_pool_alone_is_divided_by_the_smallest_whole_weights(percent: int, kept: int, moved: int) -> None:
    refs = refs_at([pool("old")], SWAP, percent)
    assert [(ref["name"], weight_of(ref)) for ref in refs] == [("old", kept), ("new", moved)]


def test_other_backends_keep_their_share_exactly() -> None:
    original = [service("canary", 3), pool("old", 7), service("other", 11)]
    refs = refs_at(original, SWAP, 25)
    assert share_of(refs, "canary") == Fraction(3, 21)
    assert share_of(refs, "other") == Fraction(11, 21)
    assert share_of(refs, "new") == Fraction(7, 21) / 4


def test_everything_but_name_and_weight_is_copied() -> None:
    filters = [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"add": [{"name": "a", "value": "b"}]}}]
    refs = refs_at([pool("old", 4, filters=filters, port=8000)], SWAP, 50)
    assert refs[1] == pool("new", 2, filters=filters, port=8000)


def test_a_reference_to_the_new_pool_that_is_there_already_takes_the_share() -> None:
    refs = refs_at([pool("old", 9), pool("new", 1)], SWAP, 50)
    assert [(ref["name"], weight_of(ref)) for ref in refs] == [("old", 9), ("new", 11)]
    assert final_refs([pool("old", 9), pool("new", 1)], SWAP) == (pool("new", 10),)


def test_a_route_in_another_namespace_names_the_pools_namespace() -> None:
    swap = Swap(OLD, NEW, "elsewhere")
    refs = refs_at([pool("old", 1, namespace="default"), pool("old")], swap, 100)
    assert [(ref["name"], ref.get("namespace"), weight_of(ref)) for ref in refs] == [
        ("old", "default", 0), ("old", None, 1), ("new", "default", 1),
    ]  # fmt: skip


def test_a_pool_of_the_same_name_in_the_other_group_is_another_pool() -> None:
    swap = Swap(PoolRef("inference.networking.x-k8s.io", "default", "old"), OLD, "default")
    alpha = {**pool("old"), "group": "inference.networking.x-k8s.io"}
    assert refs_at([alpha], swap, 100) == ({**alpha, "weight": 0}, pool("old", 1))
    assert final_refs([alpha], swap) == (pool("old"),)


def test_weights_that_leave_no_room_are_refused_with_the_fix() -> None:
    with pytest.raises(Unsplittable, match="make the rule's weights smaller"):
        refs_at([service("big", MAX_WEIGHT - 1), pool("old", 1)], SWAP, 5)


def test_the_end_is_the_same_rule_with_the_other_name() -> None:
    original = [service("a", 2), pool("old", None), service("b", 3)]
    assert final_refs(original, SWAP) == (service("a", 2), pool("new", None), service("b", 3))


def test_what_somebody_added_meanwhile_survives_a_rollback() -> None:
    original = [pool("old", 3), service("a", 1)]
    current = [*refs_at(original, SWAP, 50), service("theirs", 5)]
    assert restored(current, original, SWAP) == (pool("old", 3), service("a", 1), service("theirs", 5))
    assert restored([pool("new", 3)], original, SWAP) == (pool("old", 3),)


weights = st.integers(0, 10_000)
backends = st.lists(
    st.one_of(
        st.builds(service, st.sampled_from("abc"), weights),
        st.builds(pool, st.just("old"), weights),
        st.builds(pool, st.just("third"), weights),
    ),
    min_size=1,
    max_size=6,
)


@given(backends, st.one_of(st.none(), st.integers(0, 10_000)), st.integers(1, 100))
def test_any_rule_is_divided_exactly_and_comes_back_exactly(
    original: list[dict[str, Any]], existing: int | None, percent: int
) -> None:
    if existing is not None:
        original = [*original, pool("new", existing)]
    # What the error of others promises.
    assume(sum(weight_of(ref) for ref in original if SWAP.is_old(ref) or SWAP.is_new(ref)) <= 10_000)
    refs = refs_at(original, SWAP, percent)
    total, before = sum(map(weight_of, refs)), sum(map(weight_of, original))
    assert all(0 <= weight_of(ref) <= MAX_WEIGHT for ref in refs)
    assert [{**ref, "weight": 0} for ref in refs[: len(original)]] == [{**ref, "weight": 0} for ref in original]
    assert bool(total) == bool(before)
    if total:
        for name in "abc":
            assert share_of(refs, name) == share_of(original, name)
        gone = share_of(original, "old") * Fraction(percent, 100)
        # Several pools of awkward weights may need rounding; one alone never does.
        rounded = Fraction(sum(ref["name"] == "old" for ref in original), 2 * total)
        assert abs(share_of(refs, "new") - share_of(original, "new") - gone) <= rounded
        if sum(ref["name"] == "old" for ref in original) == 1 and existing is None:
            assert share_of(refs, "new") == gone
    assert restored(refs, original, SWAP) == tuple(original)
    assert not any(SWAP.is_old(ref) for ref in final_refs(original, SWAP))


@given(st.lists(st.integers(0, MAX_WEIGHT), min_size=0, max_size=4), st.integers(1, MAX_WEIGHT), st.integers(1, 99))
def test_large_weights_are_rounded_or_refused_but_never_overflow(others: list[int], weight: int, percent: int) -> None:
    original = [*(service("other", other) for other in others), pool("old", weight)]
    try:
        refs = refs_at(original, SWAP, percent)
    except Unsplittable:
        return
    assert max(map(weight_of, refs)) <= MAX_WEIGHT
    assert share_of(refs, "other") == share_of(original, "other")
    own = share_of(refs, "old") + share_of(refs, "new")
    assert own == share_of(original, "old")
    assert abs(share_of(refs, "new") / own - Fraction(percent, 100)) <= Fraction(1, 200)
    assert 0 < share_of(refs, "new") < own or not own


FILTERS = [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"add": [{"name": "a", "value": "b"}]}}]


@pytest.mark.parametrize("percent", [0, 1, 50, 100, None])
def test_the_way_back_introduces_nothing(percent: int | None) -> None:
    for original in (
        [pool("old", 3), service("svc", 2)],
        [pool("old", 3, filters=FILTERS), service("svc", 2)],
        [pool("old", 3), pool("new", 1), service("svc", 2)],
    ):
        now = final_refs(original, SWAP) if percent is None else refs_at(original, SWAP, percent)
        assert introduced(now, restored(now, original, SWAP), SWAP) == []


@pytest.mark.parametrize(
    ("current", "recorded"),
    [
        ([pool("new")], [pool("old", filters=FILTERS)]),
        ([pool("new"), service("svc")], [pool("old"), {**service("svc"), "filters": FILTERS}]),
        # A record without the filter that the pool's backend has.
        ([pool("old", filters=FILTERS)], [pool("old")]),
        ([pool("new", filters=FILTERS)], [pool("old")]),
        # A rule that leads to neither pool is none of the replacement's.
        ([service("svc")], [pool("old"), service("svc")]),
    ],
)
def test_a_forged_record_brings_nothing_into_a_rule(current: list[Any], recorded: list[Any]) -> None:
    assert introduced(current, restored(current, recorded, SWAP), SWAP)


def test_backends_that_a_rule_does_not_have_are_left_out() -> None:
    assert restored([pool("new")], [pool("old"), service("evil")], SWAP) == (pool("old"),)
    other_port = {**service("svc"), "port": 81}
    assert restored([pool("new"), service("svc")], [pool("old"), other_port], SWAP) == (pool("old"), service("svc"))
