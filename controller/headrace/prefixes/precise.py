"""Which prompt prefixes each server's cache holds, as the servers tell it themselves.

A server's own block hashes mean nothing on another server, so blocks are named anew: each by a hash of its tokens,
chained to that of the block before it. For each such name one integer has a bit per endpoint, as in the estimated
index. What was stored before the picker began to listen is not known; a prompt that continues it is not found.

A server tells of a prompt's blocks when it has computed them. Until then, and for `EXPECTED_SECONDS` at most, what was
sent there counts as stored: a burst of like prompts is not spread over servers that none has told yet."""

from __future__ import annotations

import struct
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import xxhash

from headrace.prefixes.kv_events import AllCleared, Batch, BlockHash, BlocksRemoved, BlocksStored
from headrace.scheduling import EndpointState, Facts
from headrace.scheduling.tokens import MOST_TOKENS, given_tokens

_hash = xxhash.xxh3_64_intdigest

# Blocks over all endpoints. One costs about 200 bytes with its share of all tables.
MAX_BLOCKS = 1_000_000
_FEWEST_PER_ENDPOINT = 512
# As long as llm-d-router's speculative entries live.
EXPECTED_SECONDS = 2.0


def _chain(parent: int, tokens: Sequence[int]) -> int:
    return _hash(_packer(len(tokens)).pack(*tokens), parent)


@lru_cache(maxsize=64)
def _packer(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}I")


def _root(adapter: str, block_size: int) -> int:
    """The start of a chain: caches are per adapter, and blocks of another size are other blocks."""
    return _hash(adapter.encode("utf-8", "replace"), block_size)


def _chained(adapter: str, tokens: Sequence[int], block_size: int) -> Iterator[int]:
    """Our names for a prompt's whole blocks, as far as they are looked at."""
    chained = _root(adapter, block_size)
    for start in range(0, min(len(tokens), MOST_TOKENS) - block_size + 1, block_size):
        chained = _chain(chained, tokens[start : start + block_size])
        yield chained


class _Cache:
    """One server's blocks: the server's names for them and ours, oldest first."""

    def __init__(self, bit: int) -> None:
        self.mask = 1 << bit
        self.blocks: dict[BlockHash, int] = {}
        # Of our names that stand for several of the server's (by salt, or by image), how many more.
        self.more: Counter[int] = Counter()
        self.block_size = 0
        self.sequence = -1


