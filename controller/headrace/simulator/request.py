"""One sequence in the simulated engine: what was asked, and how far it is."""

from __future__ import annotations

import enum
from array import array
from dataclasses import dataclass, field

from headrace.simulator.tokens import Writer


class Phase(enum.Enum):
    """Where a sequence is. FINISHED is final."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(enum.StrEnum):
    """Why a sequence ended, in the words of `vllm:request_success_total`."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"
    REPETITION = "repetition"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a sequence ends by itself: whichever comes first."""

    max_tokens: int
    """After this many tokens, with `FinishReason.LENGTH`."""
    natural_tokens: int | None = None
    """After this many tokens, with `FinishReason.STOP`: where the simulated model ends its text; None: nowhere."""
    stop_token_ids: frozenset[int] = frozenset()
    """After one of these tokens, with `FinishReason.STOP`, but not before `min_tokens`."""
    min_tokens: int = 0


@dataclass(eq=False, kw_only=True)
class Sequence:
    """A prompt and the answer that grows behind it. The engine alone changes it.

    Times are those given to the engine, in seconds; None until it happened.
    """

    prompt: array[int]
    limits: Limits
    writer: Writer
    adapter: str | None = None
    num_choices: int = 1
    """How many answers the request asked for; this is one of them."""
    pooling: bool = False
    """Ends after its prompt, without writing anything: an embedding."""
    arrival: float = 0.0

    phase: Phase = Phase.WAITING
    finish_reason: FinishReason | None = None
    tokens: array[int] = field(init=False)
    """Prompt and answer."""
    blocks: list[int] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    """Hashes of the full blocks of `tokens`, as far as they are needed."""
    num_computed: int = 0
    """Tokens whose KV is in the cache."""
    num_cached_blocks: int = 0
    """Blocks offered to the prefix cache already."""
    num_prefix_hits: int = 0
    """Prompt tokens found in the prefix cache when the sequence was first scheduled."""
    num_preemptions: int = 0
    deferred: bool = False
    """Passed over by the last plan for want of a LoRA slot."""
    scheduled_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    token_interval: float | None = None
    """Seconds between the last two tokens; None before the second."""
    finished_at: float | None = None

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("a prompt needs at least one token")
        if not self.pooling and self.limits.max_tokens < 1:
            raise ValueError(f"max_tokens {self.limits.max_tokens}: at least 1")
        self.tokens = self.prompt[:]

    @property
    def num_output_tokens(self) -> int:
        """Tokens written so far."""
        return len(self.tokens) - len(self.prompt)

    @property
    def output(self) -> array[int]:
        """Tokens written so far."""
        return self.tokens[len(self.prompt) :]
