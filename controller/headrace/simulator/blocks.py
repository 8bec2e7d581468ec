"""KV cache blocks with a prefix cache, after vLLM's V1 block pool.

A full block has a hash that covers its tokens and all tokens before them (and the adapter, whose KV differs). A block
that no request uses any more keeps its content until it is needed: requests that start with the same tokens find it,
the least recently used is evicted first. One block is reserved, as in vLLM (its null block).
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import xxhash


def block_hashes(
    tokens: array[int], block_size: int, parent: int | None, start: int, adapter: str | None
) -> Iterator[int]:
    """Hashes of the full blocks of `tokens` from block number `start` on; `parent` is the hash of the one before."""
    salt = (adapter or "").encode()
    view = memoryview(tokens)
    for end in range((start + 1) * block_size, len(tokens) + 1, block_size):
        digest = xxhash.xxh3_64(view[end - block_size : end])
        digest.update(salt if parent is None else parent.to_bytes(8, "little"))
        parent = digest.intdigest()
        yield parent


class BlockPool:
    """Owns all KV blocks: which are in use by how many requests, which are cached, which are empty.

    Blocks are numbers. A request holds a list of them and gives it back with `free`; a block shared by several requests
    is in use until the last of them has freed it.
    """

    def __init__(self, num_gpu_blocks: int) -> None:
        if num_gpu_blocks < 2:
            raise ValueError(f"num_gpu_blocks {num_gpu_blocks}: at least 2 are needed, one is reserved")
        self.capacity = num_gpu_blocks - 1
        self._untouched = self.capacity  # blocks numbered from here down to 1 were never used
        self._empty: list[int] = []
        self._references: dict[int, int] = {}
        self._block_of_hash: dict[int, int] = {}
        self._hash_of_block: dict[int, int] = {}
        self._evictable: OrderedDict[int, None] = OrderedDict()  # cached, unused; least recently used first

    @property
    def num_used(self) -> int:
        """Blocks held by requests."""
        return len(self._references)

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated: empty ones, and cached ones that no request uses."""
        return self.capacity - len(self._references)

    @property
    def num_cached(self) -> int:
        """Blocks whose content a later request can find."""
        return len(self._hash_of_block)

    @property
    def usage(self) -> float:
        """Used blocks over all, 0 to 1: `vllm:kv_cache_usage_perc`."""
        return len(self._references) / self.capacity

    def cached_prefix(self, hashes: Sequence[int]) -> list[int]:
        """The longest run of cached blocks for these hashes, from the first on. Takes none of them."""
        found = []
        for block_hash in hashes:
            block = self._block_of_hash.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def num_unused(self, blocks: Sequence[int]) -> int:
        """How many of these cached blocks no request holds: `acquire` would take them from the free ones."""
        return sum(block in self._evictable for block in blocks)

    def acquire(self, blocks: Sequence[int]) -> None:
        """Hold cached blocks, found with `cached_prefix`, for one more request."""
        for block in blocks:
            self._evictable.pop(block, None)
            self._references[block] = self._references.get(block, 0) + 1

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks for one request, evicting the least recently used cached ones where none is empty.

        Raises ValueError, and takes none, when fewer are free: callers look at `num_free` first.
        """
        if count > self.num_free:
            raise ValueError(f"{count} blocks asked for, {self.num_free} free")
        taken = []
        for _ in range(count):
            if self._empty:
                block = self._empty.pop()
            elif self._untouched:
                block = self._untouched
                self._untouched -= 1
            else:
                block, _none = self._evictable.popitem(last=False)
                del self._block_of_hash[self._hash_of_block.pop(block)]
            self._references[block] = 1
            taken.append(block)
        return taken

    def cache(self, block: int, block_hash: int) -> None:
        """Make a full, held block findable. Where an equal block is cached already, that one stays the findable one."""
        if block_hash not in self._block_of_hash and block not in self._hash_of_block:
            self._block_of_hash[block_hash] = block
            self._hash_of_block[block] = block_hash

    def free(self, blocks: Sequence[int]) -> None:
        """Give back one request's hold on its blocks, in their order.

        The last block of a request is evicted before the first: prefixes are shared more often than ends.
        """
        for block in reversed(blocks):
            references = self._references[block] - 1
            if references:
                self._references[block] = references
                continue
            del self._references[block]
            if block in self._hash_of_block:
                self._evictable[block] = None
            else:
                self._empty.append(block)

    def reset_prefix_cache(self) -> bool:
        """Forget all cached content. Does nothing and returns False while a request holds a block, as vLLM does."""
        if self._references:
            return False
        self._empty.extend(self._evictable)
        self._evictable.clear()
        self._block_of_hash.clear()
        self._hash_of_block.clear()
        return True
