"""The prompts that a server was sent and has, as far as is known, not computed yet.

Where answers' bodies pass by, each first token is seen. Where they do not, a server's page tells how many answers have
begun, and between two pages the prompts are thought to be computed in their order, at the rate that was learnt."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

Entry = TypeVar("Entry", bound=Hashable)
# Of a prompt that should be computed and is not, so much is thought to be left.
_OVERDUE = 0.1


class Prompt(NamedTuple):
    """A prompt's tokens that the server has to compute, as they are and weighted by what they cost (see `steps`); when
    it was sent, and after how many seconds its first token was predicted."""

    plain: int
    tokens: float
    sent_at: float = 0.0
    predicted: float = 0.0


@dataclass(slots=True)
class PromptQueue(Generic[Entry]):
    """Entries in the order they were sent. `tokens` are those still to be computed, weighted."""

    prompts: dict[Entry, Prompt] = field(default_factory=dict)
    tokens: float = 0.0
    _left: dict[Entry, float] = field(default_factory=dict)
    _drained_at: float = 0.0

    def __len__(self) -> int:
        return len(self.prompts)

    def add(self, entry: Entry, prompt: Prompt) -> None:
        """A prompt is sent. Call `drain` first."""
        self.prompts[entry] = prompt
        self._left[entry] = prompt.tokens
        self.tokens += prompt.tokens

    def drop(self, entry: Entry) -> Prompt | None:
        """A prompt is computed, or its request over. None where that was known."""
        self.tokens = max(0.0, self.tokens - self._left.pop(entry, 0.0))
        return self.prompts.pop(entry, None)

    def drain(self, now: float, seconds_a_token: float) -> None:
        """Let the server compute until now."""
        budget = (now - self._drained_at) / seconds_a_token
        # A page tells of a moment that is past.
        self._drained_at = max(now, self._drained_at)
        while self._left and budget > 0:
            entry, tokens = next(iter(self._left.items()))
            if tokens > budget:
                self._left[entry] = tokens - budget
                self.tokens -= budget
                return
            budget -= tokens
            del self._left[entry]
            self.tokens = self.tokens - tokens if self._left else 0.0

    def unseen(self, asked_at: float) -> int:
        """How many were sent after a page was asked for."""
        count = 0
        for prompt in reversed(self.prompts.values()):
            if prompt.sent_at < asked_at:
                break
            count += 1
        return count

    def begun(self, answers: int, waiting: int, unseen: int) -> list[Prompt]:
        """The page says that so many answers have begun since the last one, and that so many requests wait. The last
        `unseen` entries were sent too late for it. Gives the prompts that are computed: the oldest, for servers take
        them in their order."""
        seen = max(0, len(self.prompts) - unseen)
        oldest = list(islice(self.prompts, min(answers, seen)))
        gone = [prompt for entry in oldest if (prompt := self.drop(entry))]
        seen -= len(gone)
        if not seen:
            return gone
        # What still waits is whole, and of the rest something is left.
        left: dict[Entry, float] = {}
        for number, (entry, prompt) in enumerate(self.prompts.items()):
            known = self._left.get(entry, 0.0)
            least = prompt.tokens * (1.0 if number >= seen - waiting else _OVERDUE)
            left[entry] = max(known, least) if number < seen else known
        self._left, self.tokens = left, sum(left.values())
        return gone