class PreciseIndex:
    """Token blocks to endpoints. Belongs to one event loop. A data producer, after the estimated index."""

    def __init__(self, *, max_blocks: int = MAX_BLOCKS) -> None:
        self._max_blocks = max_blocks
        self._caches: dict[str, _Cache] = {}
        self._keys: dict[int, str] = {}
        self._free_bits: list[int] = []
        self._masks: dict[int, int] = {}
        self._expected: dict[int, int] = {}
        self._expecting: deque[tuple[float, int, int]] = deque()

    def __len__(self) -> int:
        """How many distinct blocks are known."""
        return len(self._masks)

    def entries(self, key: str) -> int:
        """How many blocks an endpoint has told of."""
        cache = self._caches.get(key)
        return len(cache.blocks) if cache is not None else 0

    def speaks(self, key: str) -> bool:
        """Whether an endpoint has told anything: of the others this index knows nothing."""
        cache = self._caches.get(key)
        return cache is not None and cache.sequence >= 0

    def speaking(self) -> list[str]:
        """The endpoints that have told something."""
        return [key for key, cache in self._caches.items() if cache.sequence >= 0]

    def add(self, key: str) -> None:
        """An endpoint joins, with nothing known of it."""
        if key not in self._caches:
            bit = self._free_bits.pop() if self._free_bits else len(self._caches)
            self._caches[key] = _Cache(bit)
            self._keys[bit] = key

    def remove(self, key: str) -> None:
        """An endpoint leaves."""
        cache = self._caches.pop(key, None)
        if cache is not None:
            self._clear(cache)
            bit = cache.mask.bit_length() - 1
            del self._keys[bit]
            self._free_bits.append(bit)

    def apply(self, key: str, batch: Batch) -> bool:
        """An endpoint's server told this. True if its cache was emptied: by its own word, or as its numbers go back,
        which they do when it starts anew."""
        cache = self._caches.get(key)
        if cache is None:
            return False
        emptied = batch.sequence <= cache.sequence and not batch.continued
        if emptied:
            self._clear(cache)
        cache.sequence = batch.sequence
        for event in batch.events:
            if isinstance(event, BlocksStored):
                self._store(cache, event)
            elif isinstance(event, BlocksRemoved):
                for name in event.hashes:
                    self._drop(cache, name)
            elif isinstance(event, AllCleared):
                self._clear(cache)
                emptied = True
        return emptied

    def disconnected(self, key: str) -> None:
        """The connection to an endpoint's server broke, as it does when that starts anew: what it held may be gone.

        Its numbers need not tell: those of a new server can be where the old one's were by the time it is heard."""
        cache = self._caches.get(key)
        if cache is not None:
            self._clear(cache)

    def block_sizes(self) -> frozenset[int]:
        """The sizes of blocks, in tokens, that the servers use."""
        return frozenset(cache.block_size for cache in self._caches.values() if cache.block_size)

    def expect(self, key: str, adapter: str, tokens: Sequence[int], now: float) -> None:
        """A prompt was sent to an endpoint: its server will have the blocks soon."""
        cache = self._caches.get(key)
        if cache is None or not cache.block_size:
            return
        for chained in _chained(adapter, tokens, cache.block_size):
            self._expected[chained] = self._expected.get(chained, 0) | cache.mask
            self._expecting.append((now, chained, cache.mask))

    def prepare(self, facts: Facts, states: Sequence[EndpointState]) -> None:
        """How much of a prompt whose tokens are known each endpoint has, in place of what is estimated of it."""
        tokens = facts.tokens = given_tokens(facts.request)
        if tokens is not None:
            facts.block_tokens, facts.prefix_blocks, facts.prefix_matches = in_common(
                self, _adapter(facts), tokens, facts.now, facts.prefix_matches, facts.block_tokens
            )

    def picked(self, state: EndpointState, facts: Facts) -> None:
        """The prompt goes to an endpoint."""
        if facts.tokens is not None:
            self.expect(state.key, _adapter(facts), facts.tokens, facts.now)

    def expire(self, now: float) -> None:
        """Drop what was expected too long ago."""
        expecting = self._expecting
        while expecting and now - expecting[0][0] >= EXPECTED_SECONDS:
            _, chained, mask = expecting.popleft()
            left = self._expected.get(chained, 0) & ~mask
            if left:
                self._expected[chained] = left
            else:
                self._expected.pop(chained, None)

    def matches(self, adapter: str, tokens: Sequence[int], block_size: int, now: float) -> dict[str, int]:
        """How many of a prompt's first blocks of this size each endpoint has; endpoints with none are left out."""
        self.expire(now)
        masks, expected = self._masks, self._expected
        found: dict[str, int] = {}
        alive, length = -1, 0
        for chained in _chained(adapter, tokens, block_size):
            after = alive & (masks.get(chained, 0) | expected.get(chained, 0))
            if length:
                self._note(found, alive & ~after, length)
            alive = after
            if not alive:
                return found
            length += 1
        if length:
            self._note(found, alive, length)
        return found

    def _note(self, found: dict[str, int], bits: int, length: int) -> None:
        while bits:
            lowest = bits & -bits
            # An endpoint may have gone since something was expected of it.
            key = self._keys.get(lowest.bit_length() - 1)
            if key is not None:
                found[key] = length
            bits ^= lowest

    def _store(self, cache: _Cache, event: BlocksStored) -> None:
        size = event.block_size
        cache.block_size = size
        if event.adapter is None:
            # Known by a number that only the server can tell a name for.
            return
        chained = _root(event.adapter, size) if event.parent is None else cache.blocks.get(event.parent)
        if chained is None:
            return
        for number, name in enumerate(event.hashes):
            chained = _chain(chained, event.tokens[number * size : (number + 1) * size])
            self._drop(cache, name)
            cache.blocks[name] = chained
            mask = self._masks.get(chained, 0)
            if mask & cache.mask:
                cache.more[chained] += 1
            else:
                self._masks[chained] = mask | cache.mask
        most = max(_FEWEST_PER_ENDPOINT, self._max_blocks // len(self._caches))
        while len(cache.blocks) > most:
            self._drop(cache, next(iter(cache.blocks)))

    def _drop(self, cache: _Cache, name: BlockHash) -> None:
        ours = cache.blocks.pop(name, None)
        if ours is None:
            return
        if ours in cache.more:
            cache.more[ours] -= 1
            if not cache.more[ours]:
                del cache.more[ours]
        else:
            self._forget(cache, ours)

    def _forget(self, cache: _Cache, ours: int) -> None:
        left = self._masks.get(ours, 0) & ~cache.mask
        if left:
            self._masks[ours] = left
        else:
            self._masks.pop(ours, None)

    def _clear(self, cache: _Cache) -> None:
        for ours in cache.blocks.values():
            self._forget(cache, ours)
        cache.blocks.clear()
        cache.more.clear()


def _adapter(facts: Facts) -> str:
    return facts.request.model if facts.is_adapter else ""


def in_common(
    index: PreciseIndex,
    adapter: str,
    tokens: Sequence[int],
    now: float,
    estimated: Mapping[str, int],
    estimated_size: int,
) -> tuple[int, int, dict[str, int]]:
    """What is known of a prompt given as tokens: tokens a block, blocks of the prompt, and matches by endpoint.

    Of servers that tell nothing the estimate is taken, in the same unit: the smallest block size of those that tell."""
    sizes = index.block_sizes()
    unit = min(sizes, default=estimated_size)
    found = {key: length * estimated_size // unit for key, length in estimated.items() if not index.speaks(key)}
    for size in sizes:
        for key, length in index.matches(adapter, tokens, size, now).items():
            found[key] = max(found.get(key, 0), length * size // unit)
    return unit, min(len(tokens), MOST_TOKENS) // unit, {key: length for key, length in found.items() if length}
