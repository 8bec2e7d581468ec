"""Durations and quantities as operators write them, the same in flags, files, annotations and objects.

Every function takes text and raises ValueError, whose message is the fix: the caller knows the field and the value."""

from __future__ import annotations

import re

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST_SECONDS = 10 * 366 * 86_400
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE]\d{1,2})?")
_FACTORS = {"": 1.0, "m": 0.001, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18} | {
    f"{prefix}i": float(1024**power) for power, prefix in enumerate("KMGTPE", 1)
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


def quantity(text: str) -> int:
    """The whole number of a Kubernetes quantity such as 5000, 1k, 500M or 1Gi. Raises ValueError."""
    found = _QUANTITY.fullmatch(text) if len(text) <= _MAX_CHARACTERS else None
    if found is None:
        raise ValueError("give a quantity such as 5000, 1k, 500M or 1Gi")
    number, unit = found[1], found[2] or ""
    if number.isdigit() and not unit:
        amount = int(number)
    else:
        amount = int(float(number) * (_FACTORS[unit] if unit in _FACTORS else 10.0 ** int(unit[1:])))
    if amount > _LARGEST:
        raise ValueError(f"give at most {_LARGEST}")
    return amount
