"""Durations and quantities as operators write them, the same in flags, files, annotations and objects.

Every function takes text and raises ValueError, whose message is the fix: the caller knows the field and the value."""

from __future__ import annotations

import re
from fractions import Fraction

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST_SECONDS = 10 * 366 * 86_400
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][0-9]{1,2})?")
_FACTORS = {"": Fraction(1), "m": Fraction(1, 1000)} | {
    name: Fraction(base**power)
    for base, names in ((1000, "k M G T P E"), (1024, "Ki Mi Gi Ti Pi Ei"))
    for power, name in enumerate(names.split(), 1)
}
_LARGEST = 1 << 62
# Longer texts are neither: Python takes quadratic time to read a number of many digits.
_MAX_CHARACTERS = 64


def duration(text: str) -> float:
    """Seconds of a Go duration such as 200ms, 60s or 1m30s; a bare 0 is allowed. Raises ValueError."""
    if text == "0":
        return 0.0
    parts = _DURATION.findall(text) if len(text) <= _MAX_CHARACTERS else []
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError("give a duration such as 50ms, 60s or 1m30s")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if seconds > _LONGEST_SECONDS:
        raise ValueError("give a duration of at most ten years")
    return seconds


def quantity(text: str, *, rounded: bool = False) -> int:
    """The whole number of a Kubernetes quantity such as 5000, 1k, 500M or 1Gi. `rounded`: one that is not whole is
    rounded down, but never to 0. Raises ValueError."""
    found = _QUANTITY.fullmatch(text) if len(text) <= _MAX_CHARACTERS else None
    if found is None:
        raise ValueError("give a quantity such as 5000, 1k, 500M or 1Gi")
    unit = found[2] or ""
    amount = Fraction(found[1]) * (_FACTORS[unit] if unit in _FACTORS else 10 ** int(unit[1:]))
    if amount > _LARGEST:
        raise ValueError(f"give at most {_LARGEST}")
    if int(amount) != amount and not (rounded and amount > 1):
        raise ValueError("give a whole amount: m is a thousandth, use M or Mi for millions")
    return int(amount)
