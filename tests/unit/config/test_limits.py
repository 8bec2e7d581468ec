"""Budgets of bytes: where the memory limit is found, what derives from it, and the account of what is held."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config.limits import ByteBudget, Held, limits, own_limits

GIB = 1 << 30
UNLIMITED_V1 = "9223372036854771712"


def files(root: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("own", "texts", "memory"),
    [
        # Version 2: our group, one around it, the root of a container.
        ("0::/pod/me", {"pod/me/memory.max": "1073741824"}, GIB),
        ("0::/pod/me", {"pod/me/memory.max": "max", "pod/memory.max": "536870912"}, GIB // 2),
        ("0::/pod/me", {"pod/me/memory.max": "1073741824", "pod/memory.max": "536870912"}, GIB // 2),
        ("0::/../../else", {"memory.max": "1073741824"}, GIB),
        # Version 1, and both beside each other.
        ("4:memory:/pod/me\n0::/", {"memory/pod/me/memory.limit_in_bytes": "1073741824"}, GIB),
        ("4:cpu,memory:/known/outside", {"memory/memory.limit_in_bytes": "1073741824"}, GIB),
        # No limit: half of the machine's 4 GiB.
        ("0::/pod/me", {"pod/me/memory.max": "max"}, 2 * GIB),
        ("4:memory:/", {"memory/memory.limit_in_bytes": UNLIMITED_V1}, 2 * GIB),
        ("4:cpu:/", {}, 2 * GIB),
        ("0::/", {"memory.max": "0"}, 2 * GIB),
        ("nonsense", {"memory.max": "-1"}, 2 * GIB),
    ],
)
def test_the_limit_of_the_control_group(tmp_path: Path, own: str, texts: dict[str, str], memory: int) -> None:
    root = files(tmp_path / "cgroup", texts)
    named = tmp_path / "own"
    named.write_text(own + "\n")
    found = own_limits(root, named, 4 * GIB)
    assert found.memory == memory
    assert found.source


def test_without_files_half_of_the_machine_counts(tmp_path: Path) -> None:
    assert own_limits(tmp_path / "none", tmp_path / "none", 4 * GIB).memory == 2 * GIB
    assert own_limits().memory > 0


def test_bodies_have_a_quarter() -> None:
    found = limits(GIB)
    assert found.bodies.total_bytes == GIB // 4
    # One body alone must fit into what large ones may use.
    assert found.bodies.item_bytes == found.bodies.total_bytes * 3 // 4
    budget = ByteBudget(found.bodies.total_bytes)
    assert budget.open().add(found.bodies.item_bytes)
    for budget in (found.bodies, found.responses, found.pages, found.kv_messages):
        assert 0 < budget.item_bytes <= budget.total_bytes < GIB // 2


def test_large_items_leave_room_for_small_ones() -> None:
    budget = ByteBudget(1000, small=10)
    large, small = budget.open(), budget.open()
    assert not large.add(751)
    assert large.add(750)
    assert not budget.open().add(11)
    assert small.add(10)
    # It is large now.
    assert not small.add(1)
    others = [budget.open() for _ in range(25)]
    assert [other.add(10) for other in others] == [True] * 24 + [False]
    assert budget.held == 1000
    large.release()
    assert not small.add(501)
    assert small.add(490)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 60))))
def test_what_is_held_is_the_sum_and_never_over(steps: list[tuple[int, int]]) -> None:
    budget = ByteBudget(100, small=5)
    items: list[Held] = [budget.open() for _ in range(4)]
    for number, count in steps:
        before = items[number].size
        if count < 0:
            items[number].release()
            assert items[number].size == 0
        elif count % 7 == 3:
            assert items[number].hold(count) == (items[number].size == count)
            assert items[number].size in (count, before)
        elif items[number].add(count):
            assert items[number].size == before + count
        else:
            assert items[number].size == before
        assert budget.held == sum(item.size for item in items) <= 100
    for item in items:
        item.release()
        item.release()
    assert budget.held == 0
