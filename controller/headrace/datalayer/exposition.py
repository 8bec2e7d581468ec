"""Reads a Prometheus text page piece by piece, as it arrives, for the few metrics that are wanted.

The writer of a page is not trusted: a line, a page, what is kept of it, and the CPU time it costs are bounded.
Source: Prometheus text exposition format 0.0.4."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from headrace.config.limits import STEP_BYTES, ByteBudget, Held


class CostlyPage(ValueError):  # noqa: N818
    """A page beyond a limit; the message names the limit."""


@dataclass(frozen=True, kw_only=True)
class PageLimits:
    """Bytes, and seconds of CPU for one page. A page of vLLM 0.32.0 has 55 to 75 KB and takes 0.3 ms."""

    line_bytes: int = 64 << 10
    page_bytes: int = 16 << 20
    kept_bytes: int = 512 << 10
    cpu_seconds: float = 0.1


DEFAULT_LIMITS = PageLimits()


class Sample(NamedTuple):
    """One sample: `labels` is the text between its braces, "" without; the value is finite and not negative."""

    name: str
    labels: str
    value: float


_ESCAPE = re.compile(r"\\(.)")
# Possessive: what was taken is never tried another way, so the time is linear whatever a line looks like.
_LABEL = re.compile(r'(?<![a-zA-Z0-9_])([a-zA-Z_][a-zA-Z0-9_]*+)\s*+=\s*+"((?:[^"\\]++|\\.)*+)"')


@lru_cache(maxsize=64)
def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    """Finds the lines of these metrics; the rest of a page, most of it, is never split."""
    alternatives = "|".join(map(re.escape, names))
    return re.compile(
        rf'^({alternatives})(?:\{{((?:[^"}}\n]++|"(?:[^"\\\n]++|\\.)*+")*+)\}})?+[ \t]++(\S++)', re.MULTILINE
    )


class PageReader:
    """Reads one page. Give the pieces to `feed`, then call `end`: both yield the samples of `names` in order.

    Values that make no sense (NaN, infinite, negative, no number) are left out. `clock` gives seconds of CPU time; what
    the consumer does with a sample before it asks for the next counts too. `kept` is the budget of what is kept of all
    pages: call `close` in the end."""

    def __init__(
        self,
        names: Iterable[str],
        limits: PageLimits = DEFAULT_LIMITS,
        *,
        clock: Callable[[], float] = time.thread_time,
        kept: ByteBudget | None = None,
    ) -> None:
        self._pattern = _pattern(tuple(sorted(names)))
        self._limits = limits
        self._clock = clock
        # Says that the page was too long, and is known in part only; "" if it was not.
        self.cut = ""
        self._rest = bytearray()
        self._used = 0.0
        self._size = 0
        self._kept = Held(kept or ByteBudget(limits.kept_bytes, small=limits.kept_bytes))

    def feed(self, piece: bytes) -> Iterator[Sample]:
        """The samples of the lines that this piece completes; nothing beyond the limit of the page's size, where `cut`
        is set. Raises CostlyPage."""
        room = self._limits.page_bytes - self._size
        if len(piece) > room:
            self.cut = f"the page is over {self._limits.page_bytes} bytes: cut off"
            piece = piece[:room]
        self._size += len(piece)
        for at in range(0, len(piece), STEP_BYTES):
            yield from self._block(piece[at : at + STEP_BYTES])

    def end(self) -> Iterator[Sample]:
        """The samples of a last line without an end, if that is not where the page was cut. Raises CostlyPage."""
        if not self.cut:
            yield from self._samples(bytes(self._rest))

    def keep(self, count: int) -> None:
        """So many bytes more are kept of the page. Raises CostlyPage."""
        if self._kept.size + count > self._limits.kept_bytes:
            raise CostlyPage(f"the wanted series of the page have over {self._limits.kept_bytes} bytes")
        if not self._kept.add(count):
            raise CostlyPage("the pages of other servers take all the memory there is for them")

    def close(self) -> None:
        """The page is read, or given up."""
        self._kept.release()

    def _block(self, block: bytes) -> Iterator[Sample]:
        end = block.rfind(b"\n") + 1
        if not end:
            self._rest += block
            self._check_line(len(self._rest))
            return
        lines = bytes(self._rest) + block[:end] if self._rest else block[:end]
        self._rest = bytearray(block[end:])
        # Of several lines only the first can be longer than a block.
        self._check_line(lines.index(b"\n"))
        yield from self._samples(lines)

    def _check_line(self, size: int) -> None:
        if size > self._limits.line_bytes:
            raise CostlyPage(f"a line has over {self._limits.line_bytes} bytes")

    def _samples(self, lines: bytes) -> Iterator[Sample]:
        started = self._clock()
        for found in self._pattern.finditer(lines.decode("utf-8", "replace")):
            try:
                value = float(found[3])
            except ValueError:
                continue
            if 0.0 <= value < math.inf:
                yield Sample(found[1], found[2] or "", value)
        self._used += self._clock() - started
        if self._used > self._limits.cpu_seconds:
            raise CostlyPage(f"reading the page took over {self._limits.cpu_seconds * 1000:g} ms of CPU time")


def read_labels(text: str) -> tuple[tuple[str, str], ...]:
    """The labels of a series, from the text between its braces."""
    return tuple((found[1], unescape(found[2])) for found in _LABEL.finditer(text))


def unescape(value: str) -> str:
    """A label's value as it was before it was written into a page."""
    return _ESCAPE.sub(lambda found: "\n" if found[1] == "n" else found[1], value) if "\\" in value else value
