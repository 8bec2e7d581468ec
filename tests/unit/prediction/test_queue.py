"""The prompts that a server has not computed yet."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.prediction.queue import Prompt, PromptQueue

RATE = 0.001


def queue(*tokens: int) -> PromptQueue[str]:
    made: PromptQueue[str] = PromptQueue()
    made.drain(0.0, RATE)
    for number, count in enumerate(tokens):
        made.add("abcdefgh"[number], Prompt(count, count, sent_at=number / 10))
    return made


def test_prompts_are_computed_in_their_order() -> None:
    q = queue(100, 200)
    q.drain(0.15, RATE)
    assert (len(q), q.tokens) == (2, pytest.approx(150))
    q.drain(10.0, RATE)
    # Whether they are, only a first token tells.
    assert (len(q), q.tokens) == (2, 0)
    assert q.drop("a") == Prompt(100, 100)
    assert q.drop("a") is None


def test_a_page_tells_which_answers_have_begun() -> None:
    q = queue(100, 200, 300)
    assert q.begun(answers=1, waiting=0, unseen=0) == [Prompt(100, 100)]
    assert q.tokens == pytest.approx(500)


def test_what_still_waits_is_whole_and_what_should_be_done_is_nearly() -> None:
    q = queue(100, 200, 300)
    q.drain(10.0, RATE)
    q.begun(answers=0, waiting=1, unseen=0)
    assert q.tokens == pytest.approx(10 + 20 + 300)


def test_a_page_says_nothing_of_what_was_sent_after_it() -> None:
    q = queue(100, 200)
    assert q.unseen(asked_at=0.05) == 1
    q.drain(10.0, RATE)
    assert q.begun(answers=5, waiting=5, unseen=1) == [Prompt(100, 100)]
    assert (len(q), q.tokens) == (1, 0)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(0, 10_000)),
            st.tuples(st.just("drop"), st.integers(0, 30)),
            st.tuples(st.just("drain"), st.floats(0, 20)),
            st.tuples(st.just("page"), st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))),
        ),
        max_size=40,
    )
)
def test_the_sum_is_of_what_is_left(steps: list[tuple[str, Any]]) -> None:
    q: PromptQueue[int] = PromptQueue()
    for number, (kind, value) in enumerate(steps):
        if kind == "add":
            q.add(number, Prompt(value, float(value), float(number)))
        elif kind == "drop":
            q.drop(value)
        elif kind == "drain":
            q.drain(value, RATE)
        else:
            q.begun(*value)
        assert q.tokens == pytest.approx(sum(q._left.values()), abs=1e-6)
        assert list(q._left) == [entry for entry in q.prompts if entry in q._left]
