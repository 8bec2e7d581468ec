"""Reading a plugin's `parameters` with errors that name the field, its value and the fix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class InvalidConfig(ValueError):  # noqa: N818
    """An EndpointPickerConfig that cannot be used: names the field, its value and the fix."""

    def __init__(self, field_path: str, value: object, fix: str) -> None:
        self.field = field_path
        self.value = value
        self.fix = fix
        shown = repr(value)
        super().__init__(f"{field_path}: {shown if len(shown) <= 200 else shown[:197] + '...'}: {fix}")


class Parameters:
    """The `parameters` object of one plugin. Every name must be read, or `finish` refuses it as unknown."""

    def __init__(self, values: Mapping[str, Any], path: str) -> None:
        self._values = values
        self._path = path
        self._read: set[str] = set()

    def integer(self, name: str, default: int, *, at_least: int = 0) -> int:
        """A whole number. Raises InvalidConfig."""
        value = self._take(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
            raise InvalidConfig(f"{self._path}.{name}", value, f"give a whole number of at least {at_least}")
        return value

    def number(self, name: str, default: float, *, at_least: float = 0.0, at_most: float = float("inf")) -> float:
        """A number. Raises InvalidConfig."""
        value = self._take(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not at_least <= value <= at_most:
            limit = f" and at most {at_most}" if at_most != float("inf") else ""
            raise InvalidConfig(f"{self._path}.{name}", value, f"give a number of at least {at_least}{limit}")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        """True or false. Raises InvalidConfig."""
        value = self._take(name, default)
        if not isinstance(value, bool):
            raise InvalidConfig(f"{self._path}.{name}", value, "give true or false")
        return value

    def finish(self) -> None:
        """Refuse what nobody read. Raises InvalidConfig."""
        for name in self._values:
            if name not in self._read:
                known = ", ".join(sorted(self._read)) or "none"
                raise InvalidConfig(f"{self._path}.{name}", self._values[name], f"unknown; parameters here: {known}")

    def _take(self, name: str, default: Any) -> Any:
        self._read.add(name)
        value = self._values.get(name)
        return default if value is None else value
