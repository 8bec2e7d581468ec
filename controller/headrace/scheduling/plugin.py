"""The seams of scheduling: what a filter, a scorer and a picker are. All are pure functions of states and facts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from headrace.scheduling.facts import EndpointState, Facts

# A candidate's weighted total, and the candidate. A plain tuple: there is one for each candidate of each pick.
Scored = tuple[float, EndpointState]


@runtime_checkable
class Filter(Protocol):
    """Narrows the candidates; may return them all, or none."""

    type_name: ClassVar[str]

    def keep(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[EndpointState]:
        """The candidates that stay, in their order."""


@runtime_checkable
class Scorer(Protocol):
    """Rates each candidate from 0 (worst) to 1 (best); what lies outside is clamped."""

    type_name: ClassVar[str]

    def score(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[float]:
        """A score for each state, in their order."""


@runtime_checkable
class Picker(Protocol):
    """Orders scored candidates: the first is the pick, the rest its fallback list."""

    type_name: ClassVar[str]

    def pick(self, scored: Sequence[Scored], facts: Facts) -> Sequence[Scored]:
        """At least one of the candidates, which are never empty; best first."""


class BindSession(NamedTuple):
    """Remember: this session's request went to this Pod (`namespace/name-rank-N`)."""

    session: str
    pod: str
    ttl_seconds: float


class ColdPick(NamedTuple):
    """Remember: this endpoint was picked for a prompt that no cache had. Of endpoints, the last `keep` are kept."""

    key: str
    keep: int


class AddResponseHeader(NamedTuple):
    """Tell the client, in a header of the response."""

    name: str
    value: str


Note = BindSession | ColdPick | AddResponseHeader


@runtime_checkable
class TakesNotes(Protocol):
    """A plugin whose later answers depend on earlier picks. What it wants remembered is a value, kept by the caller."""

    def notes(self, picked: EndpointState, facts: Facts) -> Sequence[Note]:
        """What to remember of this pick."""
