"""Reading a plugin's `parameters` with errors that name the field, its value and the fix."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.core.invalid import InvalidField

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE]\d{1,2})?")
_FACTORS = {"m": 0.001, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18} | {
    f"{prefix}i": float(1024**power) for power, prefix in enumerate("KMGTPE", 1)
}
_MOST = 1 << 62
# No amount of anything is larger, and sums and products of what is not stay finite.
_LARGEST = 1e15
_LONGEST_SECONDS = 10 * 366 * 86_400
# Digits of the longest text that can be a number within these limits.
_MOST_DIGITS = 40


class InvalidConfig(InvalidField):
    """An EndpointPickerConfig that cannot be used: names the field, its value and the fix."""


class Parameters:
    """An object of the file, such as a plugin's `parameters`. Every name must be read, or `finish` refuses it."""

    def __init__(self, values: Mapping[str, Any], path: str) -> None:
        self._values = values
        self._path = path
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        """Whether the file gives it a value."""
        return self._values.get(name) is not None

    def names(self) -> tuple[str, ...]:
        """The names the file gives, those of a map with keys of the operator's own. Raises InvalidConfig."""
        for name in self._values:
            if not isinstance(name, str):
                raise InvalidConfig(self._path, name, "give texts as names")
        return tuple(self._values)

    def at(self, name: str) -> str:
        """Where a field of this object is, for messages."""
        return f"{self._path}.{name}" if self._path else name

    def refuse(self, name: str, fix: str) -> InvalidConfig:
        """The error for a field whose value cannot be used."""
        return InvalidConfig(self.at(name), self._values.get(name), fix)

    def integer(self, name: str, default: int, *, at_least: int = 0) -> int:
        """A whole number. Raises InvalidConfig."""
        value = self._take(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
            raise InvalidConfig(self.at(name), value, f"give a whole number of at least {at_least}")
        return value

    def number(self, name: str, default: float, *, at_least: float = 0.0, at_most: float = _LARGEST) -> float:
        """A number. Raises InvalidConfig."""
        value = self._take(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not at_least <= value <= at_most:
            limit = f" and at most {at_most}" if at_most != _LARGEST else ""
            raise InvalidConfig(self.at(name), value, f"give a number of at least {at_least}{limit}")
        return float(value)

    def positive(self, name: str, default: float, *, at_most: float = _LARGEST) -> float:
        """A number over 0. Raises InvalidConfig."""
        value = self.number(name, default, at_most=at_most)
        if value <= 0:
            raise InvalidConfig(self.at(name), value, "give a number over 0")
        return value

    def boolean(self, name: str, default: bool) -> bool:
        """True or false. Raises InvalidConfig."""
        value = self._take(name, default)
        if not isinstance(value, bool):
            raise InvalidConfig(self.at(name), value, "give true or false")
        return value

    def text(self, name: str, default: str = "", *, needed: bool = False) -> str:
        """A text. Raises InvalidConfig."""
        value = self._take(name, default)
        if not isinstance(value, str) or (needed and not value.strip()):
            raise InvalidConfig(self.at(name), value, "give a text")
        return value

    def choice(self, name: str, default: str, known: Sequence[str]) -> str:
        """One of some texts. Raises InvalidConfig."""
        value = self._take(name, default)
        if value not in known:
            raise InvalidConfig(self.at(name), value, f"use {' or '.join(known)}")
        return str(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts. Raises InvalidConfig."""
        value = self._take(name, [])
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise InvalidConfig(self.at(name), value, "give a list of texts")
        return tuple(value)

    def duration(self, name: str, default: float) -> float:
        """Seconds of a Go duration such as 200ms or 1m30s. Raises InvalidConfig."""
        value = self._take(name, None)
        if value is None:
            return default
        if value in ("0", 0):
            return 0.0
        parts = _DURATION.findall(value) if isinstance(value, str) else []
        if not parts or "".join(number + unit for number, unit in parts) != value:
            raise InvalidConfig(self.at(name), value, "give a duration such as 200ms, 60s or 1m30s")
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
        if seconds > _LONGEST_SECONDS:
            raise InvalidConfig(self.at(name), value, "give a duration of at most ten years")
        return seconds

    def quantity(self, name: str, default: int) -> int:
        """A Kubernetes quantity, such as 5000, 1k, 500M or 1Gi, as a whole number. Raises InvalidConfig."""
        value = self._take(name, None)
        if value is None:
            return default
        fix = "give a quantity such as 5000, 1k, 500M or 1Gi"
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise InvalidConfig(self.at(name), value, fix)
        if isinstance(value, int) and abs(value) > _MOST:
            raise InvalidConfig(self.at(name), value, f"give at most {_MOST}")
        text = str(value)
        found = _QUANTITY.fullmatch(text) if len(text) <= _MOST_DIGITS else None
        if found is None:
            raise InvalidConfig(self.at(name), value, fix)
        unit = found[2] or ""
        exact = int(found[1]) if found[1].isdigit() and not unit else None
        factor = 10.0 ** int(unit[1:]) if unit[:1] in ("e", "E") and len(unit) > 1 else _FACTORS.get(unit, 1.0)
        amount = exact if exact is not None else int(float(found[1]) * factor)
        if amount > _MOST:
            raise InvalidConfig(self.at(name), value, f"give at most {_MOST}")
        return amount

    def object(self, name: str) -> Parameters:
        """An object, with nothing in it where there is none. Its own `finish` is the caller's. Raises InvalidConfig."""
        value = self._take(name, {})
        if not isinstance(value, Mapping):
            raise InvalidConfig(self.at(name), value, "give an object")
        return Parameters(value, self.at(name))

    def objects(self, name: str) -> tuple[Parameters, ...]:
        """A list of objects, none where there is none. Raises InvalidConfig."""
        value = self._take(name, [])
        if not isinstance(value, list):
            raise InvalidConfig(self.at(name), value, "give a list")
        for number, entry in enumerate(value):
            if not isinstance(entry, Mapping):
                raise InvalidConfig(f"{self.at(name)}[{number}]", entry, "give an object")
        return tuple(Parameters(entry, f"{self.at(name)}[{number}]") for number, entry in enumerate(value))

    def ignore(self, *names: str) -> None:
        """Names that mean something elsewhere and nothing here."""
        self._read.update(names)

    def finish(self) -> None:
        """Refuse what nobody read. Raises InvalidConfig."""
        for name in self._values:
            if name not in self._read:
                known = ", ".join(sorted(self._read)) or "none"
                raise InvalidConfig(self.at(name), self._values[name], f"unknown; parameters here: {known}")

    def _take(self, name: str, default: Any) -> Any:
        self._read.add(name)
        value = self._values.get(name)
        return default if value is None else value
