"""What every error about a field of somebody's input has: the field, its value, and the fix."""

from __future__ import annotations

from reprlib import Repr

_MOST_SHOWN = 200
# Python writes no whole number of more than 4,300 digits.
_MOST_BITS = 1024


class _Shown(Repr):
    """Values as an error shows them. YAML's aliases make much of little, so what is shown is bounded on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 12
        self.maxstring = self.maxother = self.maxlong = _MOST_SHOWN + 10

    def repr_int(self, value: int, level: int) -> str:
        """A whole number; of one beyond all use, its size."""
        if value.bit_length() > _MOST_BITS:
            return f"a number of {value.bit_length()} bits"
        return super().repr_int(value, level)


_SHOWN = _Shown()


def shown(value: object) -> str:
    """A value as messages show it, of bounded length."""
    text = _SHOWN.repr(value)
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."


class InvalidField(ValueError):  # noqa: N818
    """Input that cannot be used. `field` is the path to it, as `spec.targetPorts[0].number`."""

    def __init__(self, field_path: str, value: object, fix: str) -> None:
        self.field = field_path
        self.value = value
        self.fix = fix
        super().__init__(f"{field_path}: {shown(value)}: {fix}")


class CannotServe(RuntimeError):  # noqa: N818
    """What a process needs to serve is missing; the message says what, and what to do."""
