"""Who is left where some servers are not to be trusted."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from headrace.scheduling.health import VERDICT, HealthFilter

from .states import facts, state

KEYS = {number: state(number).key for number in range(1, 5)}


def kept(verdict: Mapping[int, int], **busy: int) -> list[int]:
    """Which of four servers are left. `busy`: requests waiting, or in flight, at the good ones or those on trial."""
    known = facts()
    if verdict:
        known.attributes[VERDICT] = {KEYS[number]: allowed for number, allowed in verdict.items()}
    states = [
        state(
            number,
            waiting=busy.get("waiting", 0) if number not in verdict else 0,
            in_flight=busy.get("in_flight", 0) if number in verdict else 0,
        )
        for number in KEYS
    ]
    return [number for number in KEYS if any(s.key == KEYS[number] for s in HealthFilter().keep(states, known))]


@pytest.mark.parametrize(
    ("verdict", "busy", "left"),
    [
        ({}, {}, [1, 2, 3, 4]),
        ({1: 0}, {}, [2, 3, 4]),
        ({1: 0}, {"waiting": 1000}, [2, 3, 4]),
        ({1: -1}, {}, [2, 3, 4]),
        # Others have no room.
        ({1: -1}, {"waiting": 65}, [1, 2, 3, 4]),
        ({1: 4}, {"in_flight": 3}, [1, 2, 3, 4]),
        ({1: 4}, {"in_flight": 4}, [2, 3, 4]),
        # All are new or on trial, none is good: it does nothing, but for those that are worse.
        ({1: 1, 2: 1, 3: 2, 4: 1}, {"in_flight": 9}, [1, 2, 3, 4]),
        ({1: 1, 2: 0, 3: -1, 4: 1}, {"in_flight": 9}, [1, 4]),
        ({1: -1, 2: -1, 3: -1, 4: -1}, {}, [1, 2, 3, 4]),
        ({1: 0, 2: -1, 3: 0, 4: 0}, {}, [2]),
        ({1: 0, 2: 0, 3: 0, 4: 0}, {}, [1, 2, 3, 4]),
    ],
)
def test_who_is_left(verdict: Mapping[int, int], busy: Mapping[str, int], left: list[int]) -> None:
    assert kept(verdict, **busy) == left


def test_without_a_verdict_nothing_is_looked_at() -> None:
    states = [state(1), state(2)]
    assert HealthFilter().keep(states, facts()) is states
