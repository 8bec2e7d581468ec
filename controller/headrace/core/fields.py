"""Reads fields of objects that may have been stored under another schema, or under none: a wrong type is no value."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

# An object of the Kubernetes API, as decoded JSON.
Object = Mapping[str, Any]


def mapping(value: object) -> Mapping[str, Any]:
    """`value` if it is an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def mappings(value: object) -> Iterator[Mapping[str, Any]]:
    """The objects in a list; nothing of what is not one."""
    if isinstance(value, list | tuple):
        yield from (entry for entry in value if isinstance(entry, Mapping))


def text(value: object) -> str:
    """`value` if it is text, else ""."""
    return value if isinstance(value, str) else ""


def has_condition(owner: object, kind: str, status: str = "True") -> bool:
    """Whether the `conditions` of a status have one of this type with this status."""
    return any(c.get("type") == kind and c.get("status") == status for c in mappings(mapping(owner).get("conditions")))


def address(value: object) -> str:
    """`value` if it is the text of an IP address, else ""."""
    return _address(value) if isinstance(value, str) and len(value) <= _MAX_ADDRESS else ""


def port(value: object) -> int:
    """`value` if it is the number of a TCP port, else 0."""
    return value if type(value) is int and 1 <= value <= 65535 else 0


def number(value: object, default: float) -> float:
    """`value` if it is a number over 0 and not infinite, else `default`."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _MAX_NUMBER
    return float(value) if usable and isinstance(value, int | float) else default


def is_digits(value: str, most: int) -> bool:
    """Whether a text is a whole number of at most `most` digits. Python refuses to read those of thousands."""
    return 0 < len(value) <= most and value.isascii() and value.isdigit()


_MAX_NUMBER = 1 << 53
_MAX_ADDRESS = 64


@lru_cache(maxsize=16_384)
def _address(value: str) -> str:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return ""
    return value
