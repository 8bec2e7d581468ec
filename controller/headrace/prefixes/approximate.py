"""An estimate of which prompt prefixes each endpoint's cache holds: what was sent where, least recently used forgotten.

Prompts are cut into blocks and the blocks hashed in a chain, so that equal hashes mean equal beginnings. For each hash
one integer has a bit per endpoint. Source: the reference picker's approximate prefix index; chained hashes as in vLLM's
automatic prefix caching."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from struct import Struct

import xxhash

from headrace.scheduling import EndpointState, Facts, PrefixSettings
from headrace.scheduling.slots import Matches, Slots

_hash = xxhash.xxh3_64_intdigest

# Entries over all endpoints. One costs about 150 bytes with its share of the tables.
MAX_ENTRIES = 1_000_000
_FEWEST_PER_ENDPOINT = 512


def block_hashes(model: str, prompt: bytes, settings: PrefixSettings) -> list[int]:
    """The chained hashes of a prompt's whole blocks; the model's name starts the chain (caches are per adapter)."""
    size = settings.block_bytes
    blocks = _cut(size, min(len(prompt) // size, settings.max_blocks)).unpack_from(prompt)
    chained = _hash(model.encode("utf-8", "replace"))
    return [chained := _hash(block, chained) for block in blocks]


@lru_cache(maxsize=4096)
def _cut(size: int, count: int) -> Struct:
    """Cuts a text into so many blocks."""
    return Struct(f"{size}s" * count)


class _Run:
    """The blocks that a prompt has brought to an endpoint, in their order, behind `parent`, which was known there."""

    __slots__ = ("blocks", "parent")

    def __init__(self, blocks: list[int], parent: int | None) -> None:
        self.blocks = blocks
        self.parent = parent


class _Cache:
    """What one endpoint is thought to hold. A prompt costs as much as it brings: of what is known already, only the
    run of its last block is moved. Blocks that others follow stay as long as these do, for they need them."""

    __slots__ = ("_followers", "_runs", "homes", "mask")

    def __init__(self, mask: int) -> None:
        self.mask = mask
        # Each block, and the run that it is in.
        self.homes: dict[int, _Run] = {}
        # Least recently used first.
        self._runs: OrderedDict[_Run, None] = OrderedDict()
        # How many runs follow a block.
        self._followers: Counter[int] = Counter()

    def use(self, hashes: Sequence[int]) -> list[int]:
        """A prompt of these blocks was sent there. Gives those that it brings."""
        homes = self.homes
        # A block is not there without those before it.
        known, count = 0, len(hashes)
        if count and hashes[-1] in homes:
            known = count
        while known < count:
            middle = (known + count) // 2
            if hashes[middle] in homes:
                known = middle + 1
            else:
                count = middle
        new = list(hashes[known:])
        if not new:
            if hashes:
                self._runs.move_to_end(homes[hashes[-1]])
            return new
        return self.bring(new, hashes[known - 1] if known else None)

    def bring(self, new: list[int], parent: int | None) -> list[int]:
        """These blocks come, behind the parent. Gives them."""
        homes = self.homes
        if parent is not None:
            self._followers[parent] += 1
        run = _Run(new, parent)
        self._runs[run] = None
        homes.update(dict.fromkeys(new, run))
        return new

    def forget(self, count: int) -> list[int]:
        """Forget so many blocks, of what is least recently used the last ones first. Gives them."""
        gone: list[int] = []
        followers = self._followers
        while len(gone) < count and self._runs:
            run = next(iter(self._runs))
            blocks = run.blocks
            while blocks and len(gone) < count and blocks[-1] not in followers:
                gone.append(blocks.pop())
            if blocks:
                if blocks[-1] in followers:
                    # What follows is used more recently than this.
                    self._runs.move_to_end(run)
                continue
            del self._runs[run]
            if run.parent is not None:
                followers[run.parent] -= 1
                if not followers[run.parent]:
                    del followers[run.parent]
        return [block for block in gone if self.homes.pop(block, None) is not None]

    def blocks(self) -> list[int]:
        """All of them, least recently used first."""
        return [block for run in self._runs for block in reversed(run.blocks)]

    def clear(self) -> None:
        """Forget all."""
        self.homes.clear()
        self._runs.clear()
        self._followers.clear()


class PrefixIndex:
    """Block hash to endpoints, and per endpoint the order in which blocks were last used. A data producer."""

    def __init__(self, settings: PrefixSettings, *, max_entries: int = MAX_ENTRIES, slots: Slots | None = None) -> None:
        self.settings = settings
        self._slots = slots if slots is not None else Slots()
        self._max_entries = max_entries
        self._masks: dict[int, int] = {}
        self._caches: dict[str, _Cache] = {}

    def __len__(self) -> int:
        """How many distinct blocks are known."""
        return len(self._masks)

    def reconfigure(self, settings: PrefixSettings) -> None:
        """Other settings from now on. Where blocks get another size, those known mean nothing and are forgotten."""
        if settings.block_bytes != self.settings.block_bytes:
            self._masks.clear()
            for cache in self._caches.values():
                cache.clear()
        self.settings = settings

    def add(self, key: str) -> None:
        """An endpoint joins, with nothing cached."""
        if key not in self._caches:
            self._caches[key] = _Cache(1 << self._slots.take(key))

    def remove(self, key: str) -> None:
        """An endpoint leaves; its slot may be given to another."""
        cache = self._caches.pop(key, None)
        if cache is not None:
            self._clear(cache.homes, cache.mask)
            self._slots.release(key)

    def empty(self, key: str) -> None:
        """An endpoint's cache was emptied."""
        cache = self._caches.get(key)
        if cache is not None:
            self._clear(cache.homes, cache.mask)
            cache.clear()

    def matches(self, hashes: Sequence[int]) -> Matches:
        """How many of the first blocks each endpoint should have; endpoints with none are left out."""
        masks, slots = self._masks, self._slots.shown()
        alive = masks.get(hashes[0], 0) if hashes else 0
        groups: list[tuple[int, int]] = []
        count, length = len(hashes), 1
        while alive:
            # The blocks that all of these have, in steps that double: who has a block has those before it.
            step, least = 1, length
            while least + step <= count and masks.get(hashes[least + step - 1], 0) & alive == alive:
                least += step
                step *= 2
            while step := step // 2:
                if least + step <= count and masks.get(hashes[least + step - 1], 0) & alive == alive:
                    least += step
            after = alive & masks.get(hashes[least], 0) if least < count else 0
            groups.append((least, alive & ~after))
            alive, length = after, least + 1
        return Matches(groups, slots)

    def insert(self, hashes: Sequence[int], key: str, *, cache_tokens: int = 0) -> None:
        """A prompt of these blocks was sent to an endpoint. Its last blocks are forgotten first: they need the ones
        before them.

        `cache_tokens`: how many tokens its KV cache holds, 0 where that is not known."""
        cache = self._caches.get(key)
        if cache is not None:
            self._take(cache, cache.use(hashes), cache_tokens)

    def insert_told(self, blocks: Iterable[int], key: str, *, cache_tokens: int = 0) -> None:
        """The same of what another replica tells: blocks of several prompts, perhaps."""
        cache = self._caches.get(key)
        if cache is None:
            return
        told = list(dict.fromkeys(blocks))
        new = [block for block in told if block not in cache.homes]
        if not new:
            cache.use(told)
            return
        before = told[: told.index(new[0])]
        self._take(cache, cache.bring(new, before[-1] if before else None), cache_tokens)

    def _take(self, cache: _Cache, new: list[int], cache_tokens: int) -> None:
        """These blocks have come to a cache; what it has no room for goes."""
        masks, mask = self._masks, cache.mask
        if masks.keys().isdisjoint(new):
            masks.update(dict.fromkeys(new, mask))
        else:
            for block in new:
                masks[block] = masks.get(block, 0) | mask
        limit = min(
            self.settings.capacity(cache_tokens), max(_FEWEST_PER_ENDPOINT, self._max_entries // len(self._caches))
        )
        if len(cache.homes) > limit:
            self._clear(cache.forget(len(cache.homes) - limit), mask)

    def prepare(self, facts: Facts, states: Sequence[EndpointState]) -> None:
        """How much of the prompt each endpoint should have."""
        request, settings = facts.request, self.settings
        facts.block_tokens = settings.block_tokens
        if request.prompt:
            hashes = facts.prefix_hashes = block_hashes(request.model, request.prompt, settings)
            facts.prefix_blocks, facts.prefix_matches = len(hashes), self.matches(hashes)

    def picked(self, state: EndpointState, facts: Facts) -> None:
        """The prompt goes to an endpoint."""
        self.insert(facts.prefix_hashes, state.key, cache_tokens=state.cache_tokens)

    def endpoints(self) -> list[str]:
        """Those that are known."""
        return list(self._caches)

    def blocks(self, key: str) -> list[int]:
        """What an endpoint is thought to hold, least recently used first."""
        cache = self._caches.get(key)
        return cache.blocks() if cache is not None else []

    def entries(self, key: str) -> int:
        """How many blocks an endpoint is thought to hold."""
        cache = self._caches.get(key)
        return len(cache.homes) if cache is not None else 0

    def _clear(self, blocks: Iterable[int], mask: int) -> None:
        """These blocks are no longer in the caches of this set."""
        masks = self._masks
        for block in blocks:
            left = masks[block] & ~mask
            if left:
                masks[block] = left
            else:
                del masks[block]
