"""How far a replacement has come, as it is kept in the cluster. Pure.

Whoever reads it can carry on: it holds what the routes were, which step is being taken and what the gates said. A
schema number tells a state that another version wrote."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from headrace.replace.counters import Counters, counters_as_json, counters_of_json
from headrace.replace.gates import GateResult, result_of_json
from headrace.replace.ownership import Owner
from headrace.replace.plan import is_name, is_namespace
from headrace.replace.routes import KINDS, RouteRecord, RuleRecord

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


@dataclass(frozen=True)
class Entry:
    """A line of the replacement's log. `at` is seconds since 1970."""

    at: float
    message: str


@dataclass(frozen=True, kw_only=True)
class State:
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
        return dataclasses.replace(self, log=log, **changes)


def state_as_json(state: State) -> dict[str, Any]:
    """Plain values, for JSON."""
    return {
        "schema": SCHEMA,
        "run": state.run,
        "phase": state.phase.value,
        "step": state.step,
        "share": state.share,
        "started": state.started,
        "since": state.since,
        "finished": state.finished,
        "reason": state.reason,
        "facts": state.facts,
        "old_uid": state.old_uid,
        "new_uid": state.new_uid,
        "kept": state.kept,
        "waited": state.waited,
        "records": [dataclasses.asdict(record) for record in state.records],
        "history": [result.as_json() for result in state.history],
        "reference": None if state.reference is None else counters_as_json(state.reference),
        "log": [dataclasses.asdict(entry) for entry in state.log],
    }


def parse_state(value: object) -> State:
    """The state of decoded JSON. Raises InvalidState."""
    if not isinstance(value, Mapping):
        raise InvalidState("the recorded state is no JSON object: delete its ConfigMap if no replacement is under way")
    if value.get("schema") != SCHEMA:
        raise InvalidState(
            f"schema: {value.get('schema')!r}: the recorded state is another version's, this one reads {SCHEMA}: "
            "finish the replacement with the version that began it"
        )
    try:
        return State(
            run=str(value["run"]),
            phase=Phase(value["phase"]),
            step=int(value["step"]),
            share=int(value["share"]),
            started=float(value["started"]),
            since=float(value["since"]),
            finished=float(value["finished"]),
            reason=str(value["reason"]),
            facts=str(value["facts"]),
            # What a record of before had no word for.
            old_uid=str(value.get("old_uid") or ""),
            new_uid=str(value.get("new_uid") or ""),
            kept=str(value.get("kept") or ""),
            waited=float(value.get("waited") or 0.0),
            records=tuple(_record(record) for record in value["records"]),
            history=tuple(result_of_json(result) for result in value["history"]),
            reference=None if value["reference"] is None else counters_of_json(value["reference"]),
            log=tuple(Entry(float(entry["at"]), str(entry["message"])) for entry in value["log"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidState(
            f"the recorded state cannot be read ({type(error).__name__}: {error}): restore its ConfigMap from a "
            "backup, or set the routes' weights by hand and delete it"
        ) from error


def _record(value: Mapping[str, Any]) -> RouteRecord:
    rules = tuple(
        RuleRecord(int(rule["index"]), str(rule["name"]), rule["matches"], tuple(dict(ref) for ref in rule["refs"]))
        for rule in value["rules"]
    )
    # A record of before there were others has no kind.
    kind = str(value.get("kind") or KINDS[0])
    if kind not in KINDS:
        raise ValueError(f"kind: {kind!r}")
    # Nor has it owners, where there is nothing to give back to.
    owners = tuple(
        Owner(*(str(owner[name]) for name in ("manager", "operation", "api_version", "subresource")))
        for owner in value.get("owners") or ()
    )
    namespace, name = str(value["namespace"]), str(value["name"])
    if not is_namespace(namespace) or not is_name(name):
        raise ValueError(f"route: {namespace!r:.80}/{name!r:.80} is no name of an object")
    return RouteRecord(
        namespace,
        name,
        str(value["uid"]),
        rules,
        kind,
        owners,
        str(value.get("rest") or ""),
    )
