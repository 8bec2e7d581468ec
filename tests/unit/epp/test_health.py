"""Picks go by the servers' health, as far as flag and configuration say so, and people are told."""

from __future__ import annotations

import argparse
import json

import pytest

from headrace.core import Decision, FailureMode
from headrace.datalayer.metrics_page import ServerMetrics
from headrace.epp.composition import Components
from headrace.epp.options import add_arguments, read_options
from headrace.epp.process import Process
from headrace.epp.status import endpoint_list
from headrace.scheduling.health import HealthFilter

from .test_director import director, endpoints, needed

ANOTHER = json.dumps(
    {
        "apiVersion": "inference.networking.x-k8s.io/v1alpha1",
        "kind": "EndpointPickerConfig",
        "plugins": [{"type": "queue-scorer"}, {"type": "max-score-picker"}],
    }
)
NAMED = ANOTHER.replace('[{"type"', '[{"type": "health-filter"}, {"type"', 1)


def pool(count: int) -> Components:
    parts = director()
    parts.pool.endpoints_changed(endpoints(count), FailureMode.CLOSE)
    return parts


def asleep(parts: Components, *numbers: int) -> list[str]:
    """Put some servers to sleep; gives their keys."""
    records = [parts.pool.store.records()[number] for number in numbers]
    for record in records:
        record.scraped(ServerMetrics(0, 0, 0.0, progress=1.0, asleep=True), parts.pool.clock())
        parts.pool.scraped(record)
    return [record.endpoint.key for record in records]


async def winners(parts: Components, count: int = 12) -> set[str]:
    found = set()
    for number in range(count):
        pick = await parts.director.decide(needed(request_id=str(number)))
        assert isinstance(pick.answer, Decision)
        found |= set(pick.outcome.picks)
    return found


async def test_a_server_that_is_out_is_neither_picked_nor_a_fallback() -> None:
    parts = pool(3)
    (out,) = asleep(parts, 1)
    keys = {record.endpoint.key for record in parts.pool.store.records()}
    assert await winners(parts) == keys - {out}
    decisions = parts.decisions.find()
    assert all(found["not_good"] == {out: "out"} for found in decisions)
    (listed,) = [entry for entry in endpoint_list(parts)["endpoints"] if entry["endpoint"] == out]
    assert (listed["health"], listed["health_reason"]) == ("out", "asleep")
    assert {entry["health"] for entry in endpoint_list(parts)["endpoints"]} == {"good", "out"}


async def test_where_all_are_out_all_are_picked() -> None:
    parts = pool(3)
    out = asleep(parts, 0, 1, 2)
    assert await winners(parts) == set(out)


@pytest.mark.parametrize(
    ("flags", "filtered", "told"),
    [
        ([], True, True),
        (["--health-filter=off"], True, False),
        (["--config-text", ANOTHER], False, True),
        (["--config-text", NAMED], True, True),
        (["--config-text", ANOTHER, "--health-filter=always"], True, True),
        (["--config-text", NAMED, "--health-filter=always"], True, True),
    ],
)
async def test_the_flag(flags: list[str], filtered: bool, told: bool) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = parser.parse_args(["--endpoints=127.0.0.1:1", "--secure-serving=false", *flags])
    parts = Process(read_options(given))._parts
    named = [isinstance(step, HealthFilter) for step in parts.director.config.profile.filters]
    assert named.count(True) == filtered
    assert parts.health.tells is told
