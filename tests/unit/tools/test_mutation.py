"""What does not need cosmic-ray of the mutation tool."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from ...tools import mutation
from ...tools.mutation import Mutant, Outcome


def outcome(package: str, line: int, result: str) -> Outcome:
    mutant = Mutant(f"controller/headrace/{package}/a.py", "core/AddNot", 0, line)
    return Outcome(mutant, result, "if a: -> if not a:", 1.0)


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ("x: int = 1\ndef f(a: str) -> str | None: return a", True),
        ("x: int | None = 1\nasync def f(a: str) -> None: return a", False),
        ("x: int = 2\ndef f(a: str) -> str: return a", False),
    ],
)
def test_what_python_does_not_look_at_is_no_change(changed: str, same: bool) -> None:
    plain = mutation.without_annotations("x: str = 1\ndef f(a: int) -> bool: return a")
    assert (mutation.without_annotations(changed) == plain) == same


def test_what_is_known_is_read_again(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    assert mutation.known(results) == {}
    some = [outcome("extproc", 1, "survived"), outcome("datalayer", 2, "killed by time")]
    results.write_text("".join(json.dumps(asdict(one)) + "\n" for one in some))
    assert list(mutation.known(results).values()) == some
    assert [one.mutant.package for one in some] == ["extproc", "datalayer"]


def test_the_score_is_the_share_of_those_killed(capsys: pytest.CaptureFixture[str]) -> None:
    some = [
        outcome("extproc", 1, "survived"),
        outcome("extproc", 2, "killed"),
        outcome("extproc", 3, "killed by time"),
        outcome("datalayer", 4, "killed"),
    ]
    assert mutation.report({one.mutant: one for one in some}, 10, 3) == 0.75
    lines = capsys.readouterr().out.splitlines()
    assert "extproc: 2 of 3 killed, 66.7 %" in lines
    assert lines[-1].startswith("controller/headrace/extproc/a.py:1: core/AddNot: ")
