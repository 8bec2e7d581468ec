"""KV cache blocks against a plain model of them."""

from __future__ import annotations

from array import array
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.simulator.blocks import BlockPool, block_hashes

CAPACITY = 7


class BlockPoolMachine(RuleBasedStateMachine):
    """Requests take, share, cache and free blocks in any order. `content` is what each block would really hold."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(CAPACITY + 1)
        self.held: list[list[int]] = []
        self.content: dict[int, int] = {}
        self.next_hash = 0

    @rule(count=st.integers(0, CAPACITY))
    def allocate(self, count: int) -> None:
        if count > self.pool.num_free:
            with pytest.raises(ValueError, match="free"):
                self.pool.allocate(count)
            return
        taken = self.pool.allocate(count)
        in_use = {block for blocks in self.held for block in blocks}
        assert len(set(taken)) == count
        assert not in_use & set(taken)
        for block in taken:
            self.content.pop(block, None)
        self.held.append(taken)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), known=st.booleans())
    def cache(self, data: st.DataObject, known: bool) -> None:
        blocks = data.draw(st.sampled_from(self.held))
        for block in blocks:
            if block in self.content:
                continue
            if known and self.content:
                value = data.draw(st.sampled_from(sorted(self.content.values())))
            else:
                self.next_hash += 1
                value = self.next_hash
            self.content[block] = value
            self.pool.cache(block, value)

    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        wanted = data.draw(st.lists(st.integers(1, self.next_hash + 1), unique=True, max_size=4))
        found = self.pool.cached_prefix(wanted)
        assert [self.content[block] for block in found] == wanted[: len(found)]
        free = self.pool.num_free
        unused = self.pool.num_unused(found)
        self.pool.acquire(found)
        assert self.pool.num_free == free - unused
        self.held.append(found)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.held) - 1))
        self.pool.free(self.held.pop(index))

    @rule()
    def reset(self) -> None:
        idle = not any(self.held)
        assert self.pool.reset_prefix_cache() is idle
        if idle:
            assert self.pool.num_cached == 0
            self.content.clear()

    @invariant()
    def used_blocks_are_those_held(self) -> None:
        used = Counter(block for blocks in self.held for block in blocks)
        assert self.pool.num_used == len(used)
        assert self.pool.num_free == CAPACITY - len(used)
        assert self.pool.usage == len(used) / CAPACITY
        assert self.pool.num_cached <= CAPACITY


TestBlockPool = BlockPoolMachine.TestCase


def filled(pool: BlockPool, hashes: list[int]) -> list[int]:
    blocks = pool.allocate(len(hashes))
    for block, value in zip(blocks, hashes, strict=True):
        pool.cache(block, value)
    return blocks


def test_the_least_recently_used_block_is_evicted_first_and_a_prefix_last() -> None:
    pool = BlockPool(5)
    old, new = filled(pool, [1, 2]), filled(pool, [11, 12])
    pool.free(old)
    pool.free(new)
    pool.allocate(1)
    assert (pool.cached_prefix([1, 2]), len(pool.cached_prefix([11, 12]))) == (old[:1], 2)
    pool.acquire(pool.cached_prefix([1]))  # used again: now the others are older
    pool.free(old[:1])
    pool.allocate(2)
    assert (pool.cached_prefix([1]), pool.cached_prefix([11])) == (old[:1], [])


def test_empty_blocks_are_taken_before_cached_ones() -> None:
    pool = BlockPool(5)
    cached = filled(pool, [1, 2])
    pool.free(cached)
    pool.free(pool.allocate(2))
    pool.allocate(2)
    assert pool.cached_prefix([1, 2]) == cached


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 5), st.data())
def test_hashes_cover_whole_blocks_and_continue(tokens: list[int], size: int, data: st.DataObject) -> None:
    stored = array("I", tokens)
    whole = list(block_hashes(stored, size, None, 0, None))
    assert len(whole) == len(tokens) // size
    start = data.draw(st.integers(0, len(whole)))
    parent = whole[start - 1] if start else None
    assert list(block_hashes(stored, size, parent, start, None)) == whole[start:]


def test_hashes_cover_what_came_before_and_the_adapter() -> None:
    def last(tokens: list[int], adapter: str | None = None) -> int:
        return list(block_hashes(array("I", tokens), 2, None, 0, adapter))[-1]

    assert last([1, 2, 3, 4]) != last([9, 9, 3, 4])
    assert len({last([1, 2], None), last([1, 2], "a"), last([1, 2], "b")}) == 3


def test_one_block_is_reserved() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        BlockPool(1)
    assert BlockPool(2).num_free == 1
