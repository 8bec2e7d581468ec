"""Which answers of a Gateway are the right ones, and when that is given up."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest


def answer(model: str, status: int = 200) -> dict[str, Any]:
    return {"status": status, "body": json.dumps({"model": model, "choices": [{"text": "x"}]})}


def replay(*answers: dict[str, Any]) -> tuple[Callable[[], dict[str, Any]], Callable[[], float]]:
    """One after the other, then the last one for ever; and a clock of which each takes a second."""
    sent = [0]

    def once() -> dict[str, Any]:
        sent[0] += 1
        return answers[min(sent[0], len(answers)) - 1]

    return once, lambda: float(sent[0])


def watch(module: ModuleType, models: list[str], wanted: int, *answers: dict[str, Any]) -> dict[str, int]:
    once, clock = replay(*answers)
    found: dict[str, int] = module.watch(once, models, wanted, 10, clock, lambda seconds: None)
    return found


def test_answers_of_both_are_counted(answers: ModuleType) -> None:
    assert watch(answers, ["a", "b"], 3, answer("a"), answer("b"), answer("a")) == {"a": 2, "b": 1}


def test_what_has_not_arrived_yet_is_waited_for(answers: ModuleType) -> None:
    assert watch(answers, ["b"], 2, answer("", 404), answer("a"), answer("b"), answer("b")) == {"b": 2}


def test_another_model_in_between_starts_the_count_anew(answers: ModuleType) -> None:
    assert watch(answers, ["b"], 2, answer("b"), answer("a"), answer("b"), answer("b")) == {"b": 2}


def test_an_error_after_a_right_answer_is_the_end(answers: ModuleType) -> None:
    with pytest.raises(answers.Failed, match="after right answers came status 503"):
        watch(answers, ["b"], 3, answer("b"), answer("", 503), answer("b"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (answer("a"), "status 200, model 'a'"),
        (answer("", 404), "status 404"),
        ({"status": 200, "body": "<html>"}, "model ''"),
        ({"status": 200, "body": "[]"}, "model ''"),
    ],
)
def test_it_gives_up_and_says_what_came(answers: ModuleType, given: dict[str, Any], says: str) -> None:
    with pytest.raises(answers.Failed, match="after 10 s 0 of 2") as failed:
        watch(answers, ["b"], 2, given)
    assert says in str(failed.value)
