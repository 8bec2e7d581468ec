"""The report's routes: what has to be committed where they are kept in Git."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from msgspec import structs

from headrace.replace.gates import Check, GateResult
from headrace.replace.report import as_html, as_json, commit_lines, served_percent
from headrace.replace.routes import records
from headrace.replace.state import Entry, Phase, State

from .test_routes import MIXED, PLAN, pool, service


@pytest.mark.parametrize(("phase", "name"), [(Phase.DONE, "new"), (Phase.ROLLED_BACK, "old")])
def test_the_backends_that_the_end_left_are_there_to_commit(phase: Phase, name: str) -> None:
    plan = structs.replace(PLAN, gitops="paused")
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


# Of an SVG: a text with its place and where it is anchored; and a line of the shares' plot with its title.
TEXT = re.compile(r"<text x=([\d.]+) y=[\d.]+(?: text-anchor=(\w+))?>([^<]*)</text>")
SERVED = re.compile(r"<path class=served d='M([\d.]+) ([\d.]+)H([\d.]+)'[^>]*><title>([^<]*)</title>")
WANTED = re.compile(r"<path class=wanted d='([^']*)'")


def page(*gates: tuple[int, float, float], seconds: float = 0.2) -> str:
    """The report of a replacement with a step every 100 s and a gate over its last 50: wanted %, requests old, new."""
    log, history = [], []
    for number, (percent, old, new) in enumerate(gates):
        at = 1000.0 + 100 * number
        log.append(Entry(at, f"{percent} % go to the new pool"))
        checks = (Check("latency p99", seconds, seconds, "", None, "pass"), Check("errors", 1.0, 1.0, "", None, "pass"))
        history.append(GateResult(percent, 50.0, old, new, checks, "pass", at=at + 100))
    end = 1000.0 + 100 * len(gates)
    state = State(
        run="1", started=1000.0, since=end, finished=end, phase=Phase.DONE, records=records([MIXED], PLAN),
        log=tuple(log), history=tuple(history),
    )  # fmt: skip
    return as_html(PLAN, state)


def test_the_served_share_is_drawn_beside_the_one_that_was_wanted() -> None:
    html = page((10, 80.0, 20.0), (50, 50.0, 50.0), (100, 0.0, 0.0))
    [wanted] = WANTED.findall(html)
    heights = [float(one) for one in re.findall(r"V([\d.]+)", wanted)]
    lines = [(float(left), float(height), float(right), title) for left, height, right, title in SERVED.findall(html)]
    # Twice what was wanted, then just that; a window without requests has no line.
    assert len(lines) == 2
    assert lines[0][1] < heights[0]
    assert lines[1][1] == heights[1]
    assert [line[2] - line[0] for line in lines] == pytest.approx([(620 - 72) / 6] * 2, abs=0.2)
    assert "10 % wanted, 20.0 % served: 20 of 100 requests" in lines[0][3]


@pytest.mark.parametrize(
    ("old", "new", "share"), [(3.0, 1.0, 25.0), (0.0, 4.0, 100.0), (4.0, 0.0, 0.0), (0.0, 0.0, None)]
)
def test_the_served_share(old: float, new: float, share: float | None) -> None:
    assert served_percent(GateResult(50, 1.0, old, new, (), "pass")) == share


@pytest.mark.parametrize("seconds", [0.0004, 0.9999, 15.2, 3600.0])
@pytest.mark.parametrize("steps", [1, 4, 40])
def test_labels_of_axes_are_whole_and_apart(seconds: float, steps: int) -> None:
    html = page(*[(100, 1.0, 1.0)] * steps, seconds=seconds)
    for plot in re.findall(r"<svg.*?</svg>", html, re.S):
        ends: dict[str, float] = {}
        for place, anchor, text in TEXT.findall(plot):
            # Digits of 11 pixels are no wider than 7.
            width = 7.0 * len(text)
            left = float(place) - {"end": width, "middle": width / 2}.get(anchor, 0.0)
            assert left >= 0, text
            assert left + width <= 640, text
            if anchor == "middle":
                assert left >= ends.get("middle", 0.0), "two labels are on top of each other"
                ends["middle"] = left + width
