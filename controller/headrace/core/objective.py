"""InferenceObjective: a name that requests may carry, and the priority it gives them.

Source: `inference.networking.x-k8s.io/v1alpha2` of the Gateway API Inference Extension."""

from __future__ import annotations

from msgspec import Struct

from headrace.core.invalid import InvalidField
from headrace.core.pool import GA_GROUP


class InvalidObject(InvalidField):
    """An object that cannot be used: names the field, its value and the fix."""


class PoolReference(Struct, frozen=True):
    """The pool an object speaks of, in its own namespace."""

    name: str
    group: str = GA_GROUP


class Objective(Struct, frozen=True):
    """An InferenceObjective. `priority`: higher goes first; below 0 its requests may be shed."""

    namespace: str
    name: str
    pool: PoolReference
    priority: int = 0
