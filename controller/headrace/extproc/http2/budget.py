"""The bytes that all connections may hold of messages that are not complete, or wait to be taken, by either side."""

from __future__ import annotations

from typing import Protocol


class Claimant(Protocol):
    """A stream that holds bytes: `held`, which only the budget writes."""

    held: int

    def granted(self) -> None:
        """It asked for more, had to wait, and may go on now."""


class BufferBudget:
    """While more than `total` bytes are held, streams wait in the order in which they ask for more. One at a time goes
    on nevertheless, or bodies that fill the budget together would all wait for each other.

    Twice the total is held by that one only: any other stream that would add to it has to be ended."""

    def __init__(self, total: int) -> None:
        self.held = 0
        self._total = total
        self._first: Claimant | None = None
        self._waiting: dict[Claimant, None] = {}

    def refuses(self, claimant: Claimant) -> bool:
        """Whether the claimant may not hold more than it did."""
        return self.held >= 2 * self._total and claimant is not self._first

    def hold(self, claimant: Claimant, size: int) -> None:
        """The claimant holds so many bytes now; 0 ends its part."""
        self.held += size - claimant.held
        claimant.held = size
        if not size:
            self._waiting.pop(claimant, None)
            self.step_back(claimant)
        elif self._waiting:
            self._go_on()

    def grants(self, claimant: Claimant) -> bool:
        """Whether the claimant may be sent more. If not, it is told by `granted` when it may."""
        if self.held < self._total or claimant is self._first:
            return True
        if self._first is None:
            self._first = claimant
            return True
        self._waiting[claimant] = None
        return False

    def step_back(self, claimant: Claimant) -> None:
        """The claimant needs nothing now: the next one may be first."""
        if claimant is self._first:
            self._first = None
        if self._waiting:
            self._go_on()

    def rotate(self) -> None:
        """Have another claimant be the first: this one may never come to an end. Call it every few seconds."""
        first = self._first
        if first is not None and self._waiting:
            self._waiting[first] = None
            self.step_back(first)

    def _go_on(self) -> None:
        while self._waiting and (self.held < self._total or self._first is None):
            claimant = next(iter(self._waiting))
            del self._waiting[claimant]
            if self.held >= self._total:
                self._first = claimant
            claimant.granted()
