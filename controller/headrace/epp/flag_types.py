"""Types of flags, as Go programs read them, and the error of a flag that cannot be used."""

from __future__ import annotations

import argparse
import re


class InvalidFlag(ValueError):  # noqa: N818
    """A flag that cannot be used: names the flag, its value and the fix."""

    def __init__(self, flag: str, value: object, fix: str) -> None:
        super().__init__(f"--{flag}={value}: {fix}")


_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def duration(text: str) -> float:
    """Seconds of a Go duration such as 50ms, 2s, 1m30s; a bare 0 is allowed. For argparse."""
    if text == "0":
        return 0.0
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration: write 50ms, 2s or 1m30s")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def boolean(text: str) -> bool:
    """A Go flag's truth value. For argparse."""
    if text.lower() in ("true", "t", "1"):
        return True
    if text.lower() in ("false", "f", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is not a truth value: write true or false")


def port(text: str) -> int:
    """A TCP port; 0 takes a free one. For argparse."""
    if not text.isascii() or not text.isdigit() or not 0 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give a number of 1 to 65535, or 0 for a free one")
    return int(text)


def whole(text: str) -> int:
    """A whole number, not below 0. For argparse."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)
