"""The step engine: a state and something that happened give the next state. Pure.

The state says what is to be done; doing it is somebody else's business, may be done twice, and ends in one of the
events below. So a process that dies anywhere is replaced by one that does the state's thing again. From every phase
there is a way to Completed or to RolledBack, and no other end once a route was touched."""

from __future__ import annotations

from typing import Any, ClassVar

from msgspec import Struct, structs

from headrace.replace.counters import Counters
from headrace.replace.gates import FAIL, INSUFFICIENT, GateResult
from headrace.replace.plan import Plan
from headrace.replace.routes import RouteRecord
from headrace.replace.state import Phase, State

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
    return event.applied(state, plan, now) if state.phase in event.phases else state


def _enter(state: State, phase: Phase, now: float, message: str, **changes: Any) -> State:
    if phase in (Phase.DONE, Phase.ROLLED_BACK, Phase.FAILED):
        changes["finished"] = now
    return state.noted(now, message, phase=phase, since=now, **changes)


def _take_back(state: State, reason: str, now: float) -> State:
    return _enter(state, Phase.RESTORE, now, f"rolling back: {reason}", reason=reason, finished=0.0)


def _next_step(state: State, plan: Plan, now: float, message: str) -> State:
    if state.step + 1 >= len(plan.steps):
        return _enter(state, Phase.DRAIN, now, f"{message}; the old pool drains")
    return _enter(state, Phase.SHIFT, now, message, step=state.step + 1)


# ---- what can happen -------------------------------------------------------------------------------------------------


class Event(Struct, frozen=True):
    """Something that happened. It means something in its `phases` alone."""

    phases: ClassVar[frozenset[Phase]] = frozenset()

    def applied(self, state: State, plan: Plan, now: float) -> State:
        """The state after it. `now` is seconds since 1970."""
        raise NotImplementedError


class Refused(Event, frozen=True):
    """The preflight found what must be put right first. Nothing was changed."""

    phases = frozenset({Phase.PREFLIGHT})
    problems: tuple[str, ...]
    records: tuple[RouteRecord, ...] = ()
    facts: str = ""

    def applied(self, state: State, plan: Plan, now: float) -> State:
        reason = "; ".join(self.problems)
        return _enter(state, Phase.FAILED, now, f"refused: {reason}", reason=reason)


class Found(Event, frozen=True):
    """The preflight found everything as it should be: the routes, the pools' uids, and in `facts` what else it saw."""

    phases = frozenset({Phase.PREFLIGHT})
    records: tuple[RouteRecord, ...]
    facts: str = ""
    old_uid: str = ""
    new_uid: str = ""

    def applied(self, state: State, plan: Plan, now: float) -> State:
        message = f"{len(self.records)} routes lead to {plan.old}. {self.facts}".strip()
        uids = {"old_uid": self.old_uid, "new_uid": self.new_uid}
        return _enter(state, Phase.PREPARE, now, message, records=self.records, facts=self.facts, **uids)


class Discovered(Event, frozen=True):
    """More routes lead to the old pool than are recorded."""

    phases = REVERSIBLE | {Phase.CLEAN_UP}
    records: tuple[RouteRecord, ...]

    def applied(self, state: State, plan: Plan, now: float) -> State:
        known = {record.key for record in state.records}
        new = tuple(record for record in self.records if record.key not in known)
        if not new:
            return state
        names = ", ".join(str(record) for record in new)
        changed = state.noted(now, f"found more that leads to the old pool: {names}", records=(*state.records, *new))
        # They have to be brought to where the others are before anything is measured, or put in its final place.
        if state.phase in (Phase.GATE, Phase.FINALISE, Phase.CLEAN_UP):
            return structs.replace(changed, phase=Phase.SHIFT, since=now)
        return changed


class Written(Event, frozen=True):
    """Every recorded route gives the new pool this many percent."""

    phases = frozenset({Phase.PREPARE, Phase.SHIFT})
    percent: int

    def applied(self, state: State, plan: Plan, now: float) -> State:
        if state.phase is Phase.PREPARE:
            return _enter(state, Phase.WARM_UP, now, "the routes name the new pool, with weight 0", share=0)
        if self.percent != percent_of(state, plan):
            return state
        # After the last gate the routes were only brought in line with a newly found one.
        gated = any(result.percent == self.percent and result.verdict != FAIL for result in state.history)
        after = Phase.DRAIN if gated and self.percent == 100 else Phase.GATE
        return _enter(state, after, now, f"{self.percent} % go to the new pool", share=self.percent)


class WarmedUp(Event, frozen=True):
    """The new pool answered by itself."""

    phases = frozenset({Phase.WARM_UP})
    detail: str = ""

    def applied(self, state: State, plan: Plan, now: float) -> State:
        return _enter(state, Phase.SHIFT, now, self.detail or "the new pool answers", step=0)


