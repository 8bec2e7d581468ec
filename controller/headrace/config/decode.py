"""Objects of files and of the API, decoded into typed values: one decoder, whose errors name field, value and fix.

A type is a `Parameters` struct. Its fields have upstream's names in camel case, and their types carry the bounds. What
several fields have to do with each other is checked in `__post_init__`, which raises `Refused`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta
from msgspec import inspect as types

from headrace.config.values import duration, quantity
from headrace.core.invalid import InvalidField

T = TypeVar("T")

# No amount of anything is larger, and sums and products of what is not stay finite.
_LARGEST = 1e15

Whole = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Number = Annotated[float, Meta(ge=0, le=_LARGEST)]
OverZero = Annotated[float, Meta(gt=0, le=_LARGEST)]
AnyNumber = Annotated[float, Meta(ge=-_LARGEST, le=_LARGEST)]
Share = Annotated[float, Meta(ge=0, le=1)]
ShareOverZero = Annotated[float, Meta(gt=0, le=1)]
# With something in it.
Text = Annotated[str, Meta(pattern=r"\S")]


class InvalidConfig(InvalidField):
    """A configuration that cannot be used: names the field, its value and the fix."""


class Refused(ValueError):  # noqa: N818
    """A field's value that does not go with the others; for `__post_init__`. `field` has its upstream name. `value`
    is needed only where it is not the field's own."""

    def __init__(self, field: str, fix: str, value: object = None) -> None:
        super().__init__(fix)
        self.field = field
        self.value = value


