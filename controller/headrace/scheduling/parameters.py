"""Reading a plugin's `parameters` with errors that name the field, its value and the fix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from headrace.config.values import duration, quantity
from headrace.core.invalid import InvalidField

# No amount of anything is larger, and sums and products of what is not stay finite.
_LARGEST = 1e15
T = TypeVar("T")


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
        """Seconds of a duration, see `config.values`. Raises InvalidConfig."""
        return self._converted(name, default, duration, "give a duration such as 200ms, 60s or 1m30s")

    def quantity(self, name: str, default: int) -> int:
        """The whole number of a quantity, see `config.values`. Raises InvalidConfig."""
        return self._converted(name, default, quantity, "give a quantity such as 5000, 1k, 500M or 1Gi")

    def _converted(self, name: str, default: T, convert: Callable[[str], T], fix: str) -> T:
        value = self._take(name, None)
        if value is None:
            return default
        try:
            # A whole number that is too long for a text is too large for either.
            if isinstance(value, str) or (type(value) is int and value.bit_length() < 200):
                return convert(str(value))
        except ValueError as error:
            fix = str(error)
        raise InvalidConfig(self.at(name), value, fix)

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
