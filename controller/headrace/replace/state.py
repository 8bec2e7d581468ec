"""How far a replacement has come, as it is kept in the cluster. Pure.

Whoever reads it can carry on: it holds what the routes were, which step is being taken and what the gates said. A
schema number tells a state that another version wrote."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec
from msgspec import Struct, structs

from headrace.replace.counters import Counters
from headrace.replace.gates import GateResult
from headrace.replace.plan import is_name, is_namespace
from headrace.replace.routes import KINDS, RouteRecord

SCHEMA = 1
_LOG_LIMIT = 200


class Phase(StrEnum):
    """What a replacement is doing."""

    PREFLIGHT = "Preflight"
    PREPARE = "Preparing"
    WARM_UP = "WarmingUp"
    SHIFT = "Shifting"
    GATE = "Gating"
    APPROVAL = "AwaitingApproval"
    DRAIN = "Draining"
    FINALISE = "Finalising"
    CLEAN_UP = "CleaningUp"
    DONE = "Completed"
    RESTORE = "RollingBack"
    DISCARD = "Discarding"
    ROLLED_BACK = "RolledBack"
    FAILED = "Refused"


FINISHED = frozenset({Phase.DONE, Phase.ROLLED_BACK, Phase.FAILED})


class InvalidState(ValueError):  # noqa: N818
    """A recorded state that cannot be read: the message says what, and what to do."""


class Entry(Struct, frozen=True):
    """A line of the replacement's log. `at` is seconds since 1970."""

    at: float
    message: str


class State(Struct, frozen=True, kw_only=True):
    """A moment of a replacement. Times are seconds since 1970; `step` is an index into the plan's steps.

    `share` is the percentage that the routes were last known to have, -1 before they were touched."""

    run: str
    phase: Phase = Phase.PREFLIGHT
    step: int = 0
    share: int = -1
    started: float = 0.0
    since: float = 0.0
    finished: float = 0.0
    reason: str = ""
    facts: str = ""
    # The pools that were found at the start: another one may have the name by now. "": recorded by an older version.
    old_uid: str = ""
    new_uid: str = ""
    # Why the old pool is there still though it was to be removed.
    kept: str = ""
    # Seconds that people took to approve.
    waited: float = 0.0
    records: tuple[RouteRecord, ...] = ()
    history: tuple[GateResult, ...] = ()
    # The last window in which the old pool had traffic enough to be compared with.
    reference: Counters | None = None
    log: tuple[Entry, ...] = ()

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.phase in FINISHED

    def noted(self, now: float, message: str, **changes: Any) -> State:
        """With a line in the log, and other fields changed. The oldest lines go when there are too many."""
        log = (*self.log, Entry(now, message))[-_LOG_LIMIT:]
        return structs.replace(self, log=log, **changes)


def state_as_json(state: State) -> dict[str, Any]:
    """Plain values, for JSON."""
    return {"schema": SCHEMA, **msgspec.to_builtins(state)}


def parse_state(value: object) -> State:
    """The state of decoded JSON. Fields that earlier versions did not write have their defaults. Raises
    InvalidState."""
    if not isinstance(value, Mapping):
        raise InvalidState("the recorded state is no JSON object: delete its ConfigMap if no replacement is under way")
    if value.get("schema") != SCHEMA:
        raise InvalidState(
            f"schema: {value.get('schema')!r}: the recorded state is another version's, this one reads {SCHEMA}: "
            "finish the replacement with the version that began it"
        )
    try:
        state = msgspec.convert(value, State)
        for record in state.records:
            _check(record)
    except ValueError as error:
        raise InvalidState(
            f"the recorded state cannot be read ({error}): restore its ConfigMap from a backup, or set the routes' "
            "weights by hand and delete it"
        ) from error
    return state


def _check(record: RouteRecord) -> None:
    if record.kind not in KINDS:
        raise ValueError(f"kind: {record.kind!r:.80}")
    if not is_namespace(record.namespace) or not is_name(record.name):
        raise ValueError(f"route: {record.namespace!r:.80}/{record.name!r:.80} is no name of an object")
