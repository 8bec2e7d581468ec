"""Data producers: built-in ones first, and one that a new configuration brings knows the endpoints that are there."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.scheduling import EndpointState, Facts
from headrace.scheduling.producer import Producers

from .states import facts, state


class Preparing:
    """A producer that only prepares."""

    def __init__(self, name: str) -> None:
        self.name = name

    def prepare(self, facts: Facts, states: Sequence[EndpointState]) -> None:
        facts.attributes[self.name] = [*facts.attributes, len(states)]


class Keeping(Preparing):
    """One that keeps something for each endpoint, and learns from picks."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.endpoints: list[str] = []
        self.learnt: list[str] = []

    def add(self, key: str) -> None:
        self.endpoints.append(key)

    def remove(self, key: str) -> None:
        self.endpoints.remove(key)

    def picked(self, state: EndpointState, facts: Facts) -> None:
        self.learnt.append(state.key)


def test_built_in_producers_come_first_and_others_are_no_producers() -> None:
    # Only those that are configured are shown the states.
    producers = Producers([Preparing("built-in")], [object(), Preparing("configured"), "a name"])
    prepared = facts()
    producers.prepare(prepared, lambda: [state(1), state(2)])
    assert prepared.attributes == {"built-in": [0], "configured": ["built-in", 2]}


def test_another_configuration_brings_producers_and_takes_others_away() -> None:
    built_in, before, after = Keeping("built-in"), Keeping("before"), Keeping("after")
    producers = Producers([built_in], [before])
    one, two = state(1), state(2)
    for key in (one.key, two.key):
        producers.add(key)
    producers.remove(one.key)
    producers.configure([after])
    assert built_in.endpoints == before.endpoints == after.endpoints == [two.key]
    producers.picked(two, facts())
    assert (built_in.learnt, before.learnt, after.learnt) == ([two.key], [], [two.key])
    producers.add(one.key)
    assert before.endpoints == [two.key]
    assert after.endpoints == [two.key, one.key]
