"""The step engine: a state and something that happened give the next state. Pure.

The state says what is to be done; doing it is somebody else's business, may be done twice, and ends in one of the
events below. So a process that dies anywhere is replaced by one that does the state's thing again. From every phase
there is a way to Completed or to RolledBack, and no other end once a route was touched."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from headrace.replace.counters import Counters
from headrace.replace.gates import FAIL, INSUFFICIENT, GateResult
from headrace.replace.plan import Plan
from headrace.replace.routes import RouteRecord
from headrace.replace.state import Phase, State

# ---- what can happen -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refused:
    """The preflight found what must be put right first. Nothing was changed."""

    problems: tuple[str, ...]
    records: tuple[RouteRecord, ...] = ()
    facts: str = ""


@dataclass(frozen=True)
class Found:
    """The preflight found everything as it should be: the routes, the pools' uids, and in `facts` what else it saw."""

    records: tuple[RouteRecord, ...]
    facts: str = ""
    old_uid: str = ""
    new_uid: str = ""


@dataclass(frozen=True)
class Discovered:
    """More routes lead to the old pool than are recorded."""

    records: tuple[RouteRecord, ...]


@dataclass(frozen=True)
class Written:
    """Every recorded route gives the new pool this many percent."""

    percent: int


@dataclass(frozen=True)
class WarmedUp:
    """The new pool answered by itself."""

    detail: str = ""


@dataclass(frozen=True)
class Judged:
    """A gate's verdict; `reference` is the old pool's window where it had traffic enough."""

    result: GateResult
    reference: Counters | None = None


@dataclass(frozen=True)
class Approved:
    """Somebody approved of the next step."""

    by: str = ""


@dataclass(frozen=True)
class Drained:
    """The old pool is idle, or the deadline has passed; `detail` says which."""

    detail: str = ""


@dataclass(frozen=True)
class Finalised:
    """The new pool is in the old one's place in every route."""


@dataclass(frozen=True)
class Removed:
    """What had to be removed is gone, but for what is `left` to be deleted still; or it is `kept`, and why."""

    count: int = 0
    kept: str = ""
    left: tuple[str, ...] = ()


@dataclass(frozen=True)
class Restored:
    """Every recorded route has its backends and weights back, but for those that the record does not fit: `left`."""

    left: tuple[str, ...] = ()


@dataclass(frozen=True)
class Abort:
    """Something that a replacement is taken back for: a dead pool, a foreign change, a failed warm-up, a timeout."""

    reason: str


@dataclass(frozen=True)
class RollbackAsked:
    """Somebody wants everything as it was."""

    by: str = ""


Event = (
    Refused | Found | Discovered | Written | WarmedUp | Judged | Approved | Drained | Finalised | Removed | Restored
    | Abort | RollbackAsked
)  # fmt: skip

# Phases in which routes are, or may be, other than they were and the old pool is whole.
REVERSIBLE = frozenset(
    {Phase.PREPARE, Phase.WARM_UP, Phase.SHIFT, Phase.GATE, Phase.APPROVAL, Phase.DRAIN, Phase.FINALISE}
)


def percent_of(state: State, plan: Plan) -> int:
    """The share that the new pool has to have now."""
    if state.phase in (Phase.PREPARE, Phase.WARM_UP):
        return 0
    return plan.steps[min(state.step, len(plan.steps) - 1)]


def may_roll_back(state: State, plan: Plan) -> bool:
    """Whether everything can still become as it was."""
    if state.phase in REVERSIBLE or state.phase is Phase.PREFLIGHT:
        return True
    return state.phase in (Phase.CLEAN_UP, Phase.DONE) and old_is_kept(state, plan)


def old_is_kept(state: State, plan: Plan) -> bool:
    """Whether the old pool is there still once all is done."""
    return not plan.remove_old or bool(state.kept)


def advance(state: State, event: Event, plan: Plan, now: float) -> State:
    """The state after an event. An event that means nothing in this phase changes nothing."""
    if isinstance(event, RollbackAsked):
        return _rollback_asked(state, event, plan, now)
    if isinstance(event, Abort):
        if state.phase is Phase.PREFLIGHT:
            return state.noted(now, f"refused: {event.reason}", phase=Phase.FAILED, reason=event.reason, finished=now)
        return _take_back(state, event.reason, now) if state.phase in REVERSIBLE else state
    if isinstance(event, Discovered):
        return _discovered(state, event, now)
    handler = _HANDLERS.get((state.phase, type(event)))
    return handler(state, event, plan, now) if handler is not None else state


def _enter(state: State, phase: Phase, now: float, message: str, **changes: Any) -> State:
    if phase in (Phase.DONE, Phase.ROLLED_BACK, Phase.FAILED):
        changes["finished"] = now
    return state.noted(now, message, phase=phase, since=now, **changes)


def _take_back(state: State, reason: str, now: float) -> State:
    return _enter(state, Phase.RESTORE, now, f"rolling back: {reason}", reason=reason, finished=0.0)


def _rollback_asked(state: State, event: RollbackAsked, plan: Plan, now: float) -> State:
    reason = f"asked for{f' by {event.by}' if event.by else ''}"
    if state.phase is Phase.PREFLIGHT:
        return _enter(state, Phase.ROLLED_BACK, now, "rolled back before anything was changed", reason=reason)
    return _take_back(state, reason, now) if may_roll_back(state, plan) else state


