"""Runs in virtual time."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from headrace.config.decode import InvalidConfig
from headrace.replay.fleet import FleetSettings, Server, hashes_of
from headrace.replay.policies import SIMPLE, CannotReplay
from headrace.replay.run import Outcome, replay
from headrace.replay.traces import Arrival, at_load, conversations, with_adapters
from headrace.simulator.engine import EngineSettings
from headrace.simulator.timing import StepCost

FLEET = FleetSettings(servers=4)
CONFIG = "apiVersion: inference.networking.x-k8s.io/v1alpha1\nkind: EndpointPickerConfig\nplugins: [{type: %s}]\n"


def loaded(count: int = 120, busy: float = 0.5, seed: int = 1) -> list[Arrival]:
    return at_load(conversations(count, seed), 4, busy, StepCost())


def ttft(outcome: Outcome) -> float:
    return statistics.fmean(answer.first_token for answer in outcome.answers)


@pytest.mark.parametrize("policy", ["built-in", *SIMPLE])
def test_every_request_is_answered_once_and_whole(policy: str) -> None:
    arrivals = with_adapters(loaded(), 1)
    outcome = replay(arrivals, policy, FleetSettings(servers=4, engine=EngineSettings(max_loras=4)))
    assert outcome.refused == 0
    assert sorted(answer.number for answer in outcome.answers) == list(range(len(arrivals)))
    for answer in outcome.answers:
        assert answer.output_tokens == arrivals[answer.number].output_tokens
        assert 0 < answer.first_token <= answer.whole
        assert answer.cached_tokens < answer.input_tokens
    assert {answer.server for answer in outcome.answers} <= set(range(4))


@pytest.mark.parametrize("policy", ["built-in", "power-of-two"])
def test_a_run_gives_the_same_twice(policy: str) -> None:
    first, second = (replay(loaded(), policy, FLEET, seed=5) for _ in range(2))
    assert first == second


def test_an_idle_server_takes_what_the_costs_say() -> None:
    cost = StepCost()
    outcome = replay([Arrival(0.0, (1, 2), 1000, 3)], "round-robin", FLEET)
    [answer] = outcome.answers
    prefill = cost.seconds(prefill_tokens=1000, prefill_context=1000 * 999 // 2, decode_sequences=0, decode_context=0)
    assert answer.first_token == pytest.approx(prefill + 0.001)
    steps = [
        cost.seconds(prefill_tokens=0, prefill_context=0, decode_sequences=1, decode_context=length)
        for length in (1001, 1002)
    ]
    assert answer.whole == pytest.approx(prefill + 0.001 + sum(steps))


def test_a_prompt_that_was_computed_is_found_again() -> None:
    arrivals = [Arrival(0.0, (1, 2), 1024, 2), Arrival(30.0, (1, 2, 3), 1500, 2), Arrival(60.0, (1, 2), 1024, 2, "a")]
    outcome = replay(arrivals, "consistent-hash", FleetSettings(servers=1))
    # An adapter's cache is its own.
    assert [answer.cached_tokens for answer in outcome.answers] == [0, 1024, 0]


def test_equal_beginnings_have_equal_hashes() -> None:
    one, other = Arrival(0, (1, 2), 1000, 1), Arrival(0, (1, 3), 1000, 1)
    assert hashes_of(one, 16)[:32] == hashes_of(other, 16)[:32]
    assert not set(hashes_of(one, 16)[32:]) & set(hashes_of(other, 16)[32:])
    assert len(hashes_of(one, 16)) == 1000 // 16


def test_what_the_servers_know_is_what_an_idle_one_takes() -> None:
    arrival = Arrival(0.0, (1, 2, 3), 1200, 1)
    server = Server(0, EngineSettings())
    expected = server.seconds_to_first_token(arrival)
    sequence = server.add(arrival, 0.0)
    assert server.start(0.0) == pytest.approx(expected, rel=1e-3)
    assert sequence.num_computed == 0


def test_prefixes_are_kept_together() -> None:
    arrivals = loaded(300)
    built_in, spread = (replay(arrivals, policy, FLEET) for policy in ("built-in", "round-robin"))
    assert ttft(built_in) < ttft(spread)


def test_a_slow_server_gets_fewer_requests() -> None:
    fleet = FleetSettings(servers=4, slow={2: 5.0})
    outcome = replay(loaded(300, 0.4), "least-request", fleet)
    counts = [sum(answer.server == server for answer in outcome.answers) for server in range(4)]
    assert counts[2] == min(counts)


def test_the_picker_follows_a_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG % "random-picker")
    assert replay(loaded(), str(path), FLEET, seed=1).refused == 0


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ("precise-prefix-cache-producer", "precise-prefix-cache-producer"),
        ("queue-scorer}]\nfeatureGates: [flowControl]\nsaturationDetector: {}\n# [{", "flowControl"),
    ],
)
def test_what_cannot_be_replayed_is_refused(tmp_path: Path, config: str, named: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG % config)
    with pytest.raises(CannotReplay, match=named):
        replay(loaded(), str(path), FLEET)


def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG % "no-such-plugin")
    with pytest.raises(InvalidConfig, match="no-such-plugin"):
        replay(loaded(), str(path), FLEET)
    with pytest.raises(CannotReplay, match="nowhere"):
        replay(loaded(), str(tmp_path / "nowhere"), FLEET)
