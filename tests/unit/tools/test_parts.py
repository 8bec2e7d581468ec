"""The table of when the parts of `make test-full` were run last."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ...tools import parts

NEVER = "Before.\n\n" + parts.BEGIN + parts.HEADER + parts.END + "\nAfter.\n"


def git(repository: Path, *arguments: str) -> None:
    person = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    subprocess.run(["git", *person, *arguments], cwd=repository, check=True, capture_output=True)


def commit(repository: Path, path: str) -> None:
    """A commit that changes one file."""
    file = repository / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(file.read_text() + "x" if file.exists() else "x")
    git(repository, "add", "-A")
    git(repository, "commit", "-m", path)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    git(tmp_path, "init")
    (tmp_path / "docs").mkdir()
    (tmp_path / parts.DOCUMENT).write_text(NEVER)
    commit(tmp_path, "README.md")
    return tmp_path


def runs(clone: Path) -> dict[str, parts.Run]:
    return parts.read((clone / parts.DOCUMENT).read_text())


def test_every_file_of_the_full_tests_is_in_one_part(repository: Path) -> None:
    named = [argument for part in parts.PARTS.values() for argument in part.arguments if "tests/full" in argument]
    there = {str(path.relative_to(repository)) for path in (repository / "tests/full").glob("test_*.py")}
    assert len(named) == len(set(named))
    assert set(named) == there | {"tests/full/conformance"}


def test_what_parts_cover_is_there(repository: Path) -> None:
    for name, part in parts.PARTS.items():
        for path in part.covers:
            assert (repository / path).exists(), (name, path)


def test_the_documents_table_is_read_and_written_alike(repository: Path) -> None:
    assert set(parts.read((repository / parts.DOCUMENT).read_text())) == set(parts.PARTS)


def test_a_run_is_written_down_and_nothing_else_changes(clone: Path) -> None:
    parts.record(clone, "fuzz", 0, 605.0)
    run = runs(clone)["fuzz"]
    assert (run.result, run.minutes, run.since) == ("passed", "10", "0")
    assert runs(clone)["picker"] == parts.Run()
    text = (clone / parts.DOCUMENT).read_text()
    assert text.startswith("Before.\n") and text.endswith("\nAfter.\n")
    # Another one leaves it as it is, and is not counted as a change of the checkout.
    parts.record(clone, "picker", 1, 60.0)
    assert runs(clone)["fuzz"] == run
    assert runs(clone)["picker"].result == "failed"
    assert not runs(clone)["picker"].commit.endswith("+")


def test_uncommitted_changes_are_marked(clone: Path) -> None:
    (clone / "README.md").write_text("y")
    parts.record(clone, "fuzz", 0, 1.0)
    assert runs(clone)["fuzz"].commit.endswith("+")
    assert runs(clone)["fuzz"].since == "0"


def test_a_part_is_named_once_what_it_covers_has_changed(clone: Path) -> None:
    assert parts.stale(clone) == list(parts.PARTS)
    parts.record(clone, "fuzz", 0, 1.0)
    git(clone, "commit", "-am", "the table")
    commit(clone, "roles/inference_crds/tasks.yml")
    assert "fuzz" not in parts.stale(clone)
    commit(clone, "controller/headrace/core/pool.py")
    assert "fuzz" in parts.stale(clone)
    parts.write(clone, runs(clone))
    assert runs(clone)["fuzz"].since == "1"
    parts.record(clone, "fuzz", 1, 1.0)
    assert "fuzz" in parts.stale(clone), "it failed"


def test_a_commit_that_is_not_in_the_clone_counts_as_changed(clone: Path) -> None:
    parts.record(clone, "fuzz", 0, 1.0)
    parts.write(clone, {"fuzz": replace(runs(clone)["fuzz"], commit="0123abc")})
    assert runs(clone)["fuzz"].since == "?"
    assert "fuzz" in parts.stale(clone)


def test_a_part_that_is_not_there_is_refused(repository: Path) -> None:
    command = [sys.executable, str(repository / "tests/tools/parts.py"), "run", "nonsense"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "PART=nonsense" in done.stderr


@pytest.mark.parametrize(("statuses", "wanted"), [([0, 0], 0), ([0, 1], 1), ([0, -9], 1), ([2, 0], 1)])
def test_all_parts_fail_where_one_fails(monkeypatch: pytest.MonkeyPatch, statuses: list[int], wanted: int) -> None:
    left = iter(statuses)
    monkeypatch.setattr(parts, "PARTS", dict.fromkeys(map(str, range(len(statuses)))))
    monkeypatch.setattr(parts, "run_part", lambda name: next(left))
    assert parts.main(["run"]) == wanted