def _discovered(state: State, event: Discovered, now: float) -> State:
    known = {record.key for record in state.records}
    new = tuple(record for record in event.records if record.key not in known)
    if not new or state.phase not in (*REVERSIBLE, Phase.CLEAN_UP):
        return state
    names = ", ".join(str(record) for record in new)
    changed = state.noted(now, f"found more that leads to the old pool: {names}", records=(*state.records, *new))
    # They have to be brought to where the others are before anything is measured, or put in its final place.
    if state.phase in (Phase.GATE, Phase.FINALISE, Phase.CLEAN_UP):
        return dataclasses.replace(changed, phase=Phase.SHIFT, since=now)
    return changed


def _refused(state: State, event: Refused, plan: Plan, now: float) -> State:
    reason = "; ".join(event.problems)
    return _enter(state, Phase.FAILED, now, f"refused: {reason}", reason=reason)


def _found(state: State, event: Found, plan: Plan, now: float) -> State:
    message = f"{len(event.records)} routes lead to {plan.old}. {event.facts}".strip()
    uids = {"old_uid": event.old_uid, "new_uid": event.new_uid}
    return _enter(state, Phase.PREPARE, now, message, records=event.records, facts=event.facts, **uids)


def _prepared(state: State, event: Written, plan: Plan, now: float) -> State:
    return _enter(state, Phase.WARM_UP, now, "the routes name the new pool, with weight 0", share=0)


def _warmed_up(state: State, event: WarmedUp, plan: Plan, now: float) -> State:
    return _enter(state, Phase.SHIFT, now, event.detail or "the new pool answers", step=0)


def _written(state: State, event: Written, plan: Plan, now: float) -> State:
    if event.percent != percent_of(state, plan):
        return state
    # After the last gate the routes were only brought in line with a newly found one.
    gated = any(result.percent == event.percent and result.verdict != FAIL for result in state.history)
    after = Phase.DRAIN if gated and event.percent == 100 else Phase.GATE
    return _enter(state, after, now, f"{event.percent} % go to the new pool", share=event.percent)


def _judged(state: State, event: Judged, plan: Plan, now: float) -> State:
    result = dataclasses.replace(event.result, at=now)
    state = dataclasses.replace(state, history=(*state.history, result), reference=event.reference or state.reference)
    failed = result.verdict == FAIL or (result.verdict == INSUFFICIENT and plan.insufficient == "rollback")
    if failed:
        return _take_back(state, f"the gate at {result.percent} % failed: {result.reason}", now)
    message = f"the gate at {result.percent} % passed"
    if result.verdict == INSUFFICIENT:
        message = f"the gate at {result.percent} % was let pass with too little traffic: {result.reason}"
    if plan.steps[state.step] in plan.manual:
        return _enter(state, Phase.APPROVAL, now, f"{message}; somebody has to approve")
    return _next_step(state, plan, now, message)


def _approved(state: State, event: Approved, plan: Plan, now: float) -> State:
    # People may take their time: it counts for the approval's own timeout, and not for the replacement's.
    state = dataclasses.replace(state, waited=state.waited + now - state.since)
    return _next_step(state, plan, now, f"approved{f' by {event.by}' if event.by else ''}")


def _next_step(state: State, plan: Plan, now: float, message: str) -> State:
    if state.step + 1 >= len(plan.steps):
        return _enter(state, Phase.DRAIN, now, f"{message}; the old pool drains")
    return _enter(state, Phase.SHIFT, now, message, step=state.step + 1)


def _drained(state: State, event: Drained, plan: Plan, now: float) -> State:
    return _enter(state, Phase.FINALISE, now, event.detail or "the old pool is idle")


def _finalised(state: State, event: Finalised, plan: Plan, now: float) -> State:
    return _enter(state, Phase.CLEAN_UP, now, "the new pool is in the old one's place in every route")


def _cleaned_up(state: State, event: Removed, plan: Plan, now: float) -> State:
    fate = _fate(event, "old") if plan.remove_old else "the old pool is kept"
    return _enter(state, Phase.DONE, now, f"completed; {fate}", reason="", kept=event.kept)


def _restored(state: State, event: Restored, plan: Plan, now: float) -> State:
    message = "every route has its backends and weights back"
    if event.left:
        message += f", but for what was left alone: {'; '.join(event.left)}"
    return _enter(state, Phase.DISCARD, now, message, share=-1)


def _discarded(state: State, event: Removed, plan: Plan, now: float) -> State:
    fate = _fate(event, "new") if plan.remove_new else "the new pool is kept"
    return _enter(state, Phase.ROLLED_BACK, now, f"rolled back; {fate}")


def _fate(event: Removed, which: str) -> str:
    if event.kept:
        return f"the {which} pool is kept, remove it by hand once nothing leads to it: {event.kept}"
    left = f"; these are still being deleted: {', '.join(event.left)}" if event.left else ""
    return f"{event.count} objects of the {which} pool removed{left}"


_Handler = Callable[[State, Any, Plan, float], State]
_HANDLERS: dict[tuple[Phase, type], _Handler] = {
    (Phase.PREFLIGHT, Refused): _refused,
    (Phase.PREFLIGHT, Found): _found,
    (Phase.PREPARE, Written): _prepared,
    (Phase.WARM_UP, WarmedUp): _warmed_up,
    (Phase.SHIFT, Written): _written,
    (Phase.GATE, Judged): _judged,
    (Phase.APPROVAL, Approved): _approved,
    (Phase.DRAIN, Drained): _drained,
    (Phase.FINALISE, Finalised): _finalised,
    (Phase.CLEAN_UP, Removed): _cleaned_up,
    (Phase.RESTORE, Restored): _restored,
    (Phase.DISCARD, Removed): _discarded,
}
