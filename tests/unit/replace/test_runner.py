"""The loop around the step engine, on a clock of its own: waits, refusals, dead pools, requests of people."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec import structs

from headrace.kube.client import ApiError
from headrace.kube.lease import LeaseLost
from headrace.replace.counters import Counters, Histogram
from headrace.replace.machine import (
    Abort,
    Discovered,
    Event,
    Finalised,
    Found,
    Refused,
    Removed,
    Restored,
    WarmedUp,
    Written,
)
from headrace.replace.measure import PoolReading
from headrace.replace.plan import ObjectRef, Plan, PoolRef
from headrace.replace.routes import RouteRecord, records
from headrace.replace.runner import Runner
from headrace.replace.state import Phase, State
from headrace.replace.store import Record, Request, Unreadable

from .test_routes import MIXED

GA = "inference.networking.k8s.io"
PLAN = Plan(
    old=PoolRef(GA, "serving", "old"), new=PoolRef(GA, "serving", "new"), steps=(10, 100), interval=20.0,
    gate_timeout=60.0, min_sample=20, dead_after=5.0,
)  # fmt: skip
AWAY = ApiError(0, "Unreachable", "GET /: refused")
FORBIDDEN = ApiError(403, "Forbidden", "may not patch httproutes")


class Bench:
    """World, reader and keeper in memory, with a clock that sleeping moves on."""

    def __init__(self, plan: Plan = PLAN) -> None:
        self.plan = plan
        self.now = 1000.0
        self.share = 0
        self.errors, self.dead = 0.0, ""
        self.request: Request | None = None
        self.stored: State | None = None
        self.saves = 0
        self.fail: Callable[[str], Exception | None] = lambda what: None
        self.at: Callable[[], None] = lambda: None
        self.counted = {"old": Counters(), "new": Counters()}
        self.reasons: list[str] = []
        self.restored = False
        # A route that came late and that nobody has moved yet: all its requests go to the old pool.
        self.late: tuple[RouteRecord, ...] = ()
        self.unmoved = 0.0
        self.leading: dict[str, tuple[tuple[str, str, str], ...]] = {}
        self.uids = {"old": "uid-old", "new": "uid-new"}
        # What the process was asked to remove; None: what the plan says.
        self.may_remove: tuple[ObjectRef, ...] | None = None
        self.removed: list[ObjectRef] = []

    def runner(self) -> Runner:
        asked = (*self.plan.remove_old, *self.plan.remove_new) if self.may_remove is None else self.may_remove
        return Runner(
            self.plan, self, self, self, may_remove=asked, poll_interval=1.0, clock=lambda: self.now, sleep=self.sleep
        )

    async def run(self, state: State | None = None) -> State:
        return await self.runner().run(state or State(run="1", started=self.now, since=self.now))

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.at()
        for which, share in (("old", 100 - self.share + self.unmoved), ("new", self.share)):
            count = round(share * seconds / 10, 3)
            bad = count * (self.errors if which == "new" else 0.0)
            shape = Histogram((0.1, 1.0), (count / 2, count / 2, 0.0))
            self.counted[which] += Counters(count, bad, bad, shape, shape)

    def may(self, what: str) -> None:
        if (error := self.fail(what)) is not None:
            raise error

    # World

    async def preflight(self) -> Refused | Found:
        self.may("preflight")
        return Found(records([MIXED], self.plan), "facts", "uid-old", "uid-new")

    async def shift(self, state: State, percent: int) -> Event:
        self.may("shift")
        if event := await self.discover(state):
            return event
        self.share, self.unmoved = percent, 0.0
        return Written(percent)

    async def warm_up(self, state: State) -> Event:
        self.may("warm_up")
        return WarmedUp()

    async def finalise(self, state: State) -> Event:
        self.may("finalise")
        return Finalised()

    async def restore(self, state: State) -> Event:
        self.may("restore")
        self.share, self.restored = 0, True
        return Restored()

    async def give_back(self, state: State) -> None:
        self.may("give back")

    async def discover(self, state: State) -> Event | None:
        known = {record.key for record in state.records}
        found = tuple(record for record in self.late if record.key not in known)
        return Discovered(found) if found else None

    async def leading_to(self, *pools: PoolRef) -> tuple[tuple[str, str, str], ...]:
        return tuple(route for pool in pools for route in self.leading.get(pool.name, ()))

    async def uid_of(self, pool: PoolRef) -> str:
        return self.uids[pool.name]

    async def remove(self, objects: tuple[Any, ...]) -> Removed:
        self.removed += objects
        return Removed(len(objects))

    async def event(self, reason: str, message: str, *, warning: bool = False) -> None:
        self.reasons.append(reason)

    # Reader

    async def read(self, ref: PoolRef) -> PoolReading:
        self.may(f"read {ref.name}")
        pages = {ref.name: self.counted[ref.name]}
        return PoolReading(pages, {ref.name: 0.0}, self.dead if ref.name == "new" else "", float(self.share < 100))

    # Keeper

    async def load(self) -> Record | None:
        self.may("load")
        return None if self.stored is None else Record(self.plan, self.stored, 0, self.request)

    async def save(self, plan: Plan, state: State, epoch: int) -> None:
        self.may("save")
        self.stored = state
        self.saves += 1

    async def clear_request(self) -> None:
        self.may("clear")
        self.request = None


async def test_the_happy_way_takes_the_time_that_the_plan_says() -> None:
    bench = Bench()
    state = await bench.run()
    assert state.phase is Phase.DONE
    assert bench.stored == state
    assert [result.verdict for result in state.history] == ["pass", "pass"]
    assert 40 <= bench.now - 1000 <= PLAN.expected_seconds
    assert bench.reasons[-1] == "Completed"
    # A request is counted once, in the window that it came in.
    assert state.history[0].requests_new == pytest.approx(20, abs=2)


async def test_errors_end_the_window_early() -> None:
    bench = Bench()
    bench.errors = 1.0
    state = await bench.run()
    assert state.phase is Phase.ROLLED_BACK
    assert "ended in server errors" in state.reason
    assert bench.restored
    assert bench.now - 1000 < 15


async def test_a_window_with_too_little_traffic_waits_and_then_fails() -> None:
    bench = Bench(structs.replace(PLAN, min_sample=2000))
    state = await bench.run()
    assert state.phase is Phase.ROLLED_BACK
    assert "2000 are needed" in state.reason
    assert 60 <= bench.now - 1000 < 70


async def test_a_route_that_comes_while_a_gate_measures_is_taken_along() -> None:
    bench = Bench(structs.replace(PLAN, steps=(50, 100)))
    (known,) = records([MIXED], PLAN)
    late = structs.replace(known, name="late")

    def comes() -> None:
        if bench.now > 1005 and not bench.late:
            bench.late, bench.unmoved = (late,), 200.0

    bench.at = comes
    state = await bench.run()
    assert state.phase is Phase.DONE, state.reason
    assert [record.name for record in state.records] == [known.name, "late"]
    assert [(result.percent, result.verdict) for result in state.history] == [(50, "pass"), (100, "pass")]


async def test_routes_are_looked_at_once_more_before_the_old_pool_is_removed() -> None:
    bench = Bench(structs.replace(PLAN, remove_old=(ObjectRef("", "v1", "services", "serving", "old-epp"),)))
    calls: list[str] = []
    bench.fail = lambda what: calls.append(what)  # type: ignore[func-returns-value]
    assert (await bench.run()).phase is Phase.DONE
    assert calls.count("finalise") == 2
    assert calls[-3:].count("give back") == 1


async def test_an_old_pool_that_somebody_leads_a_route_to_again_is_kept() -> None:
    bench = Bench(structs.replace(PLAN, remove_old=(ObjectRef("", "v1", "services", "serving", "old-epp"),)))
    looks, removals = iter((Finalised(), Abort("HTTPRoute serving/r, rule 0: somebody else changed it"))), list[Any]()

    async def finalise(state: State) -> Event:
        return next(looks)

    async def remove(objects: tuple[Any, ...]) -> Removed:
        removals.append(objects)
        return Removed(len(objects))

    bench.finalise, bench.remove = finalise, remove  # type: ignore[method-assign]
    state = await bench.run()
    assert (state.phase, removals) == (Phase.DONE, [])
    assert "the old pool is kept" in state.log[-1].message
    assert "HTTPRoute serving/r, rule 0: somebody else changed it" in state.log[-1].message


@pytest.mark.parametrize("which", ["old", "new"])
async def test_a_pool_that_some_route_names_is_not_removed(which: str) -> None:
    objects = (ObjectRef("", "v1", "services", "serving", f"{which}-epp"),)
    bench = Bench(structs.replace(PLAN, **{f"remove_{which}": objects}))
    bench.errors = 1.0 if which == "new" else 0.0
    bench.leading = {which: (("HTTPRoute", "elsewhere", "theirs"),)}
    state = await bench.run()
    assert state.phase is (Phase.DONE if which == "old" else Phase.ROLLED_BACK)
    assert "kept, remove it by hand once nothing leads to it: HTTPRoute elsewhere/theirs" in state.log[-1].message
    bench.request = Request("rollback", "me")
    if which == "old":
        state = await bench.run(state)
        assert state.phase is Phase.ROLLED_BACK, "what is there can be gone back to"


@pytest.mark.parametrize("which", ["old", "new"])
async def test_what_only_the_record_names_is_not_removed(which: str) -> None:
    mine, theirs = (ObjectRef("", "v1", "services", "serving", name) for name in (f"{which}-epp", "somebody-elses"))
    bench = Bench(structs.replace(PLAN, **{f"remove_{which}": (mine, theirs)}))
    bench.errors = 1.0 if which == "new" else 0.0
    bench.may_remove = (mine,)
    await bench.run()
    assert bench.removed == [mine]
    bench = Bench(bench.plan)
    bench.errors = 1.0 if which == "new" else 0.0
    bench.may_remove = ()
    state = await bench.run()
    assert bench.removed == []
    assert state.phase is (Phase.DONE if which == "old" else Phase.ROLLED_BACK)
    assert bool(state.kept) == (which == "old")


@pytest.mark.parametrize("which", ["old", "new"])
@pytest.mark.parametrize(("uid", "removed"), [("uid-{}", 1), ("", 1), ("another", 0)])
async def test_a_pool_that_was_made_anew_is_not_the_one_to_remove(which: str, uid: str, removed: int) -> None:
    objects = (ObjectRef("", "v1", "services", "serving", f"{which}-epp"),)
    bench = Bench(structs.replace(PLAN, **{f"remove_{which}": objects}))
    bench.errors = 1.0 if which == "new" else 0.0
    bench.uids[which] = uid.format(which)
    await bench.run()
    assert len(bench.removed) == removed


@pytest.mark.parametrize("what", ["shift", "read new", "finalise"])
async def test_an_error_of_its_own_is_rolled_back_not_died_of(what: str) -> None:
    bench = Bench()
    bench.fail = lambda asked: KeyError("matches") if asked == what and bench.share >= 10 else None
    state = await bench.run()
    assert state.phase is Phase.ROLLED_BACK
    assert bench.restored
    assert "an error of this program: KeyError: 'matches'" in state.reason


async def test_an_error_of_its_own_ends_no_rollback() -> None:
    bench = Bench()
    bench.errors = 1.0
    bench.fail = lambda what: KeyError("matches") if what == "restore" and bench.now < 1500 else None
    state = await bench.run()
    assert state.phase is Phase.ROLLED_BACK
    assert bench.now >= 1500


async def test_a_route_that_comes_late_and_cannot_be_taken_along_is_a_reason_to_go_back() -> None:
    bench = Bench()

    async def discover(state: State) -> Event | None:
        return Abort("HTTPRoute other/late may not refer to serving/new") if bench.share == 10 else None

    bench.discover = discover  # type: ignore[method-assign]
    state = await bench.run()
    assert state.phase is Phase.ROLLED_BACK
    assert state.reason == "HTTPRoute other/late may not refer to serving/new"


async def test_the_old_pool_drains_once_more_after_a_route_that_came_late() -> None:
    bench = Bench()
    (known,) = records([MIXED], PLAN)
    late, looks = structs.replace(known, name="late"), iter([0])

    async def finalise(state: State) -> Event:
        return Discovered((late,)) if next(looks, None) is not None else Finalised()

    bench.finalise = finalise  # type: ignore[method-assign]
    state = await bench.run()
    assert state.phase is Phase.DONE
    drains = [entry.message for entry in state.log if entry.message.startswith("the old pool is idle")]
    assert len(drains) == 2


async def test_people_may_take_longer_to_approve_than_all_the_rest_may_take() -> None:
    bench = Bench(structs.replace(PLAN, manual=(10,), approval_timeout=5000.0, timeout=600.0))
    bench.at = lambda: setattr(bench, "request", Request("approve", "me", 10) if bench.now > 4000 else None)
    state = await bench.run()
    assert state.phase is Phase.DONE, state.reason


async def test_a_dead_pool_is_given_its_seconds_and_no_more() -> None:
    bench = Bench()

    def dead() -> None:
        bench.dead = "no ready endpoint" if bench.now > 1010 else ""

    bench.at = dead
    state = await bench.run()
    assert state.reason == "the new pool is dead: no ready endpoint"
    assert 1015 <= bench.now <= 1018
    bench = Bench()
    bench.at = lambda: setattr(bench, "dead", "blink" if 1010 < bench.now < 1013 else "")
    assert (await bench.run()).phase is Phase.DONE


async def test_an_api_server_that_is_away_is_waited_for_everywhere() -> None:
    bench = Bench()
    bench.fail = lambda what: AWAY if int(bench.now) % 7 in (1, 2, 3) else None
    state = await bench.run()
    assert state.phase is Phase.DONE


@pytest.mark.parametrize(("what", "phase"), [("preflight", Phase.FAILED), ("shift", Phase.ROLLED_BACK)])
async def test_a_refusal_that_lasts_is_not_waited_out(what: str, phase: Phase) -> None:
    bench = Bench()
    bench.fail = lambda asked: FORBIDDEN if asked == what else None
    state = await bench.run()
    assert state.phase is phase
    assert "may not patch" in state.reason


async def test_a_rollback_is_never_given_up() -> None:
    bench = Bench()
    bench.errors = 1.0
    bench.fail = lambda what: FORBIDDEN if what == "restore" and bench.now < 1500 else None
    state = await bench.run()
    assert state.phase is Phase.ROLLED_BACK
    assert bench.now >= 1500


async def test_people_are_heard_while_it_waits() -> None:
    bench = Bench(structs.replace(PLAN, manual=(10,), approval_timeout=500.0))

    def people() -> None:
        if bench.stored is not None and bench.stored.phase is Phase.APPROVAL and bench.now > 1200:
            bench.request = Request("approve", "me", 10)

    bench.at = people
    state = await bench.run()
    assert state.phase is Phase.DONE
    assert "approved by me" in [entry.message for entry in state.log]
    assert bench.request is None
    bench.request = Request("rollback", "me")
    state = await bench.run(state)
    assert (state.phase, state.reason) == (Phase.ROLLED_BACK, "asked for by me")
    bench.request = Request("rollback", "me")
    assert await bench.run(state) == state, "back already"
    assert bench.request is None


async def test_an_approval_of_another_step_is_none() -> None:
    bench = Bench(structs.replace(PLAN, manual=(10,), approval_timeout=100.0))
    bench.request = Request("approve", "me", 50)
    state = await bench.run()
    assert state.reason == "nobody approved within 100 s"


async def test_asked_to_roll_back_in_the_middle_of_a_rollback_it_goes_on() -> None:
    bench = Bench()
    bench.errors = 1.0
    bench.fail = lambda what: AWAY if what == "restore" and bench.now < 1100 else None
    bench.at = lambda: setattr(bench, "request", Request("rollback") if 1050 < bench.now < 1060 else bench.request)
    assert (await bench.run()).phase is Phase.ROLLED_BACK
    assert bench.request is None


@pytest.mark.parametrize(("lag", "phase"), [(30.0, Phase.DONE), (1e6, Phase.ROLLED_BACK)])
async def test_a_gateway_that_does_not_take_a_weight_is_waited_for_or_given_up(lag: float, phase: Phase) -> None:
    bench = Bench()
    taken: list[tuple[float, int]] = []

    async def shift(state: State, percent: int) -> Event:
        taken.append((bench.now + (lag if percent == 100 else 0.0), percent))
        return Written(percent)

    def take() -> None:
        bench.share = max((percent for when, percent in taken if when <= bench.now), default=0)

    bench.shift, bench.at = shift, take  # type: ignore[method-assign]
    state = await bench.run()
    assert state.phase is phase
    last = state.history[-1]
    if phase is Phase.DONE:
        assert (last.percent, last.requests_new / (last.requests_new + last.requests_old)) == (100, pytest.approx(1.0))
    else:
        assert "the gateway gives the new pool" in state.reason
        assert last.percent == 10


@pytest.mark.parametrize("step", ["shift", "finalise", "restore"])
async def test_a_step_that_the_gateway_has_not_translated_is_not_done(step: str) -> None:
    bench = Bench()
    bench.errors = 1.0 if step == "restore" else 0.0
    original, asked = getattr(bench, step), list[float]()

    async def late(*arguments: Any) -> Event | None:
        asked.append(bench.now)
        event: Event | None = await original(*arguments) if bench.now >= asked[0] + 20.0 else None
        return event

    setattr(bench, step, late)
    state = await bench.run()
    assert state.phase is (Phase.ROLLED_BACK if step == "restore" else Phase.DONE)
    assert asked[-1] >= asked[0] + 20.0


async def test_the_total_time_is_bounded() -> None:
    bench = Bench(structs.replace(PLAN, timeout=10.0))
    state = await bench.run()
    assert state.reason == "not finished after 10 s"


@pytest.mark.parametrize(("in_flight", "shown"), [(3.0, "3 requests"), (None, "an unknown number of requests")])
async def test_the_drain_ends_at_its_deadline(in_flight: float | None, shown: str) -> None:
    bench = Bench(structs.replace(PLAN, drain_timeout=30.0))
    reads = bench.read

    async def busy(ref: PoolRef) -> PoolReading:
        return structs.replace(await reads(ref), in_flight=in_flight)

    bench.read = busy  # type: ignore[method-assign]
    state = await bench.run()
    assert state.phase is Phase.DONE
    assert any(f"{shown} in flight" in entry.message for entry in state.log)


async def test_a_record_that_somebody_broke_is_written_over() -> None:
    bench = Bench()
    bench.fail = lambda what: Unreadable("no JSON") if what == "load" else None
    assert (await bench.run()).phase is Phase.DONE


async def test_a_lost_lease_ends_the_work_at_once() -> None:
    bench = Bench()
    bench.fail = lambda what: LeaseLost("taken over") if what == "shift" and bench.share == 10 else None
    with pytest.raises(LeaseLost):
        await bench.run()
    assert bench.stored is not None and bench.stored.phase is Phase.SHIFT
    bench.fail = lambda what: None
    assert (await bench.run(bench.stored)).phase is Phase.DONE, "the next one carries on"
