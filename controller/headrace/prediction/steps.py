"""How long a server's steps take, learnt from the counters of its page.

A step computes prompt tokens and writes one token of each answer, so a server that is busy all the time between two
pages has spent

    seconds = a * steps + b * prompt tokens + c * written tokens

a, b and c are those of `PRIOR`, each times a factor. The factors are found by least squares over the last seconds,
drawn to those of the server's group, and the group's to 1. Older windows count less. Pure: times are the caller's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Window(NamedTuple):
    """What a server did between two pages while it was busy."""

    seconds: float
    steps: float
    prompt: float
    written: float


class StepTimes(NamedTuple):
    """Seconds for each step, for each prompt token, and for each token written."""

    step: float
    prompt: float
    written: float

    def expected(self, window: Window) -> float:
        """The seconds that a window's work should have taken."""
        return window.steps * self.step + window.prompt * self.prompt + window.written * self.written


# An 8B model in 16 bits on one A100: only where nothing has been learnt yet. See simulator/timing.py.
PRIOR = StepTimes(0.010, 1e-4, 2e-4)
# Attention makes a token dearer the more tokens are before it: twice as dear after so many. 16e9 operations a token
# over 4 x 32 layers x 4096 a pair, for an 8B model; 53,000 for one of 70B.
_CONTEXT = 32_768.0
# Seconds of busy time after which a window counts half: a server's, a group's.
SERVER_HALF_LIFE, GROUP_HALF_LIFE = 3.0, 60.0
# Seconds without a window after which what is known of a server counts half: it is tried again, and may be better.
_IDLE_HALF_LIFE = 20.0
# What draws a server to its group, and a group to the prior: the whole as much as windows of so many seconds, the parts
# as much as windows whose squares come to this.
_DRAWN, _RIDGE = 0.2, 0.01
# A window that took so many times what was expected counts less: the server may have stood idle in it.
_TOO_LONG = 2.0

# No server is so many times faster than it should be: a page that says so is wrong, and must not draw all requests.
_FASTEST = 1 / 8
# Nor does any do more in a second.
_MOST_TOKENS = 1e7
_LONGEST_WINDOW = 600.0

Vector = tuple[float, float, float]
_ONES: Vector = (1.0, 1.0, 1.0)


def weighted_tokens(computed: int, before: int) -> float:
    """Prompt tokens to be computed, after so many that the cache has, in tokens without any attention."""
    return computed * (1.0 + (before + computed / 2) / _CONTEXT)


@dataclass(slots=True)
class Factors:
    """Sums over windows, and the factors that they come to."""

    half_life: float
    # Sums of products of the parts' expected seconds; of the parts and the window's seconds; of parts; of seconds.
    products: list[float] = field(default_factory=lambda: [0.0] * 6)
    with_seconds: list[float] = field(default_factory=lambda: [0.0] * 3)
    parts: list[float] = field(default_factory=lambda: [0.0] * 3)
    seconds: float = 0.0

    def fade(self, seconds: float, half_life: float) -> None:
        """Let what is known count less, after so many seconds."""
        keep: float = 0.5 ** (seconds / half_life)
        self.products = [value * keep for value in self.products]
        self.with_seconds = [value * keep for value in self.with_seconds]
        self.parts = [value * keep for value in self.parts]
        self.seconds *= keep

    def add(self, window: Window, weight: float = 1.0) -> None:
        """Learn from a window."""
        self.fade(window.seconds, self.half_life)
        x, y, z = _expected(window)
        for at, value in enumerate((x * x, x * y, x * z, y * y, y * z, z * z)):
            self.products[at] += weight * value
        for at, value in enumerate((x, y, z)):
            self.with_seconds[at] += weight * value * window.seconds
            self.parts[at] += weight * value
        self.seconds += weight * window.seconds

    def solve(self, drawn_to: Vector) -> Vector:
        """The factors: first how many times slower the whole is, then what is particular to each part."""
        expected = sum(part * factor for part, factor in zip(self.parts, drawn_to, strict=True))
        slower = max(_FASTEST, (self.seconds + _DRAWN) / (expected + _DRAWN))
        prior = [slower * factor for factor in drawn_to]
        xx, xy, xz, yy, yz, zz = self.products
        ridge = _RIDGE
        a, b, c = xx + ridge, yy + ridge, zz + ridge
        u, v, w = (given + ridge * factor for given, factor in zip(self.with_seconds, prior, strict=True))
        minor_x, minor_y, minor_z = b * c - yz * yz, xz * yz - xy * c, xy * yz - b * xz
        determinant = a * minor_x + xy * minor_y + xz * minor_z
        found = (
            (u * minor_x + v * minor_y + w * minor_z) / determinant,
            (u * minor_y + v * (a * c - xz * xz) + w * (xy * xz - a * yz)) / determinant,
            (u * minor_z + v * (xy * xz - a * yz) + w * (a * b - xy * xy)) / determinant,
        )
        # No part is much cheaper or dearer than the whole suggests: that is noise.
        x, y, z = (min(4 * p, max(p / 4, f)) for f, p in zip(found, prior, strict=True))
        return x, y, z


def makes_sense(window: Window) -> bool:
    """Whether a window can be learnt from. Servers write its numbers, and may write anything."""
    seconds, *done = window
    if not 0 < seconds <= _LONGEST_WINDOW or window.steps < 1:
        return False
    return all(0 <= value <= _MOST_TOKENS * seconds for value in done)


def _expected(window: Window) -> Vector:
    return window.steps * PRIOR.step, window.prompt * PRIOR.prompt, window.written * PRIOR.written


@dataclass(slots=True)
class Group:
    """Servers that should be alike: of one engine and kind of accelerator."""

    sums: Factors = field(default_factory=lambda: Factors(GROUP_HALF_LIFE))
    factors: Vector = _ONES

    def add(self, window: Window) -> None:
        """A window of one of them."""
        self.sums.add(window)
        self.factors = self.sums.solve(_ONES)


@dataclass(slots=True)
class ServerSteps:
    """One server's step times."""

    group: Group
    sums: Factors = field(default_factory=lambda: Factors(SERVER_HALF_LIFE))
    factors: Vector = _ONES
    learnt_at: float | None = None

    def add(self, window: Window, now: float) -> None:
        """Learn from a window that has ended now."""
        self.idle(now)
        long = _TOO_LONG * self.times.expected(window) / window.seconds
        self.sums.add(window, min(1.0, long * long))
        self.group.add(window)
        self.factors = self.sums.solve(self.group.factors)

    def idle(self, now: float) -> None:
        """Nothing has been seen of it until now."""
        if self.learnt_at is not None:
            self.sums.fade(now - self.learnt_at, _IDLE_HALF_LIFE)
            self.factors = self.sums.solve(self.group.factors)
        self.learnt_at = now

    @property
    def times(self) -> StepTimes:
        """What its steps take."""
        factors = self.factors if self.learnt_at is not None else self.group.factors
        return StepTimes(*(prior * factor for prior, factor in zip(PRIOR, factors, strict=True)))
