"""Objectives and rewrites at work: what a request becomes, what is told of it, and which objects count."""

from __future__ import annotations

import logging
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace
from prometheus_client import generate_latest

from headrace.core import (
    EXTENSION_GROUP,
    GA_GROUP,
    Decision,
    FailureMode,
    ModelRewrite,
    Objective,
    Refusal,
    RefusalReason,
    Request,
)
from headrace.core.model_rewrite import RewriteRule, RewriteTarget
from headrace.core.objective import PoolReference
from headrace.epp.policies import Policies
from headrace.epp.policy_watch import _Kind

from ..config.test_policies import objective, rewrite, rule
from .test_director import director, endpoints, needed

POOL = PoolReference("pool", GA_GROUP)


def policies(priority: int | None = None, **rewrites: str) -> tuple[Policies, list[tuple[str, str, str]]]:
    told: list[tuple[str, str, str]] = []
    made = Policies(Random(1), lambda *what: told.append(what))
    if priority is not None:
        made.set_objectives([Objective("n", "chat", POOL, priority)])
    rules = tuple(RewriteRule(frozenset([asked]), (RewriteTarget(target),)) for asked, target in rewrites.items())
    made.set_rewrites([ModelRewrite("n", "r", POOL, rules)])
    return made, told


def test_without_policies_a_request_stays_the_same_object() -> None:
    made, told = policies()
    request = Request("id", model="m", objective="unknown")
    assert made.apply(request) is request
    assert not told


def test_the_objective_gives_the_priority() -> None:
    made, _ = policies(priority=-3)
    assert made.apply(Request("id", objective="chat")).priority == -3
    assert made.apply(Request("id", objective="other")).priority == 0
    assert made.apply(Request("id")).priority == 0


def test_a_rewrite_changes_the_model_and_keeps_the_asked_one() -> None:
    made, told = policies(a="b")
    request = made.apply(Request("id", model="a", wanted_model="header"))
    assert (request.model, request.asked_model) == ("b", "a")
    assert request.asked.model == "a"
    assert told == [("r", "a", "b")]
    request = made.apply(Request("id", model="x", wanted_model="header"))
    assert (request.model, request.asked_model) == ("header", "x")
    request = made.apply(Request("id", wanted_model="header"))
    assert (request.model, request.asked_model) == ("", "")
    assert len(told) == 1


def test_a_body_that_is_not_read_is_refused_where_a_rewrite_could_apply() -> None:
    unread = Request("id", unread="it is long")
    made, told = policies(a="b")
    for found in (made.apply(unread), Policies(Random(1), lambda *what: None).apply(replace(unread, wanted_model="b"))):
        assert isinstance(found, Refusal)
        assert (found.status, found.reason) == (413, RefusalReason.BODY_TOO_LARGE)
    assert not told
    assert Policies(Random(1), lambda *what: None).apply(unread) is unread


async def test_the_director_refuses_what_it_could_not_rewrite() -> None:
    d = director()
    d.pool.endpoints_changed(endpoints(1), FailureMode.OPEN)
    picked = await d.director.decide(needed(model="", unread="it is long"))
    assert isinstance(picked.answer, Decision)
    d.policies.set_rewrites([ModelRewrite("n", "r", POOL, (RewriteRule(frozenset(), (RewriteTarget("t"),)),))])
    picked = await d.director.decide(needed(model="", unread="it is long"))
    assert isinstance(picked.answer, Refusal)
    assert (picked.answer.status, picked.entry) == (413, None)


def test_a_rewrite_to_itself_is_none() -> None:
    made, told = policies(a="a")
    request = Request("id", model="a")
    assert made.apply(request) is request
    assert told == [("r", "a", "a")]


async def test_the_director_decides_for_the_target_model() -> None:
    d = director()
    d.policies.set_objectives([Objective("n", "chat", POOL, 7)])
    d.policies.set_rewrites([ModelRewrite("n", "canary", POOL, (RewriteRule(frozenset("a"), (RewriteTarget("b"),)),))])
    d.pool.endpoints_changed(endpoints(2), FailureMode.CLOSE)
    picked = await d.director.decide(needed(model="a", objective="chat", prompt=b"x" * 600))
    assert isinstance(picked.answer, Decision)
    assert picked.answer.model == "b"
    assert picked.entry is not None
    assert (picked.entry.model, picked.entry.asked.model) == ("b", "a")
    (logged,) = d.decisions.find()
    assert (logged["model"], logged["asked_model"], logged["objective"], logged["priority"]) == ("b", "a", "chat", 7)
    d.pool.finished(picked.entry)
    text = generate_latest(d.metrics.registry).decode()
    for line in (
        'inference_objective_request_total{model_name="a",priority="7",target_model_name="b"} 1.0',
        'inference_objective_request_duration_seconds_count{model_name="a",target_model_name="b"} 1.0',
        'inference_extension_model_rewrite_decisions_total{model_name="a",model_rewrite_name="canary",target_model="b"}',
    ):
        assert line in text
    # The same prefix under another asked name of the same target is the same prefix.
    again = await d.director.decide(needed(model="b", prompt=b"x" * 600))
    assert again.answer == Decision(picked.answer.endpoints)


async def test_a_pick_by_failure_mode_is_rewritten_too() -> None:
    d = director()
    d.policies.set_rewrites([ModelRewrite("n", "r", POOL, (RewriteRule(frozenset(), (RewriteTarget("b"),)),))])
    d.pool.failure_mode = FailureMode.OPEN
    assert (await d.director.decide(needed(model="a"))).answer == Decision((), "b")
    d.pool.failure_mode = FailureMode.CLOSE
    assert isinstance((await d.director.decide(needed(model="a"))).answer, Refusal)
    text = generate_latest(d.metrics.registry).decode()
    assert 'request_error_total{error_code="503",model_name="a",target_model_name="b"} 1.0' in text


def test_only_the_pools_own_objects_count_and_bad_ones_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    from headrace.config.policies import parse_model_rewrite, parse_objective

    taken: list[Any] = []
    kind = _Kind("InferenceObjective", parse_objective, POOL, taken.append)
    mine, bad = objective(priority=1), objective(priority="x")
    for found in (mine, bad):
        # As a list has them.
        del found["apiVersion"], found["kind"]
    other = objective(poolRef={"name": "other"})
    group = objective(poolRef={"name": "pool", "group": EXTENSION_GROUP})
    with caplog.at_level(logging.WARNING):
        kind.take([mine, bad, other, group])
        kind.take([mine, bad])
    assert [[found.priority for found in batch] for batch in taken] == [[1], [1]]
    assert [record.message.partition(":")[0] for record in caplog.records] == ["InferenceObjective chat cannot be used"]
    rewrites = _Kind("InferenceModelRewrite", parse_model_rewrite, PoolReference("pool", EXTENSION_GROUP), taken.append)
    rewrites.take([rewrite(rule("a", to="b"))])
    assert taken[-1][0].name == "r"
