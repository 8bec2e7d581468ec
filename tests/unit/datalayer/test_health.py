"""The state machine of each server: by tables for each fault, and under any order of events."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from headrace.datalayer.health import OUT, SUSPECT, Cause, Health, Page, Server, Ward

TURN = 0.2
A, B, C, D = KEYS = tuple(f"10.0.0.{number}:8000" for number in range(1, 5))


@dataclass
class World:
    """A ward and its clock. `work` are the servers with requests, `tokens` of a prompt each."""

    keys: tuple[str, ...] = KEYS
    now: float = 100.0
    counted: dict[str, float] = field(default_factory=dict)
    changes: list[tuple[str, str, str]] = field(default_factory=list)
    wanted: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        def changed(server: Server, before: Health) -> None:
            self.changes.append((server.key, server.health.value, server.cause.value))

        self.ward = Ward(changed)
        for key in self.keys:
            self.ward.join(key, self.now, new=False)
            self.counted[key] = 1.0
            self.page(key)

    def page(self, key: str, *, grows: bool = False, asleep: bool = False, running: int = 0) -> None:
        self.counted[key] += grows
        page = Page(self.now, self.counted[key], (running, 0, 0.0), asleep)
        self.ward.page(key, page, self.now)

    def run(
        self,
        seconds: float,
        *,
        work: tuple[str, ...] = (),
        grow: tuple[str, ...] = (),
        tokens: int = 0,
        pages: bool = True,
        late: tuple[str, ...] = (),
    ) -> None:
        """Time passes. `grow`: the servers whose pages count more each time; `late`: those whose pages do not come."""
        for _ in range(round(seconds / TURN)):
            self.now += TURN
            for key in self.keys:
                if pages:
                    self.page(key, grows=key in grow)
                if key in late:
                    self.ward.silent(key)
                if self.ward.turn(key, key in work, tokens if key in work else 0, TURN, self.now):
                    self.wanted.append((self.now, key))

    def health(self, key: str) -> tuple[Health, Cause]:
        server = self.ward.get(key)
        assert server is not None
        return server.health, server.cause


def seconds_until(world: World, key: str, wanted: Health, limit: float, **running: object) -> float:
    began = world.now
    while world.health(key)[0] is not wanted:
        assert world.now - began < limit, f"still {world.health(key)}"
        world.run(TURN, **running)  # type: ignore[arg-type]
    return world.now - began


def test_a_server_that_stands_still_is_suspect_then_out_then_tried() -> None:
    world = World()
    world.run(10, work=KEYS, grow=KEYS)
    running = {"work": KEYS, "grow": (B, C, D)}
    assert seconds_until(world, A, Health.SUSPECT, 2.5, **running) >= 1.9
    assert world.ward.verdict == {A: SUSPECT}
    assert seconds_until(world, A, Health.OUT, 3.5, **running) >= 2.9
    assert world.ward.verdict == {A: OUT}
    # Its requests have gone; it goes on.
    world.run(4, work=(B, C, D), grow=(B, C, D))
    world.run(TURN, work=(B, C, D), grow=KEYS)
    assert world.health(A) == (Health.TRIAL, Cause.RECOVERING)
    assert world.ward.verdict == {A: 1}
    world.run(5, work=KEYS, grow=KEYS)
    assert world.health(A) == (Health.GOOD, Cause.NONE)
    assert world.ward.verdict == {}


def test_a_suspect_that_makes_progress_is_good_again() -> None:
    world = World()
    seconds_until(world, A, Health.SUSPECT, 3, work=(A,))
    world.ward.progressed(A, world.now)
    assert world.health(A) == (Health.GOOD, Cause.NONE)


def test_an_idle_server_is_good_for_ever() -> None:
    world = World()
    world.run(600)
    assert world.changes == []


def test_long_prompts_may_take_their_time() -> None:
    world = World()
    # The slowest that the pool has shown: 100,000 tokens take ten seconds.
    world.ward.computed(B, 10_000, 1.0)
    world.run(29, work=(A,), tokens=100_000)
    assert world.health(A)[0] is Health.GOOD
    # One that shows itself that it is faster is judged by that.
    world.ward.computed(C, 100_000, 1.0)
    assert seconds_until(world, C, Health.SUSPECT, 4, work=(C,), tokens=100_000) >= 2.9


def test_clients_that_leave_a_stuck_server_do_not_hide_it() -> None:
    world = World()
    for _ in range(6):
        world.run(0.8, work=(A,))
        world.run(0.2)
    assert world.health(A)[0] is not Health.GOOD


def test_what_was_not_answered_long_ago_is_no_sign() -> None:
    world = World()
    for _ in range(20):
        world.run(1.6, work=(A,))
        world.run(10.2)
    assert world.changes == []


def test_a_server_whose_page_counts_nothing_is_never_found_to_stand_still() -> None:
    ward = Ward()
    ward.join(A, 0.0, new=False)
    for turn in range(1, 500):
        ward.page(A, Page(turn * TURN, None, (1, 0, 0.5)), turn * TURN)
        ward.turn(A, True, 1000, TURN, turn * TURN)
    assert ward.verdict == {}


def test_a_stopped_process_gives_no_pages_and_is_found_all_the_same() -> None:
    world = World()
    world.run(10, work=KEYS, grow=KEYS)
    assert seconds_until(world, A, Health.SUSPECT, 2.5, work=(A,), pages=False, late=(A,)) >= 1.9


def test_rare_pages_give_more_time() -> None:
    world = World()
    for number in range(60):
        world.run(1.0, work=KEYS, pages=False)
        if number % 10 == 9:
            for key in KEYS:
                world.page(key, grows=True)
    # Pages come every ten seconds and show progress each time: work that waits for the next one is no stand-still.
    assert world.changes == []


def test_a_quiet_server_is_scraped_ahead_of_others_once_a_second() -> None:
    world = World()
    world.run(3.0, work=(A,), pages=False)
    assert [key for _, key in world.wanted] == [A, A, A]
    gaps = [later - sooner for (sooner, _), (later, _) in zip(world.wanted, world.wanted[1:], strict=False)]
    assert min(gaps) >= 0.99
    world.wanted.clear()
    world.run(3.0, work=KEYS, grow=KEYS)
    assert world.wanted == []


def test_a_sleeper_is_out_at_once_and_back_when_it_wakes() -> None:
    world = World()
    world.page(A, asleep=True)
    assert world.health(A) == (Health.OUT, Cause.ASLEEP)
    for _ in range(600):
        world.now += 1.0
        world.page(A, asleep=True)
        world.ward.turn(A, False, 0, TURN, world.now)
    assert world.health(A) == (Health.OUT, Cause.ASLEEP)
    world.page(A)
    assert world.health(A) == (Health.TRIAL, Cause.RECOVERING)


@pytest.mark.parametrize(("retried", "seconds"), [(True, 5.0), (False, 5.0)])
def test_a_failing_server_is_tried_again_later_and_later(retried: bool, seconds: float) -> None:
    world = World()
    for outs in range(8):
        world.ward.failing(A, world.now, retried=retried)
        assert world.health(A)[0] is Health.OUT
        expected = min(300.0, seconds * 2**outs)
        world.run(expected - 2 * TURN)
        assert world.health(A)[0] is Health.OUT
        world.run(4 * TURN)
        assert world.health(A) == (Health.TRIAL, Cause.RECOVERING)


def test_never_more_than_half_of_the_pool_is_out_for_failures() -> None:
    world = World()
    for key in KEYS:
        world.ward.failing(key, world.now, retried=True)
    assert world.ward.verdict == {A: OUT, B: OUT, C: SUSPECT, D: SUSPECT}
    world.ward.acquitted(C, world.now)
    assert world.ward.verdict == {A: OUT, B: OUT, D: SUSPECT}
    alone = World(keys=(A,))
    alone.ward.failing(A, alone.now, retried=True)
    assert alone.ward.verdict == {A: SUSPECT}


def test_one_refused_connection_is_suspect_and_two_are_out() -> None:
    world = World()
    world.ward.refuse(A, world.now)
    assert world.health(A) == (Health.SUSPECT, Cause.REFUSED)
    world.page(A)
    assert world.health(A) == (Health.GOOD, Cause.NONE)
    world.ward.refuse(A, world.now)
    world.ward.refuse(A, world.now)
    assert world.health(A) == (Health.OUT, Cause.REFUSED)
    world.page(A)
    assert world.health(A) == (Health.TRIAL, Cause.RECOVERING)


def test_new_and_restarted_servers_are_tried_with_little_first() -> None:
    world = World()
    world.ward.join("10.0.0.9:8000", world.now, new=True)
    assert world.ward.verdict == {"10.0.0.9:8000": 1}
    world.counted[A] = 0.0
    world.page(A)
    assert world.health(A) == (Health.TRIAL, Cause.RESTARTED)
    allowed = []
    while world.health(A)[0] is Health.TRIAL:
        allowed.append(world.ward.verdict[A])
        world.run(TURN, work=(A,), grow=(A,))
    assert sorted(set(allowed)) == [1, 2, 4, 8, 16]
    assert allowed == sorted(allowed)


def test_a_trial_that_stands_still_ends_at_once() -> None:
    world = World()
    world.counted[A] = 0.0
    world.page(A)
    seconds_until(world, A, Health.OUT, 3, work=(A,))
    assert world.health(A)[1] is Cause.NO_PROGRESS


def test_an_hour_of_late_turns_of_the_picker_is_nobodys_fault() -> None:
    world = World()
    for _ in range(100):
        world.now += 1.5
        for key in KEYS:
            world.ward.turn(key, True, 0, 1.5, world.now)
            world.page(key, grows=True)
    assert world.changes == []


class AnyOrder(RuleBasedStateMachine):
    """Whatever is seen of servers, in whatever order."""

    key = st.sampled_from(KEYS)

    @initialize()
    def begin(self) -> None:
        self.world = World()

    @rule(key=key, grows=st.booleans(), asleep=st.booleans(), running=st.integers(0, 3))
    def page(self, key: str, grows: bool, asleep: bool, running: int) -> None:
        self.world.page(key, grows=grows, asleep=asleep, running=running)
        assert (self.world.health(key) == (Health.OUT, Cause.ASLEEP)) is asleep

    @rule(key=key)
    def restart(self, key: str) -> None:
        self.world.counted[key] = 0.0
        self.world.page(key)
        self.world.counted[key] = 1.0
        self.world.page(key)

    @rule(key=key)
    def progress(self, key: str) -> None:
        self.world.ward.progressed(key, self.world.now)
        assert self.world.health(key)[1] is not Cause.NO_PROGRESS

    @rule(key=key, retried=st.booleans())
    def fail(self, key: str, retried: bool) -> None:
        self.world.ward.failing(key, self.world.now, retried=retried)
        assert self.world.health(key)[0] in (Health.OUT, Health.SUSPECT)

    @rule(key=key)
    def refuse(self, key: str) -> None:
        self.world.ward.refuse(key, self.world.now)

    @rule(key=key)
    def acquit(self, key: str) -> None:
        self.world.ward.acquitted(key, self.world.now)

    @rule(seconds=st.sampled_from([0.2, 1.0, 3.0, 10.0]), work=st.sets(key), grow=st.sets(key), pages=st.booleans())
    def wait(self, seconds: float, work: set[str], grow: set[str], pages: bool) -> None:
        self.world.run(seconds, work=tuple(work), grow=tuple(grow), pages=pages)

    @rule(key=key, new=st.booleans())
    def replace(self, key: str, new: bool) -> None:
        self.world.ward.leave(key)
        assert key not in self.world.ward.verdict
        self.world.ward.join(key, self.world.now, new=new)

    @invariant()
    def the_verdict_is_what_the_servers_are_taken_for(self) -> None:
        if not hasattr(self, "world"):
            return
        servers = {server.key: server for server in self.world.ward.servers()}
        for key, server in servers.items():
            expected = {Health.SUSPECT: SUSPECT, Health.OUT: OUT, Health.TRIAL: server.allowed}.get(server.health)
            assert self.world.ward.verdict.get(key) == expected
            assert (server.health is Health.GOOD) == (server.cause is Cause.NONE)
        by_failures = (Cause.FAILURES, Cause.UNAVAILABLE, Cause.REFUSED)
        out = [s for s in servers.values() if s.health is Health.OUT and s.cause in by_failures]
        assert len(out) <= len(servers) // 2

    def teardown(self) -> None:
        """Whatever was, servers that work are all good in the end."""
        if hasattr(self, "world"):
            world = self.world
            for key in KEYS:
                world.ward.acquitted(key, world.now)
            world.run(5, work=KEYS, grow=KEYS)
            world.now += 300
            for _ in range(10):
                world.run(1, work=KEYS, grow=KEYS)
                for key in KEYS:
                    world.ward.answered(key, world.now)
            assert self.world.ward.verdict == {}


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
