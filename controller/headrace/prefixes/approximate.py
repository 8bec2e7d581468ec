"""An estimate of which prompt prefixes each endpoint's cache holds: what was sent where, least recently used forgotten.

Prompts are cut into blocks and the blocks hashed in a chain, so that equal hashes mean equal beginnings. For each hash
one integer has a bit per endpoint. Source: the reference picker's approximate prefix index; chained hashes as in vLLM's
automatic prefix caching."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import xxhash

from headrace.scheduling import EndpointState, Facts, PrefixSettings
from headrace.scheduling.slots import Matches, Slots

_hash = xxhash.xxh3_64_intdigest

# Entries over all endpoints. One costs about 150 bytes with its share of both tables.
MAX_ENTRIES = 1_000_000
_FEWEST_PER_ENDPOINT = 512


def block_hashes(model: str, prompt: bytes, settings: PrefixSettings) -> list[int]:
    """The chained hashes of a prompt's whole blocks; the model's name starts the chain (caches are per adapter)."""
    size = settings.block_bytes
    chained = _hash(model.encode("utf-8", "replace"))
    hashes = []
    for start in range(0, min(len(prompt) // size, settings.max_blocks) * size, size):
        chained = _hash(prompt[start : start + size], chained)
        hashes.append(chained)
    return hashes


class PrefixIndex:
    """Block hash to endpoints, and per endpoint the order in which blocks were last used. A data producer."""

    def __init__(self, settings: PrefixSettings, *, max_entries: int = MAX_ENTRIES, slots: Slots | None = None) -> None:
        self.settings = settings
        self._slots = slots if slots is not None else Slots()
        self._max_entries = max_entries
        self._masks: dict[int, int] = {}
        self._used: dict[str, OrderedDict[int, None]] = {}
        # Of each endpoint, the set that has it alone.
        self._bits: dict[str, int] = {}

    def __len__(self) -> int:
        """How many distinct blocks are known."""
        return len(self._masks)

    def reconfigure(self, settings: PrefixSettings) -> None:
        """Other settings from now on. Where blocks get another size, those known mean nothing and are forgotten."""
        if settings.block_bytes != self.settings.block_bytes:
            self._masks.clear()
            for used in self._used.values():
                used.clear()
        self.settings = settings

    def add(self, key: str) -> None:
        """An endpoint joins, with nothing cached."""
        if key in self._bits:
            return
        self._bits[key] = 1 << self._slots.take(key)
        self._used[key] = OrderedDict()

    def remove(self, key: str) -> None:
        """An endpoint leaves; its slot may be given to another."""
        bit = self._bits.pop(key, None)
        if bit is None:
            return
        for block in self._used.pop(key):
            self._clear(block, bit)
        self._slots.release(key)

    def empty(self, key: str) -> None:
        """An endpoint's cache was emptied."""
        if key in self._bits:
            self.remove(key)
            self.add(key)

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
        """A prompt was sent to an endpoint. Its last blocks are forgotten first: they need the ones before them.

        `cache_tokens`: how many tokens its KV cache holds, 0 where that is not known."""
        used = self._used.get(key)
        if used is None:
            return
        mask = self._bits[key]
        masks = self._masks
        for block in reversed(hashes):
            if block in used:
                used.move_to_end(block)
            else:
                used[block] = None
                masks[block] = masks.get(block, 0) | mask
        limit = min(
            self.settings.capacity(cache_tokens), max(_FEWEST_PER_ENDPOINT, self._max_entries // len(self._bits))
        )
        while len(used) > limit:
            block, _ = used.popitem(last=False)
            self._clear(block, mask)

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
        return list(self._used)

    def blocks(self, key: str) -> list[int]:
        """What an endpoint is thought to hold, least recently used first."""
        return list(self._used.get(key, ()))

    def entries(self, key: str) -> int:
        """How many blocks an endpoint is thought to hold."""
        return len(self._used.get(key, ()))

    def _clear(self, block: int, mask: int) -> None:
        left = self._masks[block] & ~mask
        if left:
            self._masks[block] = left
        else:
            del self._masks[block]
