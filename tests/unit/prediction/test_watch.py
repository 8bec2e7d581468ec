"""Predictions of a picker: its parts as they are composed, on a clock that the test sets."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest

from headrace.core import Decision, FailureMode
from headrace.datalayer.metrics_page import ServerMetrics, Work
from headrace.epp.composition import Components
from headrace.epp.config_file import parse_config
from headrace.replay.fleet import FleetSettings
from headrace.replay.run import Outcome, replay
from headrace.replay.traces import at_load, conversations
from headrace.simulator.timing import StepCost

from ..epp.test_director import Clock, director, endpoints, needed

CONFIG = """
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
plugins: [{type: predicted-latency-producer}, {type: health-filter}, {type: latency-scorer}]
"""


def picker(count: int) -> Components:
    parts = director(config=parse_config(CONFIG, "test").scheduling, rng=Random(1))
    parts.pool.endpoints_changed(endpoints(count), FailureMode.CLOSE)
    return parts


def send(parts: Components, number: int, **request: Any) -> str:
    pick = parts.director.decide_at_once(needed(request_id=str(number), **request))
    assert pick is not None
    assert isinstance(pick.answer, Decision)
    return pick.answer.endpoints[0]


def page(parts: Components, key: str, work: Work | None, waiting: int = 0, running: int = 1) -> None:
    record = parts.pool.store.get(key)
    assert record is not None
    record.scraped(ServerMetrics(waiting, running, 0.0, work=work), parts.pool.clock())
    parts.pool.scraped(record)


def test_equal_prompts_at_once_are_spread_evenly() -> None:
    parts = picker(8)
    counts = Counter(send(parts, number, prompt=bytes([number]) * 8000) for number in range(64))
    assert max(counts.values()) <= 9


def test_a_decision_says_what_was_predicted() -> None:
    parts = picker(2)
    first = send(parts, 1, prompt=b"a" * 40_000)
    second = send(parts, 2, prompt=b"b" * 40_000)
    assert {first, second} == {"10.0.0.1:8000", "10.0.0.2:8000"}
    (logged,) = parts.decisions.find(request_id="2")
    times = {one["endpoint"]: one["first_token_seconds"] for one in logged["candidates"]}
    # Behind the first prompt, of about 10,000 tokens, it takes twice as long.
    assert times[first] > 1.8 * times[second] > 0
    assert logged["predicted"]


def test_a_first_token_and_an_end_are_noticed() -> None:
    parts = picker(1)
    watch = parts.latency
    picks = [parts.director.decide_at_once(needed(request_id=str(n), prompt=b"x" * 4000)) for n in range(2)]
    (server,) = watch._servers.values()
    assert len(server.queue) == 2
    for pick, end in zip(picks, (parts.pool.first_token, parts.pool.finished), strict=True):
        assert pick is not None
        assert pick.entry is not None
        end(pick.entry)
    assert len(server.queue) == 0
    assert server.queue.tokens == 0


def test_a_request_that_another_replica_accounts_for_is_forgotten() -> None:
    parts = picker(1)
    pick = parts.director.decide_at_once(needed(prompt=b"x" * 4000))
    assert pick is not None
    assert pick.entry is not None
    parts.pool.ledger.superseded(pick.entry)
    (server,) = parts.latency._servers.values()
    assert len(server.queue) == 1
    parts.expire()
    assert not server.queue


def test_pages_tell_what_answers_waited_and_the_error_follows() -> None:
    parts = picker(1)
    clock = parts.pool.clock
    assert isinstance(clock, Clock)
    (key,) = parts.latency._servers
    page(parts, key, Work(0, 0, 0, 0, 0.0))
    for number in range(1, 31):
        send(parts, number, prompt=bytes([number]) * 4000)
        clock.now += 1.0
        page(parts, key, Work(10 * number, 1000 * number, number, number, 10.0 * number), running=number)
    # Each waited ten seconds, and a tenth of one was predicted.
    assert parts.latency.errors.ratio > 0.9
    assert not parts.latency._servers[key].queue


@pytest.mark.parametrize(
    "work", [None, Work(0, -1e30, 0, 5, 0), Work(float("inf"), 0, 0, 0, 0), Work(1, 1, 1, 1e18, 1)]
)
def test_a_page_that_makes_no_sense_breaks_nothing(work: Work | None) -> None:
    parts = picker(2)
    for key in list(parts.latency._servers):
        page(parts, key, Work(0, 0, 0, 0, 0))
    for number in range(10):
        send(parts, number, prompt=bytes([number]) * 4000)
        page(parts, "10.0.0.1:8000", work)
    assert all(0 < seconds < 1 for _, times in parts.latency.step_times() for seconds in times)


def test_predictions_that_are_wrong_are_not_gone_by() -> None:
    parts = picker(2)
    for _ in range(200):
        parts.latency.errors.add(predicted=10.0, actual=0.1)
    assert parts.latency.wrong
    send(parts, 1, prompt=b"x" * 4000)
    (logged,) = parts.decisions.find(request_id="1")
    assert logged["predicted"] == ""
    assert logged["winner"]


def test_without_a_profile_that_asks_nothing_is_kept() -> None:
    parts = director()
    parts.pool.endpoints_changed(endpoints(2), FailureMode.CLOSE)
    send(parts, 1, prompt=b"x" * 4000)
    assert all(not server.queue for server in parts.latency._servers.values())


def of_slow(outcome: Outcome) -> float:
    """The slow server's share of the work."""
    work: Counter[int] = Counter()
    for answer in outcome.answers:
        work[answer.server] += answer.input_tokens - answer.cached_tokens
    return work[0] / work.total()


def test_a_slow_server_gets_little_and_all_wait_less(tmp_path: Any) -> None:
    (tmp_path / "latency.yaml").write_text(CONFIG)
    arrivals = at_load(conversations(300, 3), 4, 0.6, StepCost())
    fleet = FleetSettings(servers=4, slow={0: 5.0})
    ours = replay(arrivals, str(tmp_path / "latency.yaml"), fleet)
    least = replay(arrivals, "least-request", fleet)
    assert of_slow(ours) < 0.15
    mean = [sum(answer.first_token for answer in one.answers) for one in (ours, least)]
    assert mean[0] < 0.8 * mean[1]
