"""Work that a message leaves behind, done in bounded steps with a turn for others between."""

from __future__ import annotations

from collections.abc import Iterator


class Work:
    """The steps that are left, None without: each gives the answers that it has come to."""

    __slots__ = ("steps",)

    def __init__(self) -> None:
        self.steps: Iterator[list[bytes]] | None = None

    def begin(self, steps: Iterator[list[bytes]]) -> None:
        """Have these steps to do, in place of what was left."""
        self.steps = steps

    def go_on(self) -> list[bytes]:
        """Do the next step; nothing where none is left."""
        steps = self.steps
        if steps is None:
            return []
        found = next(steps, None)
        # A step may have begun other work.
        if found is None and self.steps is steps:
            self.steps = None
        return found or []

    def finish(self) -> list[bytes]:
        """Do all that is left, at once."""
        out: list[bytes] = []
        while self.steps is not None:
            out += self.go_on()
        return out

    def stop(self) -> None:
        """Leave what is left undone."""
        self.steps = None
