"""Figures, comparisons, and the report of a replay."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path

import pytest

from headrace.cli.main import main
from headrace.replay.figures import Figures, fewer_servers, figures, ratio
from headrace.replay.report import _apart
from headrace.replay.run import Answer, Outcome


def some(first: float = 1.0, whole: float = 2.0) -> Figures:
    return Figures(10, 0, first, [first] * 101, whole, 0.01, 0.5, 1.0, 1.0, 10.0)


def test_figures_of_a_run() -> None:
    answers = [
        Answer(0, 0.0, 0, 1.0, 3.0, 11, 0, 100),
        Answer(1, 0.0, 0, 2.0, 2.0, 1, 60, 100),
        Answer(2, 0.0, 1, 3.0, 3.5, 6, 0, 50),
    ]
    found = figures(Outcome(answers, 2, 5.0), 2, target=2.0)
    assert (found.requests, found.refused, found.first_token_mean) == (3, 2, 2.0)
    assert (found.p50, found.p90, found.first_token[0]) == (2.0, 3.0, 1.0)
    assert found.per_token_mean == pytest.approx((0.2 + 0.0 + 0.1) / 3)
    assert found.cached == pytest.approx(60 / 250)
    assert found.balance == pytest.approx((111 + 41) * 2 / (111 + 41 + 56))
    assert found.goodput == pytest.approx(2 / 5)


def test_a_ratio_has_the_interval_of_its_pairs() -> None:
    found = ratio([some(1.0), some(4.0)], [some(2.0), some(4.0)], "first_token_mean")
    assert found.mean == pytest.approx(math.sqrt(0.5))
    # Student's t of one degree of freedom, times the standard error of log 0.5 and log 1.
    half = 12.706 * math.log(2) / math.sqrt(2) / math.sqrt(2)
    assert found.low == pytest.approx(found.mean * math.exp(-half))
    assert found.high == pytest.approx(found.mean * math.exp(half))
    alone = ratio([some(1.0)], [some(2.0)], "p90")
    assert (alone.mean, alone.low, alone.high) == (0.5, 0.0, math.inf)


@pytest.mark.parametrize(
    ("first", "whole", "fewer"), [(1.0, 2.0, (6, 8)), (1.1, 2.0, None), (1.0, 2.1, None), (0.5, 0.5, (6, 8))]
)
def test_fewer_servers_must_give_no_worse_service(first: float, whole: float, fewer: tuple[int, int] | None) -> None:
    runs = {
        ("base", 6): [some(3.0, 9.0)],
        ("base", 8): [some()],
        ("ours", 6): [some(first, whole)],
        ("ours", 8): [some(0.1, 0.1)],
    }
    assert fewer_servers(runs, "base", "ours") == fewer


def test_labels_are_moved_apart() -> None:
    assert _apart([10.0, 12.0, 100.0]) == [10.0, 24.0, 100.0]


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.paths = self.rows = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.paths += tag == "path"
        self.rows += tag == "tr"


def test_the_command_writes_table_json_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, data = tmp_path / "report.html", tmp_path / "report.json"
    asked = ["--policy=built-in", "--policy=least-request", "--servers=2,3", "--requests=40", "--seeds=2"]
    assert main(["replay", *asked, "--processes=1", f"--html={page}", f"--json={data}"]) == 0
    found = json.loads(data.read_text())
    assert {(run["policy"], run["servers"], run["seed"]) for run in found["runs"]} == {
        (policy, servers, seed) for policy in ("built-in", "least-request") for servers in (2, 3) for seed in (0, 1)
    }
    assert all(run["requests"] == 40 and run["refused"] == 0 for run in found["runs"])
    mine = [entry["mean"] for entry in found["ratios"] if entry["policy"] == "built-in"]
    assert mine == [1.0] * len(mine)
    tags = _Tags()
    tags.feed(page.read_text())
    # A line for each policy by servers, and for each fleet.
    assert (tags.paths, tags.rows) == (2 * 3, 2 * 3)
    shown = capsys.readouterr().out
    assert "simulated" in shown
    assert shown.count("least-request") == 2


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--policy=nowhere.yaml"], ["--policy", "nowhere.yaml"]),
        (["--servers=0"], ["--servers", "0"]),
        (["--slow=x"], ["--slow", "x"]),
        (["--busy=-1"], ["--busy", "-1"]),
        (["nowhere.jsonl"], ["nowhere.jsonl"]),
    ],
)
def test_wrong_flags_are_refused(capsys: pytest.CaptureFixture[str], flags: list[str], named: list[str]) -> None:
    assert main(["replay", *flags, "--requests=10", "--seeds=1"]) == 2
    shown = capsys.readouterr().err
    assert all(name in shown for name in named)
    assert "Traceback" not in shown
