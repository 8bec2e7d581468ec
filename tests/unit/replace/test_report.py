"""The report's routes: what has to be committed where they are kept in Git."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import yaml

from headrace.replace.report import as_html, as_json, commit_lines
from headrace.replace.routes import records
from headrace.replace.state import Phase, State

from .test_routes import MIXED, PLAN, pool, service


@pytest.mark.parametrize(("phase", "name"), [(Phase.DONE, "new"), (Phase.ROLLED_BACK, "old")])
def test_the_backends_that_the_end_left_are_there_to_commit(phase: Phase, name: str) -> None:
    plan = dataclasses.replace(PLAN, gitops="paused")
    state = State(run="1", started=0.0, since=0.0, phase=phase, records=records([MIXED], plan))
    lines = commit_lines(plan, state)
    written: list[Any] = list(yaml.safe_load_all("\n".join(lines)))
    assert {"backendRefs": [pool(name, 7), service(2)]} in written
    assert "# HTTPRoute serving/route, rule 1" in lines
    assert len(written) == len(state.records[0].rules)
    found = as_json(plan, state)["routes"]
    assert [entry["backendRefs"] for entry in found] == [entry["backendRefs"] for entry in written]
    assert f"name: {name}" in as_html(plan, state)


def test_one_that_is_under_way_has_nothing_to_commit() -> None:
    state = State(run="1", started=0.0, since=0.0, phase=Phase.GATE, records=records([MIXED], PLAN))
    assert commit_lines(PLAN, state) == []
