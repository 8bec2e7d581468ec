"""Carries a replacement out: does what the state's phase asks for, writes down what came of it, until it is finished.

An API server that is away stops nothing for good: what cannot be read or written is tried again, and what can be
measured without it is measured on. Requests of people (rollback, approval) are read during every wait."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import KW_ONLY, dataclass, field
from typing import TypeVar

from msgspec import structs

from headrace.core import InvalidPool
from headrace.kube.client import ApiError
from headrace.kube.lease import LeaseLost
from headrace.replace.cluster import Cluster
from headrace.replace.counters import Window
from headrace.replace.gates import FAIL, GateResult, enough, hopeless, judge, not_taken, table
from headrace.replace.machine import (
    REVERSIBLE,
    Abort,
    Approved,
    Discovered,
    Drained,
    Event,
    Judged,
    Refused,
    Removed,
    RollbackAsked,
    advance,
    may_roll_back,
    percent_of,
)
from headrace.replace.measure import Measure, PoolReading
from headrace.replace.plan import ObjectRef, Plan, PoolRef
from headrace.replace.state import Phase, State
from headrace.replace.store import Request, Store, Unreadable

logger = logging.getLogger(__name__)

_BACKOFF_SECONDS = (0.2, 5.0)
# The old pool is idle once this many readings in a row show nothing in flight.
_IDLE_LOOKS = 3
# Time limit for reading people's requests: an API server that hangs must not stop the measuring.
_REQUEST_SECONDS = 3.0
# Envoys take a new weight within this; until then the old pool may get requests still.
_SETTLE_SECONDS = 3.0
_TIMED = frozenset({Phase.PREPARE, Phase.WARM_UP, Phase.SHIFT, Phase.GATE})
# A missing right or kind, or an object that the API server finds wrong: asking again changes nothing.
_LASTING = frozenset({400, 401, 403, 404, 405, 422})
_T = TypeVar("_T")


@dataclass(eq=False)
class Runner:
    """One replacement, from whatever state it is in. Times in seconds.

    `may_remove` is what whoever started this process named for removal. The plan may come from the record, which others
    can write: of what it lists, nothing else is removed."""

    plan: Plan
    world: Cluster
    reader: Measure
    keeper: Store
    _: KW_ONLY
    may_remove: Collection[ObjectRef] = ()
    epoch: Callable[[], int] = lambda: 0
    poll_interval: float = 2.0
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _dead_since: float | None = field(default=None, init=False)

    async def run(self, state: State) -> State:
        """Until finished. Raises LeaseLost; what is done is in the kept state, whatever ends this."""
        await self._save(state)
        # A finished one is looked at once more: somebody may want it back.
        if state.is_finished and (asked := await self._asked(state)) is not None:
            state = await self._take(state, asked)
        delay = _BACKOFF_SECONDS[0]
        while not state.is_finished:
            event = await self._interruption(state)
            try:
                event = event or await self._act(state)
                delay = _BACKOFF_SECONDS[0]
            except ApiError as error:
                event = _refusal(state, error)
                logger.warning("%s: %s", "giving up" if event else "trying again", error)
            except LeaseLost:
                raise
            except Exception as error:
                # An error of our own must not leave routes in between, and a process that ends with it would.
                logger.exception("the step could not be taken")
                if state.phase in REVERSIBLE or state.phase is Phase.PREFLIGHT:
                    event = Abort(f"an error of this program: {type(error).__name__}: {error}")
            if event is not None:
                state = await self._take(state, event)
            else:
                await self.sleep(delay * random.uniform(0.5, 1.0))
                delay = min(delay * 2, _BACKOFF_SECONDS[1])
        return state

    async def _take(self, state: State, event: Event) -> State:
        after = advance(state, event, self.plan, self.clock())
        if after == state:
            return state
        await self._save(after)
        for entry in after.log[len(state.log) :] if len(after.log) > len(state.log) else after.log[-1:]:
            logger.info("%s", entry.message, extra={"phase": after.phase.value, "share": after.share})
        if len(after.history) > len(state.history):
            for line in table(after.history[-1]):
                logger.info("%s", line)
        if after.phase is not state.phase:
            back = after.phase in (Phase.RESTORE, Phase.ROLLED_BACK, Phase.FAILED)
            await self.world.event(after.phase.value, after.log[-1].message, warning=back)
        if isinstance(event, RollbackAsked | Approved):
            await self._insist(self.keeper.clear_request)
        return after

    async def _save(self, state: State) -> None:
        await self._insist(lambda: self.keeper.save(self.plan, state, self.epoch()))

    async def _insist(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """Try until it works: nothing may go on before what was decided is written down."""
        delay = _BACKOFF_SECONDS[0]
        while True:
            try:
                return await attempt()
            except ApiError as error:
                logger.warning("trying again: %s", error)
            await self.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, _BACKOFF_SECONDS[1])

    async def _act(self, state: State) -> Event | None:
        plan, world = self.plan, self.world
        match state.phase:
            case Phase.PREFLIGHT:
                return await world.preflight()
            case Phase.PREPARE | Phase.SHIFT:
                return await world.shift(state, percent_of(state, plan))
            case Phase.WARM_UP:
                return await world.warm_up(state)
            case Phase.GATE:
                return await self._gate(state)
            case Phase.APPROVAL:
                return await self._approval(state)
            case Phase.DRAIN:
                return await self._drain(state)
            case Phase.FINALISE:
                return await world.finalise(state)
            case Phase.CLEAN_UP:
                return await self._clean_up(state)
            case Phase.RESTORE:
                return await world.restore(state)
            case _:
                return await self._remove(plan.new, plan.remove_new, state.new_uid)

    async def _clean_up(self, state: State) -> Event | None:
        removed = Removed()
        if self.plan.remove_old:
            # No route may be left leading to a pool that is gone: not one that came after the last look, nor one that
            # somebody has put back.
            event = await self.world.finalise(state)
            if event is None or isinstance(event, Discovered):
                return event
            if isinstance(event, Abort):
                removed = Removed(kept=event.reason)
            else:
                removed = await self._remove(self.plan.old, self.plan.remove_old, state.old_uid)
        await self.world.give_back(state)
        return removed

    async def _remove(self, pool: PoolRef, objects: tuple[ObjectRef, ...], uid: str) -> Removed:
        """Remove what is recorded and was asked for, too. A pool that a route names is kept, whoever wrote that route,
        and so is one that was made anew since the start."""
        if not objects:
            return Removed()
        if routes := await self.world.leading_to(pool):
            names = ", ".join(f"{kind} {namespace}/{name}" for kind, namespace, name in routes)
            return Removed(kept=f"{names} {'leads' if len(routes) == 1 else 'lead'} to it")
        if uid and await self.world.uid_of(pool) not in ("", uid):
            return Removed(kept="it was made anew since the replacement began")
        allowed = tuple(found for found in objects if found in self.may_remove)
        if not allowed:
            return Removed(kept="the process that ended the replacement was not asked to remove it")
        return await self.world.remove(allowed)

    # ---- what stops a phase

    async def _interruption(self, state: State) -> Event | None:
        """What people ask for, and the total time. None while there is nothing."""
        if state.phase in _TIMED and self.clock() > state.started + state.waited + self.plan.timeout:
            return Abort(f"not finished after {self.plan.timeout:g} s")
        return await self._asked(state)

    async def _asked(self, state: State) -> Event | None:
        asked = await self._request()
        if asked is None:
            return None
        if asked.action == "rollback":
            if may_roll_back(state, self.plan):
                return RollbackAsked(asked.by)
            logger.info("asked to roll back, which is done already or can no longer be done (%s)", state.phase.value)
            await self._insist(self.keeper.clear_request)
            return None
        percent = percent_of(state, self.plan)
        if state.phase is Phase.APPROVAL and asked.percent in (0, percent):
            return Approved(asked.by)
        return None

    async def _request(self) -> Request | None:
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                stored = await self.keeper.load()
        except (ApiError, TimeoutError):
            return None
        except (Unreadable, ValueError) as error:
            # Somebody broke the record. What is known here is whole, and is written over it with the next step.
            logger.warning("the record cannot be read: %s", error)
            return None
        return stored.request if stored is not None else None

    async def _read(self, which: str, pool: PoolRef) -> PoolReading | None:
        try:
            return await self.reader.read(pool)
        except (ApiError, InvalidPool) as error:
            logger.warning("the %s pool cannot be looked at: %s", which, error)
            return None

    def _death(self, new: PoolReading | None) -> Abort | None:
        """Whether the new pool has been dead for too long."""
        if new is None:
            return None
        since, now = self._dead_since, self.clock()
        self._dead_since = (now if since is None else since) if new.dead else None
        is_over = new.dead and since is not None and now - since >= self.plan.dead_after
        return Abort(f"the new pool is dead: {new.dead}") if is_over else None

    async def _stopped(self, state: State) -> Event | None:
        """The event that ends a wait: an interruption, or a new pool that is dead. None: wait on."""
        return await self._interruption(state) or self._death(await self._read("new", self.plan.new))

    # ---- the phases that wait

    async def _gate(self, state: State) -> Event:
        """Measure both pools over one window. A gate that was interrupted begins its window anew."""
        plan, percent = self.plan, percent_of(state, self.plan)
        first = began = self.clock()
        old, new = Window(), Window()
        while True:
            if (event := await self._interruption(state)) is not None:
                return event
            looks = self._read("new", plan.new), self._read("old", plan.old)
            new_reading, old_reading = await asyncio.gather(*looks)
            if (dead := self._death(new_reading)) is not None:
                return dead
            new, old = _advanced(new, new_reading, began), _advanced(old, old_reading, began)
            seconds = self.clock() - began
            if reason := hopeless(plan, new.total):
                result = judge(plan, percent, seconds, old.total, new.total, state.reference)
                return Judged(_failed(result, reason))
            late = self.clock() - first >= plan.gate_timeout
            reason = not_taken(percent, old.total, new.total) if old.is_apart_from(new) else ""
            if seconds >= plan.interval and reason:
                # A route that came since gives the old pool all that it gets.
                if (event := await self._latecomers(state)) is not None:
                    return event
                if late:
                    return Abort(reason)
                logger.warning("%s: looking on", reason)
                began, old, new = self.clock(), Window(last=old.last), Window(last=new.last)
            elif seconds >= plan.interval and (enough(plan, new.total) or late):
                result = judge(plan, percent, seconds, old.total, new.total, state.reference)
                return Judged(result, old.total if enough(plan, old.total) else None)
            await self.sleep(min(self.poll_interval, max(0.05, plan.interval - seconds)))

    async def _latecomers(self, state: State) -> Event | None:
        try:
            return await self.world.discover(state)
        except ApiError as error:
            logger.warning("routes cannot be looked for: %s", error)
            return None

    async def _approval(self, state: State) -> Event:
        while True:
            if (event := await self._stopped(state)) is not None:
                return event
            if self.clock() > state.since + self.plan.approval_timeout:
                return Abort(f"nobody approved within {self.plan.approval_timeout:g} s")
            await self.sleep(self.poll_interval)

    async def _drain(self, state: State) -> Event:
        deadline, idle = state.since + self.plan.drain_timeout, 0
        left: float | None = None
        while True:
            if (event := await self._stopped(state)) is not None:
                return event
            reading = await self._read("old", self.plan.old)
            if reading is not None:
                # No reading does not mean idle.
                left = reading.in_flight
                idle = idle + 1 if left == 0 else 0
            waited = self.clock() - state.since
            if idle >= _IDLE_LOOKS and waited >= _SETTLE_SECONDS:
                return Drained(f"the old pool is idle after {waited:.0f} s")
            if self.clock() >= deadline:
                known = "an unknown number of" if left is None else f"{left:.0f}"
                return Drained(f"the drain's deadline is over with {known} requests in flight at the old pool")
            await self.sleep(min(self.poll_interval, 1.0))


def _refusal(state: State, error: ApiError) -> Event | None:
    """What a refusal of the API server comes to that will not go away by itself. None: try again.

    A rollback is never given up: routes in between are worse than a process that says again and again what it lacks."""
    if error.status not in _LASTING:
        return None
    if state.phase is Phase.PREFLIGHT:
        return Refused((str(error),))
    return Abort(str(error)) if state.phase in REVERSIBLE else None


def _advanced(window: Window, reading: PoolReading | None, began: float) -> Window:
    if reading is None:
        return window
    return window.advanced(reading.pages, [key for key, born in reading.born.items() if born >= began])


def _failed(result: GateResult, reason: str) -> GateResult:
    """A window that was ended early: failed, whatever its checks say of too few requests."""
    checks = tuple(
        structs.replace(check, verdict=FAIL, detail=reason) if check.name == "server errors" else check
        for check in result.checks
    )
    return structs.replace(result, checks=checks, verdict=FAIL)
