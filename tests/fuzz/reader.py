"""Choices out of a byte string: the same bytes give the same choices, and any bytes give some."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Reader:
    """Takes a byte string from the front. Behind its end there are zeros, so that nothing has to be checked."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def done(self) -> bool:
        """Whether the bytes are used up."""
        return self._at >= len(self._data)

    def byte(self) -> int:
        """0 to 255."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def flag(self) -> bool:
        """True or false."""
        return bool(self.byte() & 1)

    def below(self, limit: int) -> int:
        """0 to limit - 1, for limits up to 65,536."""
        return (self.byte() << 8 | self.byte() if limit > 256 else self.byte()) % limit

    def choice(self, values: Sequence[T]) -> T:
        """One of the values."""
        return values[self.below(len(values))]

    def take(self, size: int) -> bytes:
        """The next bytes, fewer at the end."""
        begun, self._at = self._at, self._at + size
        return self._data[begun : self._at]

    def piece(self) -> bytes:
        """Bytes of a length that stands before them: mostly short."""
        size = self.byte()
        return self.take(size if size < 255 else self.below(1 << 16))

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))

    def text(self) -> str:
        """A piece as text."""
        return self.piece().decode("utf-8", "replace")

    def cut(self, content: bytes) -> list[bytes]:
        """The content in up to eight pieces, empty ones among them."""
        edges = sorted(self.below(len(content) + 1) if len(content) < 1 << 16 else 0 for _ in range(self.below(8)))
        edges = [0, *edges, len(content)]
        return [content[begin:end] for begin, end in itertools.pairwise(edges)]
