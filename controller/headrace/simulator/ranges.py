"""Types for argparse: numbers in a range, with errors that say the range."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argparse type: a whole number in a range."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            top = "" if most is None else f" to {most}"
            raise argparse.ArgumentTypeError(f"'{text}': give a whole number from {least}{top}")
        return value

    return parse


def number(least: float, most: float = float("inf")) -> Callable[[str], float]:
    """An argparse type: a number in a range."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most or value == float("inf"):
            top = "" if most == float("inf") else f" to {most:g}"
            raise argparse.ArgumentTypeError(f"'{text}': give a number from {least:g}{top}")
        return value

    return parse