class Judged(Event, frozen=True):
    """A gate's verdict; `reference` is the old pool's window where it had traffic enough."""

    phases = frozenset({Phase.GATE})
    result: GateResult
    reference: Counters | None = None

    def applied(self, state: State, plan: Plan, now: float) -> State:
        result, history = self.result, (*state.history, structs.replace(self.result, at=now))
        state = structs.replace(state, history=history, reference=self.reference or state.reference)
        failed = result.verdict == FAIL or (result.verdict == INSUFFICIENT and plan.insufficient == "rollback")
        if failed:
            return _take_back(state, f"the gate at {result.percent} % failed: {result.reason}", now)
        message = f"the gate at {result.percent} % passed"
        if result.verdict == INSUFFICIENT:
            message = f"the gate at {result.percent} % was let pass with too little traffic: {result.reason}"
        if plan.steps[state.step] in plan.manual:
            return _enter(state, Phase.APPROVAL, now, f"{message}; somebody has to approve")
        return _next_step(state, plan, now, message)


class Approved(Event, frozen=True):
    """Somebody approved of the next step."""

    phases = frozenset({Phase.APPROVAL})
    by: str = ""

    def applied(self, state: State, plan: Plan, now: float) -> State:
        # People may take their time: it counts for the approval's own timeout, and not for the replacement's.
        state = structs.replace(state, waited=state.waited + now - state.since)
        return _next_step(state, plan, now, f"approved{f' by {self.by}' if self.by else ''}")


class Drained(Event, frozen=True):
    """The old pool is idle, or the deadline has passed; `detail` says which."""

    phases = frozenset({Phase.DRAIN})
    detail: str = ""

    def applied(self, state: State, plan: Plan, now: float) -> State:
        return _enter(state, Phase.FINALISE, now, self.detail or "the old pool is idle")


class Finalised(Event, frozen=True):
    """The new pool is in the old one's place in every route."""

    phases = frozenset({Phase.FINALISE})

    def applied(self, state: State, plan: Plan, now: float) -> State:
        return _enter(state, Phase.CLEAN_UP, now, "the new pool is in the old one's place in every route")


class Removed(Event, frozen=True):
    """What had to be removed is gone, but for what is `left` to be deleted still; or it is `kept`, and why."""

    phases = frozenset({Phase.CLEAN_UP, Phase.DISCARD})
    count: int = 0
    kept: str = ""
    left: tuple[str, ...] = ()

    def applied(self, state: State, plan: Plan, now: float) -> State:
        if state.phase is Phase.DISCARD:
            fate = self._fate("new") if plan.remove_new else "the new pool is kept"
            return _enter(state, Phase.ROLLED_BACK, now, f"rolled back; {fate}")
        fate = self._fate("old") if plan.remove_old else "the old pool is kept"
        return _enter(state, Phase.DONE, now, f"completed; {fate}", reason="", kept=self.kept)

    def _fate(self, which: str) -> str:
        if self.kept:
            return f"the {which} pool is kept, remove it by hand once nothing leads to it: {self.kept}"
        left = f"; these are still being deleted: {', '.join(self.left)}" if self.left else ""
        return f"{self.count} objects of the {which} pool removed{left}"


class Restored(Event, frozen=True):
    """Every recorded route has its backends and weights back, but for those that the record does not fit: `left`."""

    phases = frozenset({Phase.RESTORE})
    left: tuple[str, ...] = ()

    def applied(self, state: State, plan: Plan, now: float) -> State:
        message = "every route has its backends and weights back"
        if self.left:
            message += f", but for what was left alone: {'; '.join(self.left)}"
        return _enter(state, Phase.DISCARD, now, message, share=-1)


class Abort(Event, frozen=True):
    """Something that a replacement is taken back for: a dead pool, a foreign change, a failed warm-up, a timeout."""

    phases = REVERSIBLE | {Phase.PREFLIGHT}
    reason: str

    def applied(self, state: State, plan: Plan, now: float) -> State:
        if state.phase is Phase.PREFLIGHT:
            return state.noted(now, f"refused: {self.reason}", phase=Phase.FAILED, reason=self.reason, finished=now)
        return _take_back(state, self.reason, now)


class RollbackAsked(Event, frozen=True):
    """Somebody wants everything as it was."""

    phases = frozenset(Phase)
    by: str = ""

    def applied(self, state: State, plan: Plan, now: float) -> State:
        reason = f"asked for{f' by {self.by}' if self.by else ''}"
        if state.phase is Phase.PREFLIGHT:
            return _enter(state, Phase.ROLLED_BACK, now, "rolled back before anything was changed", reason=reason)
        return _take_back(state, reason, now) if may_roll_back(state, plan) else state
