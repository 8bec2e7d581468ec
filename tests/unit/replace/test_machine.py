"""The step engine against a world that fails and a process that dies anywhere: it ends completed or rolled back."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from headrace.replace import machine
from headrace.replace.counters import Counters, Histogram
from headrace.replace.gates import FAIL, INSUFFICIENT, PASS, Check, GateResult
from headrace.replace.machine import (
    Abort,
    Approved,
    Discovered,
    Drained,
    Event,
    Finalised,
    Found,
    Judged,
    Refused,
    Removed,
    Restored,
    RollbackAsked,
    WarmedUp,
    Written,
    advance,
    percent_of,
)
from headrace.replace.plan import ObjectRef, Plan, PoolRef, parse_plan
from headrace.replace.routes import Foreign, final_patch, records, restore_patch, shift_patch
from headrace.replace.state import SCHEMA, InvalidState, Phase, State, parse_state, state_as_json
from headrace.replace.store import _request

from .patching import patched
from .test_routes import MIXED, grpc, pool, route, rule

GA = "inference.networking.k8s.io"
PLAN = Plan(old=PoolRef(GA, "serving", "old"), new=PoolRef(GA, "serving", "new"), steps=(5, 50, 100), manual=(50,))
KEPT = (ObjectRef("apps", "v1", "deployments", "serving", "old"),)


def result(percent: int, verdict: str) -> GateResult:
    check = Check("errors", 0.0, 0.1, "limit", 0.001, verdict, "" if verdict == PASS else f"errors are {verdict}")
    return GateResult(percent, 60, 100, 100, (check,), verdict)


class World:
    """Routes in memory, and what the process that works on them is told. `tape` decides what goes wrong."""

    def __init__(self, routes: list[dict[str, Any]], plan: Plan, tape: list[int]) -> None:
        self.routes = {
            (one["kind"], one["metadata"]["namespace"], one["metadata"]["name"]): copy.deepcopy(one) for one in routes
        }
        self.plan = plan
        self.tape = tape
        self.removed: set[str] = set()

    def draw(self) -> int:
        return self.tape.pop() if self.tape else 0

    def act(self, state: State) -> Event:
        """Do what the phase asks for, on all routes or, when the process dies in between, on some."""
        phase, luck = state.phase, self.draw()
        if phase in machine.REVERSIBLE and luck == 1:
            return Abort("the new pool is dead")
        if luck == 2:
            return RollbackAsked("somebody")
        if phase is Phase.PREFLIGHT:
            found = records(self.routes.values(), self.plan)
            return Refused(("no capacity",)) if luck == 3 else Found(found)
        if phase in (Phase.PREPARE, Phase.SHIFT):
            if new := [one for one in records(self.routes.values(), self.plan) if one.key not in self.known(state)]:
                return Discovered(tuple(new))
            percent = percent_of(state, self.plan)
            return self.write(state, lambda found, rec: shift_patch(found, rec, self.plan, percent), Written(percent))
        if phase is Phase.WARM_UP:
            return Abort("the warm-up failed") if luck == 3 else WarmedUp()
        if phase is Phase.GATE:
            verdict = {3: FAIL, 4: INSUFFICIENT}.get(luck, PASS)
            return Judged(result(percent_of(state, self.plan), verdict), Counters(100, 1, 0))
        if phase is Phase.APPROVAL:
            return Abort("nobody approved") if luck == 3 else Approved("somebody")
        if phase is Phase.DRAIN:
            return Drained()
        if phase is Phase.FINALISE:
            return self.write(state, lambda found, rec: final_patch(found, rec, self.plan), Finalised())
        if phase is Phase.CLEAN_UP:
            if new := [one for one in records(self.routes.values(), self.plan) if one.key not in self.known(state)]:
                return Discovered(tuple(new))
            self.removed.update(str(one) for one in self.plan.remove_old)
            return Removed(len(self.plan.remove_old))
        if phase is Phase.RESTORE:
            return self.write(state, lambda found, rec: restore_patch(found, rec, self.plan), Restored())
        assert phase is Phase.DISCARD
        self.removed.update(str(one) for one in self.plan.remove_new)
        return Removed(len(self.plan.remove_new))

    def known(self, state: State) -> set[tuple[str, str]]:
        return {record.key for record in state.records}

    def write(self, state: State, patch: Any, done: Event) -> Event:
        for record in state.records:
            if record.key in self.routes and self.draw() != 5:
                try:
                    self.routes[record.key] = patched(self.routes[record.key], patch(self.routes[record.key], record))
                except Foreign as error:
                    return Abort(str(error))
            elif record.key in self.routes:
                raise Died
        return done


class Died(Exception):  # noqa: N818
    """The process was killed."""


ROUTES = [
    MIXED,
    route(rule(pool("old", 3), pool("third", 2)), name="second"),
    route(rule(pool("third")), name="not"),
    grpc(pool("old", 2), pool("third"), name="second"),
]


def replaced(found: dict[str, Any]) -> dict[str, Any]:
    found = copy.deepcopy(found)
    for each in found["spec"]["rules"]:
        for ref in each["backendRefs"]:
            ref["name"] = "new" if ref["name"] == "old" else ref["name"]
    return found


@given(
    st.lists(st.integers(0, 40), max_size=120),
    st.lists(st.integers(0, 30), max_size=200),
    st.sampled_from(["rollback", "pass"]),
    st.booleans(),
    st.integers(0, 60),
)
@settings(max_examples=400)
def test_every_run_ends_completed_or_as_it_was(
    tape: list[int], deaths: list[int], insufficient: str, remove: bool, late: int
) -> None:
    plan = structs.replace(
        PLAN, insufficient=insufficient, remove_old=KEPT if remove else (), remove_new=() if remove else KEPT
    )
    world = World(ROUTES, plan, tape)
    saved = State(run="1", started=1.0)
    extra = route(rule(pool("old", 2)), name="late")
    for turn in range(1000):
        if saved.is_finished:
            break
        if turn == late:
            world.routes["HTTPRoute", "serving", "late"] = copy.deepcopy(extra)
        try:
            event = world.act(saved)
        except Died:
            continue
        after = advance(saved, event, plan, turn + 1.0)
        # Killed after it did its work and before it wrote that down: what was saved is what is known.
        if not deaths or deaths.pop() != 1:
            saved = parse_state(state_as_json(after))
    else:
        pytest.fail(f"no end: {saved.phase}")
    before = {(one["kind"], "serving", one["metadata"]["name"]): one for one in [*ROUTES, extra]}
    for key, found in world.routes.items():
        if saved.phase is Phase.DONE:
            # A route that came after the last look at them leads to the old pool still; none is in between.
            assert found == replaced(before[key]) or (key[2] == "late" and found == before[key])
        else:
            assert found == before[key]
    if saved.phase is Phase.DONE:
        assert world.removed == {str(one) for one in plan.remove_old}
    elif saved.phase is Phase.ROLLED_BACK and saved.records:
        assert world.removed == {str(one) for one in plan.remove_new}
    if saved.phase is Phase.FAILED:
        assert not world.removed
    assert saved.finished


def run(*events: Event, plan: Plan = PLAN) -> State:
    state = State(run="1")
    for at, event in enumerate(events):
        state = advance(state, event, plan, float(at))
    return state


FOUND = Found(records([MIXED], PLAN), "both pools have 2 endpoints")
TO_FIRST_GATE = (FOUND, Written(0), WarmedUp(), Written(5))
THROUGH = (
    *TO_FIRST_GATE, Judged(result(5, PASS)), Written(50), Judged(result(50, PASS)), Approved("me"), Written(100),
    Judged(result(100, PASS)), Drained(), Finalised(), Removed(),
)  # fmt: skip


def test_the_happy_way() -> None:
    phases = [run(*THROUGH[:count]).phase for count in range(len(THROUGH) + 1)]
    assert phases == [
        Phase.PREFLIGHT, Phase.PREPARE, Phase.WARM_UP, Phase.SHIFT, Phase.GATE, Phase.SHIFT, Phase.GATE,
        Phase.APPROVAL, Phase.SHIFT, Phase.GATE, Phase.DRAIN, Phase.FINALISE, Phase.CLEAN_UP, Phase.DONE,
    ]  # fmt: skip
    assert [entry.message for entry in run(*THROUGH).log][:2] == [
        "1 routes lead to serving/old (inference.networking.k8s.io/v1). both pools have 2 endpoints",
        "the routes name the new pool, with weight 0",
    ]


def test_a_failed_gate_rolls_back_with_its_reason() -> None:
    state = run(*TO_FIRST_GATE, Judged(result(5, FAIL)))
    assert state.phase is Phase.RESTORE
    assert state.reason == "the gate at 5 % failed: errors are fail"
    assert run(*TO_FIRST_GATE, Judged(result(5, FAIL)), Restored(), Removed()).phase is Phase.ROLLED_BACK


def test_too_little_traffic_is_what_the_plan_says() -> None:
    assert run(*TO_FIRST_GATE, Judged(result(5, INSUFFICIENT))).phase is Phase.RESTORE
    lenient = structs.replace(PLAN, insufficient="pass")
    assert run(*TO_FIRST_GATE, Judged(result(5, INSUFFICIENT)), plan=lenient).phase is Phase.SHIFT


def test_a_completed_replacement_can_be_taken_back_while_the_old_pool_is_kept() -> None:
    assert run(*THROUGH, RollbackAsked("me")).phase is Phase.RESTORE
    assert run(*THROUGH, RollbackAsked("me"), Restored(), Removed()).phase is Phase.ROLLED_BACK
    removing = structs.replace(PLAN, remove_old=KEPT)
    assert run(*THROUGH, RollbackAsked("me"), plan=removing).phase is Phase.DONE
    assert run(*THROUGH[:-1], RollbackAsked("me"), plan=removing).phase is Phase.CLEAN_UP


def test_nothing_turns_a_rollback_around() -> None:
    back = run(*TO_FIRST_GATE, RollbackAsked("me"))
    for event in (
        Written(5),
        Judged(result(5, PASS)),
        Approved(),
        WarmedUp(),
        RollbackAsked(),
        Abort("x"),
        Finalised(),
    ):
        assert advance(back, event, PLAN, 9.0) == back


def test_events_out_of_place_change_nothing() -> None:
    gate = run(*TO_FIRST_GATE)
    for event in (
        Written(50),
        Written(5),
        Approved(),
        Drained(),
        Finalised(),
        Restored(),
        Removed(),
        WarmedUp(),
        FOUND,
    ):
        assert advance(gate, event, PLAN, 9.0) == gate
    shifting = run(FOUND, Written(0), WarmedUp())
    assert advance(shifting, Written(0), PLAN, 9.0) == shifting


def test_a_state_is_kept_whole() -> None:
    state = structs.replace(
        run(*TO_FIRST_GATE, Judged(result(5, PASS), Counters(9, 1, 1, Histogram((1.0,), (2.0, 3.0))))), share=5
    )
    assert parse_state(state_as_json(state)) == state


def test_a_state_of_an_earlier_version_is_read() -> None:
    """And one of this version has all that an earlier one asks for."""
    state = run(*TO_FIRST_GATE)
    saved = json.loads(json.dumps(state_as_json(state)))
    assert saved["phase"] == state.phase.value
    assert {*saved} >= {"run", "step", "share", "started", "since", "finished", "reason", "facts", "reference", "log"}
    for name in ("old_uid", "new_uid", "kept", "waited"):
        del saved[name]
    for record in saved["records"]:
        for name in ("kind", "owners", "rest"):
            del record[name]
    found = parse_state({**saved, "later": 1})
    plain = [structs.replace(record, kind="HTTPRoute", owners=(), rest="") for record in state.records]
    assert found == structs.replace(state, old_uid="", new_uid="", kept="", waited=0.0, records=tuple(plain))
    assert found.records


def test_a_record_that_another_version_wrote_is_read_and_written_alike(repository: Path) -> None:
    recorded = json.loads((repository / "tests/data/replacement-record.json").read_text())
    plan, state = parse_plan(recorded["plan.json"]), parse_state(recorded["state.json"])
    assert json.loads(json.dumps(plan.as_json())) == recorded["plan.json"]
    assert json.loads(json.dumps(state_as_json(state))) == recorded["state.json"]
    asked = _request(json.dumps(recorded["request"]))
    assert asked is not None and structs.asdict(asked) == recorded["request"]
    (record,) = state.records
    assert (record.key, record.owners[0].manager) == (("HTTPRoute", "serving", "llm"), "kubectl")
    assert state.reference is not None and state.reference.ttft is not None and state.reference.tpot is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": SCHEMA + 1}, "another version"),
        ({"phase": "x"}, "cannot be read"),
        ({"records": [{}]}, r"\$\.records\[0\]"),
    ],
)
def test_a_state_that_cannot_be_read_says_what_to_do(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidState, match=message):
        parse_state({**state_as_json(run()), **change})
    with pytest.raises(InvalidState, match="no JSON object"):
        parse_state([])


def test_the_log_is_bounded() -> None:
    state = State(run="1")
    for at in range(500):
        state = state.noted(float(at), f"line {at}")
    assert [state.log[0].message, state.log[-1].message, len(state.log)] == ["line 300", "line 499", 200]
