"""How prompts are cut into blocks for the prefix index, and the parameters that say so."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.config.decode import Parameters, Positive, Whole
from headrace.scheduling.tokens import BYTES_A_TOKEN

# The reference picker takes blocks of fewer tokens for this many: smaller ones cost more than they tell.
_FEWEST_BLOCK_TOKENS = 64


@dataclass(frozen=True)
class PrefixSettings:
    """How prompts are cut into blocks: bytes a block, blocks of a prompt at most, blocks kept per endpoint at most.

    With `auto_tune` an endpoint that says how much its KV cache holds is taken at its word."""

    block_bytes: int = 256
    max_blocks: int = 2048
    blocks_per_endpoint: int = 31_250
    auto_tune: bool = True

    @property
    def block_tokens(self) -> int:
        """Tokens a block stands for."""
        return self.block_bytes // BYTES_A_TOKEN

    def capacity(self, cache_tokens: int) -> int:
        """How many blocks an endpoint is thought to hold at most, whose KV cache has so many tokens (0: unknown)."""
        if not self.auto_tune or not cache_tokens:
            return self.blocks_per_endpoint
        return max(1, cache_tokens // self.block_tokens)


class PrefixParameters(Parameters, frozen=True):
    """The settings in the reference picker's parameters. A token is taken as four bytes.

    Blocks below 64 tokens are raised to 64, as there. `autoTune` concerns what endpoints hold, not the size of blocks:
    one size must fit all. Of earlier releases: `blockSize` and `hashBlockSize`, in characters."""

    block_size_tokens: Positive | None = None
    block_size: Whole = 0
    hash_block_size: Whole = 0
    max_prefix_tokens_to_match: Positive | None = None
    max_prefix_blocks_to_match: Positive | None = None
    lru_capacity_per_server: Positive | None = None
    auto_tune: bool | None = None

    def applied(self, current: PrefixSettings) -> PrefixSettings:
        """The settings, where what is left out stays as it is."""
        characters = self.hash_block_size or self.block_size
        usual = max(1, characters // BYTES_A_TOKEN) if characters else current.block_tokens
        block_bytes = BYTES_A_TOKEN * max(_FEWEST_BLOCK_TOKENS, self.block_size_tokens or usual)
        longest = self.max_prefix_tokens_to_match or current.max_blocks * current.block_bytes // BYTES_A_TOKEN
        return PrefixSettings(
            block_bytes=block_bytes,
            max_blocks=self.max_prefix_blocks_to_match or max(1, longest * BYTES_A_TOKEN // block_bytes),
            blocks_per_endpoint=self.lru_capacity_per_server or current.blocks_per_endpoint,
            auto_tune=current.auto_tune if self.auto_tune is None else self.auto_tune,
        )
