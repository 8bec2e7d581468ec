"""What earlier picks tell later ones, and how it is forgotten."""

from __future__ import annotations

from headrace.datalayer.memory import PickMemory
from headrace.scheduling import Binding
from headrace.scheduling.plugin import BindSession, ColdPick


def test_sessions_are_forgotten_when_their_time_is_over_and_when_there_are_too_many() -> None:
    memory = PickMemory(max_sessions=2)
    memory.bind(BindSession("a", "n/p1", 10.0), 0.0)
    memory.bind(BindSession("b", "n/p2", 10.0), 1.0)
    memory.bind(BindSession("a", "n/p3", 10.0), 2.0)
    assert memory.sessions["a"] == Binding("n/p3", 2.0, 10.0)
    memory.bind(BindSession("c", "n/p1", 10.0), 3.0)
    assert set(memory.sessions) == {"a", "c"}
    memory.expire(12.0)
    assert set(memory.sessions) == {"a", "c"}
    memory.expire(12.5)
    assert set(memory.sessions) == {"c"}
    memory.expire(99.0)
    assert not memory.sessions


def test_cold_picks_are_in_order_and_as_many_as_asked() -> None:
    memory = PickMemory()
    for key in ("a", "b", "a", "c"):
        memory.cold_pick(ColdPick(key, 2))
    assert sorted(memory.cold_picks, key=memory.cold_picks.__getitem__) == ["a", "c"]
    memory.remove("a")
    memory.remove("absent")
    assert list(memory.cold_picks) == ["c"]