class Parameters(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """An object whose every field is known."""


class Duration(float):
    """Seconds of a duration, see `config.values`."""

    @classmethod
    def of_config(cls, value: object) -> Duration:
        """Reads text, or a 0. Raises ValueError."""
        return cls(duration("0" if value == 0 and type(value) is int else value if isinstance(value, str) else ""))


class Quantity(int):
    """The whole number of a quantity, rounded down, see `config.values`."""

    @classmethod
    def of_config(cls, value: object) -> Quantity:
        """Reads text or a whole number. Raises ValueError."""
        # A whole number with more digits than Python writes is no quantity either.
        whole = type(value) is int and value.bit_length() < 200
        return cls(quantity(str(value) if whole or isinstance(value, str) else "", rounded=True))


def decode(value: object, wanted: type[T], at: str, invalid: type[InvalidField] = InvalidConfig) -> T:
    """The typed value of decoded JSON or YAML. A declared field's null is as good as nothing; among names of
    the user's own a null stays. `at` is where the value is, "" for a whole document. Raises `invalid`."""
    try:
        # Most have no nulls, and cost a fifth this way.
        return msgspec.convert(value, wanted, dec_hook=_converted)
    except (msgspec.ValidationError, UnicodeError, RecursionError):
        pass
    try:
        given = _without_nulls(value, types.type_info(wanted), {}, at)
        # In a list every error says where it is: without a place, a text of the user's could read as one.
        return msgspec.convert([given], tuple[wanted, ...], dec_hook=_converted)[0]  # type: ignore[valid-type]
    except RecursionError:
        raise invalid(at, "", "nest it less deeply") from None
    except msgspec.ValidationError as error:
        found = error.__cause__ if isinstance(error.__cause__, InvalidField) else _refusal(error, given, wanted, at)
        raise invalid(found.field, found.value, found.fix) from None
    except InvalidConfig as error:
        raise invalid(error.field, error.value, error.fix) from None


def _without_nulls(value: object, kind: Any, known: dict[tuple[int, int], Any], at: str) -> Any:
    """A copy in which no declared field is null, of text that UTF-8 has. `kind` is the value's type, None where there
    is none. Raises InvalidConfig."""
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidConfig(at, value, "leave out half characters (surrogates)")
    # YAML's aliases can make much of little, and circles: each object is looked at once for each type it has.
    seen = (id(value), id(kind))
    if not isinstance(value, Mapping | list) or seen in known:
        return known.get(seen, value)
    copied: Any = {} if isinstance(value, Mapping) else []
    known[seen] = copied
    if isinstance(value, Mapping):
        for name, entry in value.items():
            # Python writes no whole number of thousands of digits, and YAML has such keys.
            shown = name[:100] if isinstance(name, str) else "(a key that is no text)"
            where = f"{at}.{shown}" if at else shown
            inner = _field(kind, name)
            if entry is not None or inner is None:
                copied[_without_nulls(name, None, {}, where)] = _without_nulls(entry, inner, known, where)
    else:
        inner = _entry(kind)
        copied.extend(_without_nulls(entry, inner, known, f"{at}[{number}]") for number, entry in enumerate(value))
    return copied


def _converted(wanted: type, value: Any) -> Any:
    return wanted.of_config(value)  # type: ignore[attr-defined]


# ---- errors ----------------------------------------------------------------------------------------------------------

# Before the last place anything may stand: messages quote the user's own texts. A place has no backtick in it.
_MESSAGE = re.compile(r"(.*) - at (?:`key` in )?`\$\[0\]([^`]*)`", re.DOTALL)
_STEP = re.compile(r"\.(\w+)|\[([0-9]+)\]")
_FIELD = re.compile(r"Object (missing required|contains unknown) field `(.*)`", re.DOTALL)


def _refusal(error: msgspec.ValidationError, given: Any, wanted: Any, at: str) -> InvalidConfig:
    found = _MESSAGE.fullmatch(str(error))
    message, steps = found.groups() if found else ("", "")
    kind, value, path = types.type_info(wanted), given, at
    for name, index in _STEP.findall(steps):
        kind = _field(kind, name) if name else _entry(kind)
        if name:
            value = value.get(name) if isinstance(value, Mapping) else None
        else:
            value = value[int(index)] if isinstance(value, Sequence) and int(index) < len(value) else None
        path += f"[{index}]" if index else f".{name}" if path else name
    cause = error.__cause__
    if isinstance(cause, Refused):
        return _of_field(value, path, cause.field, str(cause), cause.value)
    if isinstance(cause, ValueError):
        return InvalidConfig(path, value, str(cause))
    named = _FIELD.fullmatch(message)
    if named is None:
        return InvalidConfig(path, value, _fix(kind))
    if named[1] == "missing required":
        return _of_field(value, path, named[2], _fix(_field(kind, named[2])))
    known = ", ".join(sorted(field.encode_name for field in fields_of(kind)))
    return _of_field(value, path, named[2], f"unknown; parameters here: {known or 'none'}")


def _of_field(value: Any, path: str, name: str, fix: str, shown: object = None) -> InvalidConfig:
    if shown is None and isinstance(value, Mapping):
        shown = value.get(name)
    return InvalidConfig(f"{path}.{name}" if path else name, shown, fix)


def fields_of(kind: Any) -> Iterator[Any]:
    """The declared fields of a type, as `msgspec.inspect` has them."""
    return (field for inner in (kind, *getattr(kind, "types", ())) for field in getattr(inner, "fields", ()))


def _field(kind: Any, name: object) -> Any:
    """The type of a declared field; None where there is no such field."""
    return next((field.type for field in fields_of(kind) if field.encode_name == name), None)


def _entry(kind: Any) -> Any:
    """The type of a list's entries; None where it cannot be told."""
    found = (getattr(inner, "item_type", None) for inner in (kind, *getattr(kind, "types", ())))
    return next(filter(None, found), None)


def _fix(kind: Any) -> str:
    """What to write, of a type."""
    if isinstance(kind, types.UnionType):
        kind = kind.types[0]
    if isinstance(kind, types.LiteralType):
        return f"use {' or '.join(str(value) for value in kind.values if value != '')}"
    if isinstance(kind, types.IntType | types.FloatType):
        over = "" if kind.gt is None else f" over {kind.gt:g}"
        what = "a whole number" if isinstance(kind, types.IntType) else "a number"
        return f"give {what}{over or _range(kind.ge, kind.le)}"
    if hasattr(kind, "item_type"):
        many = "texts" if isinstance(kind.item_type, types.StrType) else "objects"
        return f"give a list{_range(kind.min_length, kind.max_length) or ' of'} {many}"
    if isinstance(kind, types.BoolType):
        return "give true or false"
    return "give a text" if isinstance(kind, types.StrType | types.CustomType) else "give an object"


def _range(least: float | None, most: float | None) -> str:
    if most is not None and most < _LARGEST:
        return f" of {least or 0} to {most}"
    return "" if least in (None, -_LARGEST) else f" of at least {least}"
