"""Names of the routes of our own, and the Gateways (or what else) that a route is attached to. Pure.

A replacement has one such route for each Gateway that its routes are attached to, see `routes.hold`. Their names are
known beforehand, so that the right to delete them can be given by name: role pool_replacement makes the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator

from msgspec import Struct

from headrace.protocol.objects import HOLD_LABEL
from headrace.replace.ownership import Object
from headrace.replace.plan import PoolRef
from headrace.replace.routes import RouteRecord, hold_label, key_of

# Routes of our own in a namespace, at most.
MOST = 8
_MAX_NAME = 253


class ParentRef(Struct, frozen=True):
    """What a route is attached to, a Gateway as a rule, and the listener ("": any) that it asks for."""

    kind: str
    namespace: str
    name: str
    section: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """(kind, namespace, name): its configuration is one, whatever the listener."""
        return (self.kind, self.namespace, self.name)

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


def parents_of(route: Object) -> tuple[ParentRef, ...]:
    """What a route is attached to, each once."""
    own = key_of(route)[1]
    found: dict[tuple[str, str, str], ParentRef] = {}
    for parent in (route.get("spec") or {}).get("parentRefs") or ():
        kind, namespace = str(parent.get("kind") or "Gateway"), str(parent.get("namespace") or own)
        ref = ParentRef(kind, namespace, str(parent.get("name") or ""), str(parent.get("sectionName") or ""))
        found.setdefault(ref.key, ref)
    return tuple(found.values())


def stem(pool: PoolRef) -> str:
    """What the names begin with. Pools of one name in two namespaces have others: their routes may be in one."""
    digest = hashlib.sha256(pool.namespace.encode()).hexdigest()[:8]
    end = f"-canary-{digest}-"
    return f"headrace-replace-{pool.name}"[: _MAX_NAME - len(end) - 1] + end


def is_ours(route: Object, pool: PoolRef) -> bool:
    """Whether a route is one that the replacement of a pool made: by its name and its label."""
    metadata = route.get("metadata") or {}
    labelled = (metadata.get("labels") or {}).get(HOLD_LABEL) == hold_label(pool)
    return labelled and str(metadata.get("name") or "").startswith(stem(pool))


def free_names(pool: PoolRef, taken: Collection[str]) -> Iterator[str]:
    """The names that nothing in a namespace has, ours or not."""
    for number in range(MOST):
        if (name := f"{stem(pool)}{number}") not in taken:
            yield name


def best_first(found: Iterable[RouteRecord], pool: PoolRef) -> list[RouteRecord]:
    """Ours is best made beside an HTTPRoute, as the warm-up speaks HTTP, and in the pool's own namespace."""
    return sorted(found, key=lambda record: (record.kind != "HTTPRoute", record.namespace != pool.namespace))
