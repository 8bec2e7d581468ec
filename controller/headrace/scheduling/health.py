"""The filter by health: servers that are not to be trusted get no requests, those on trial only a few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from headrace.config.decode import Parameters, Whole
from headrace.scheduling.facts import EndpointState, Facts

# The attribute in which the health producer gives, by endpoint key, how many requests a server that is not good may
# have at once: 0 for one that is out, less for a suspect. It is not there while all are good.
VERDICT = "health"


class HealthFilter(Parameters, frozen=True):
    """Leaves out the servers that are out, those on trial that have as many requests as they may, and suspects while
    a good server has room: at most `max_waiting` requests that wait.

    Where none is good, those on trial stay, else the suspects, else all: it never leaves a request without a server."""

    type_name: ClassVar[str] = "health-filter"
    max_waiting: Whole = 64

    def keep(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[EndpointState]:
        verdict: Mapping[str, int] | None = facts.attributes.get(VERDICT)
        if not verdict:
            return states
        good = [state for state in states if state.key not in verdict]
        if not good:
            on_trial = [state for state in states if verdict[state.key] > 0]
            return on_trial or [state for state in states if verdict[state.key] < 0] or states
        room = any(state.waiting <= self.max_waiting for state in good)
        return [state for state in states if _may_have(state, verdict, room)]


def _may_have(state: EndpointState, verdict: Mapping[str, int], room: bool) -> bool:
    allowed = verdict.get(state.key)
    if allowed is None:
        return True
    return state.in_flight < allowed if allowed >= 0 else not room
