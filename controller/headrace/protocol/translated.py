"""Which generation of each route a gateway has translated, as a condition of the pool's status says it. Pure.

The gateway controller writes it and a replacement reads it: a step is done only when its change is translated.
One entry of the condition's message is `HTTPRoute NAMESPACE/NAME generation N (uid UUUUUUUU, state SSSSSSSS)`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msgspec import Struct

from headrace.core.fields import mapping, mappings
from headrace.protocol.objects import ROUTES_TRANSLATED

UID_LENGTH = 8

# The CRDs allow 32 KiB. What does not fit is left out: nobody waits for a route that is not named.
_MAX_BYTES = 30_000
_ENTRY = re.compile(
    r"(HTTPRoute|GRPCRoute) ([a-z0-9.-]+)/([a-z0-9.-]+) generation (\d{1,18}) \(uid ([^,) ]*), state ([0-9a-f]*)\)"
)

# (kind, namespace, name)
RouteKey = tuple[str, str, str]


class TranslatedRoute(Struct, frozen=True):
    """A route as a translation used it. `uid` is the first characters of the route's; `state` tells whether anything
    else that the translation took for this route has changed."""

    key: RouteKey
    generation: int
    uid: str
    state: str

    def __str__(self) -> str:
        kind, namespace, name = self.key
        return f"{kind} {namespace}/{name} generation {self.generation} (uid {self.uid}, state {self.state})"


def write_routes(routes: Iterable[TranslatedRoute]) -> str:
    """The entries as text, ordered by their key."""
    parts: list[str] = []
    length = 0
    for route in sorted(routes, key=lambda found: found.key):
        entry = str(route)
        length += len(entry) + 2
        if length > _MAX_BYTES:
            break
        parts.append(entry)
    return ", ".join(parts)


def published_routes(pool: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], dict[RouteKey, TranslatedRoute]]]:
    """The entries in a pool's status, each with the parent that it is about."""
    for parent, condition in conditions_in(pool.get("status")):
        if condition.get("type") == ROUTES_TRANSLATED:
            yield parent, read_routes(condition.get("message"))


def conditions_in(status: object) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """The conditions in a pool's status, of either version, each with its parent."""
    for field in ("parents", "parent"):
        for parent in mappings(mapping(status).get(field)):
            for condition in mappings(parent.get("conditions")):
                yield parent, condition


def read_routes(text: object) -> dict[RouteKey, TranslatedRoute]:
    """The entries in a text, whatever else it says."""
    found: dict[RouteKey, TranslatedRoute] = {}
    for kind, namespace, name, generation, uid, state in _ENTRY.findall(text if isinstance(text, str) else ""):
        key = (kind, namespace, name)
        found[key] = TranslatedRoute(key, int(generation), uid, state)
    return found


def uid_of(metadata: Any) -> str:
    """The part of an object's uid that entries carry."""
    return str(metadata.get("uid") or "")[:UID_LENGTH]
