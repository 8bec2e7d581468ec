"""Filters: which candidates stay in the race."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from headrace.core import split_key
from headrace.core.endpoint import InvalidAddress
from headrace.scheduling.facts import EndpointState, Facts


@dataclass(frozen=True)
class AdapterAffinityFilter:
    """Keeps an adapter's requests on the servers that have it, while these are not much longer queued than the rest.

    Where none has it, those with a free adapter slot stay. Requests for anything that is not known to be an adapter
    pass unfiltered. `queue_slack` is by how many waiting requests a server with the adapter may exceed the least queued
    one: loading an adapter costs about what a few requests' waiting does."""

    type_name: ClassVar[str] = "adapter-affinity-filter"
    queue_slack: int = 8

    def keep(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[EndpointState]:
        if not facts.is_adapter:
            return states
        model = facts.request.model
        limit = min(state.waiting for state in states) + self.queue_slack
        near = [state for state in states if state.waiting <= limit]
        # What was sent there last comes first: a page may list as running what ended since.
        having = [state for state in near if model in state.resident_adapters]
        having = having or [state for state in near if model in state.running_adapters]
        if having:
            return having
        # A server that has not had an adapter's request yet does not say how many it takes: as many as the others.
        most = max(state.max_adapters for state in states)
        free = [s for s in near if len(s.running_adapters | s.resident_adapters) < (s.max_adapters or most)]
        # Rather push out an adapter that nobody uses just now than one at work.
        idle = [s for s in near if len(s.running_adapters) < (s.max_adapters or most)]
        return free or idle or near


class SubsetFilter:
    """The gateway's subset hint: endpoints named as `ip:port`, or by `ip` alone. Not configurable: always the first."""

    type_name: ClassVar[str] = "subset-filter"

    def keep(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[EndpointState]:
        subset = facts.request.subset
        return states if subset is None else named(states, subset)


def named(states: Sequence[EndpointState], entries: Sequence[str]) -> Sequence[EndpointState]:
    """The candidates that a list of `ip:port` and `ip` names, in their order. An `ip` names each port of it."""
    allowed = {_normal(entry) for entry in entries}
    return [state for state in states if state.key in allowed or state.endpoint.address in allowed]


def _normal(entry: str) -> str:
    """An entry as keys and addresses are written here; brackets around a lone IPv6 address are dropped."""
    try:
        address, port = split_key(entry)
    except InvalidAddress:
        return entry.strip("[]")
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
