"""Flags of programs, declared once: as fields of a frozen dataclass, which is also what they are read into.

    @dataclass(frozen=True, kw_only=True)
    class Options:
        grpc_port: int = flag(9002, "ext_proc", port)

A field without `flag` is no flag: it keeps its default, or is worked out of the others."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from headrace.config.values import duration

T = TypeVar("T")
Parse = Callable[[str], Any]

_KEY = "flag"


class InvalidFlag(ValueError):  # noqa: N818
    """A flag that cannot be used: names the flag, its value and the fix."""

    def __init__(self, flag: str, value: object, fix: str) -> None:
        super().__init__(f"--{flag}={value}: {fix}")


@dataclasses.dataclass(frozen=True)
class _Flag:
    help: str
    parse: Parse
    names: tuple[str, ...]
    inverted: bool
    plain: Any
    environment: str
    options: Mapping[str, Any]

    @property
    def default(self) -> Any:
        """The default as it stands at the moment: the environment's variable, where there is one."""
        return os.environ.get(self.environment, self.plain) if self.environment else self.plain

    def read(self, value: Any) -> Any:
        """The field's value: of a text, or of a default that is the value itself. Raises ValueError."""
        if value == argparse.SUPPRESS:
            return None
        found = self.parse(value) if isinstance(value, str) else value
        return not found if self.inverted else found


def flag(
    default: Any,
    help: str,
    parse: Parse = str,
    names: str = "",
    *,
    environment: str = "",
    inverted: bool = False,
    **options: Any,
) -> Any:
    """A field that is a flag. `parse` turns text into the value and raises ValueError with the fix; a `default` that is
    text goes through it too.

    `names` are the flag's where they are not the field's own, with dashes and spaces between. `environment` is a
    variable that has the default. `inverted`: the field is true where the flag is false. `options` go to argparse."""
    if parse is truth:
        options |= {"nargs": "?", "const": True}
    declared = _Flag(help, parse, tuple(names.split()), inverted, default, environment, options)
    return dataclasses.field(default_factory=lambda: declared.read(declared.default), metadata={_KEY: declared})


def add_flags(parser: argparse._ActionsContainer, options: type) -> None:
    """Declare the flags of a dataclass, in a parser or a group of one."""
    for name, declared in _flags(options):
        parser.add_argument(*_names(name, declared), help=declared.help, default=declared.default, **declared.options)


def read_flags(args: argparse.Namespace, options: type[T]) -> T:
    """The dataclass that parsed flags come to. Raises InvalidFlag."""
    values: dict[str, Any] = {}
    for name, declared in _flags(options):
        # argparse's own rule: the first of the long names.
        shown = next(long for long in _names(name, declared) if long.startswith("--"))[2:]
        given = getattr(args, shown.replace("-", "_"), argparse.SUPPRESS)
        try:
            values[name] = declared.read(given)
        except ValueError as error:
            raise InvalidFlag(shown, given, str(error)) from None
    return options(**values)


def _names(field: str, declared: _Flag) -> tuple[str, ...]:
    return declared.names or (f"--{field.replace('_', '-')}",)


def _flags(options: type) -> list[tuple[str, _Flag]]:
    return [(f.name, f.metadata[_KEY]) for f in dataclasses.fields(options) if _KEY in f.metadata]


# ---- values ----------------------------------------------------------------------------------------------------------


def truth(text: str) -> bool:
    """A truth value as Go's flags have it; the flag alone means true. Raises ValueError."""
    if text.lower() not in ("true", "t", "1", "false", "f", "0"):
        raise ValueError("give true or false")
    return text.lower() in ("true", "t", "1")


def whole(least: int = 0, most: int = 1 << 62, fix: str = "") -> Parse:
    """A whole number in a range."""
    top = f" to {most}" if most != 1 << 62 else ""

    def parse(text: str) -> int:
        digits = text[1:] if text.startswith(("-", "+")) else text
        if not digits.isascii() or not digits.isdigit() or len(digits) > 19 or not least <= int(text) <= most:
            raise ValueError(fix or f"give a whole number from {least}{top}")
        return int(text)

    return parse


port = whole(0, 65_535, "give a port of 1 to 65535, or 0 for a free one")


def number(least: float, most: float = math.inf, *, read: Callable[[str], float] = float, fix: str = "") -> Parse:
    """A number in a range, which is finite."""
    top = f" to {most:g}" if most != math.inf else ""

    def parse(text: str) -> float:
        try:
            value = read(text)
        except ValueError as error:
            raise ValueError(str(error) if read is not float else f"give a number from {least:g}{top}") from None
        if not least <= value <= most or math.isinf(value):
            raise ValueError(fix or f"give a number from {least:g}{top}")
        return value

    return parse


# A time over 0.
period = number(1e-9, read=duration, fix="give a time over 0")


def optional(text: str) -> str | None:
    """A text; None for an empty one."""
    return text or None


def choice(known: Collection[str]) -> Parse:
    """One of some texts."""

    def parse(text: str) -> str:
        if text not in known:
            raise ValueError(f"use {' or '.join(known)}")
        return text

    return parse


def path(text: str) -> Path | None:
    """A path; None for an empty text."""
    return Path(text) if text else None


def file(text: str) -> Path | None:
    """A file that is there; None for an empty text. Raises ValueError."""
    if text and not Path(text).is_file():
        raise ValueError("there is no such file")
    return path(text)


def folder(*needed: str) -> Parse:
    """A directory with some files, such as a mounted Secret; None for an empty text."""

    def parse(text: str) -> Path | None:
        for name in needed if text else ():
            if not (Path(text) / name).is_file():
                raise ValueError(f"there is no {name} in it: mount the certificate's Secret there")
        return path(text)

    return parse
