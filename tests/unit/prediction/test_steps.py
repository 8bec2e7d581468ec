"""Step times learnt from windows of work."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.prediction.steps import PRIOR, Group, ServerSteps, StepTimes, Window, makes_sense, weighted_tokens

TRUE = StepTimes(0.008, 9e-5, 5e-4)


def window(rng: Random, times: StepTimes = TRUE, slower: float = 1.0) -> Window:
    """What such a server does in some steps, a few of which compute prompts."""
    steps, answers, prompt = rng.randrange(5, 30), rng.randrange(1, 20), rng.choice((0, 0, rng.randrange(8000)))
    seconds = steps * times.step + prompt * times.prompt + steps * answers * times.written
    return Window(slower * seconds, steps, prompt, steps * answers)


def learn(steps: ServerSteps) -> None:
    """Let it see a hundred windows, one after the other."""
    rng, now = Random(1), 0.0
    for _ in range(100):
        one = window(rng)
        now += one.seconds
        steps.add(one, now)


def test_times_are_learnt() -> None:
    steps = ServerSteps(Group())
    learn(steps)
    assert list(steps.times) == pytest.approx(list(TRUE), rel=0.25)


def test_a_new_server_is_like_its_group() -> None:
    group = Group()
    known, new = ServerSteps(group), ServerSteps(group)
    assert new.times == PRIOR
    learn(known)
    assert list(new.times) == pytest.approx(list(TRUE), rel=0.25)


def test_a_server_that_slows_down_is_known_for_it_and_forgiven() -> None:
    rng, group, now = Random(1), Group(), 0.0
    servers = [ServerSteps(group) for _ in range(4)]

    def work(seconds: float, slower: float) -> None:
        nonlocal now
        until = now + seconds
        while now < until:
            now += 0.2
            for number, server in enumerate(servers):
                one = window(rng, slower=slower if number == 0 else 1.0)
                server.add(one._replace(seconds=one.seconds), now)

    work(10, 1.0)
    assert servers[0].times.step == pytest.approx(servers[1].times.step, rel=0.2)
    work(2, 5.0)
    assert servers[0].times.prompt > 2.5 * servers[1].times.prompt
    # Nothing is sent there, and after a while it is thought to be like the others again.
    servers[0].idle(now + 200)
    assert servers[0].times.prompt < 2 * servers[1].times.prompt


number = st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(st.tuples(number, number, number, number), max_size=20))
def test_whatever_pages_say_times_stay_times(windows: list[tuple[float, float, float, float]]) -> None:
    steps, now = ServerSteps(Group()), 0.0
    for values in windows:
        one = Window(*values)
        if makes_sense(one):
            now += 1.0
            steps.add(one, now)
        assert all(0 < seconds < float("inf") for seconds in steps.times)


def test_a_page_that_claims_wonders_is_not_believed() -> None:
    rng, group, now = Random(1), Group(), 0.0
    honest, liar = ServerSteps(group), ServerSteps(group)
    for _ in range(50):
        one = window(rng)
        now += one.seconds
        honest.add(one, now)
        liar.add(Window(one.seconds, 1e5, 1e6, 1e6), now)
    assert liar.times.prompt >= honest.times.prompt / 64


def test_attention_makes_late_tokens_dearer() -> None:
    assert weighted_tokens(100, 0) < weighted_tokens(100, 10_000) < 2 * weighted_tokens(100, 0)
    assert weighted_tokens(0, 10_000) == 0
