"""tests/tools/pytest.sh: what it runs once more, what it says of it, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SAID = "PASSED ONLY ON THE SECOND ATTEMPT"
TESTS = """
from pathlib import Path

import pytest


def test_right():
    pass


@pytest.mark.parametrize("name", ["a b", "c"])
def test_by_chance(name):
    mark = Path(__file__).with_name(name)
    there = mark.exists()
    mark.touch()
    assert there
"""
WRONG = """

def test_wrong():
    assert False
"""


def run(repository: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(repository / "tests/tools/pytest.sh"), str(Path(sys.executable).parent / "pytest")]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=kept, capture_output=True, text=True, timeout=120
    )  # fmt: skip


@pytest.mark.parametrize(("wrong", "status"), [("", 0), (WRONG, 1)], ids=["passes", "fails"])
def test_what_passes_only_the_second_time_is_named_in_the_end(
    repository: Path, tmp_path: Path, wrong: str, status: int
) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_some.py").write_text(TESTS + wrong)
    done = run(repository, tmp_path)
    assert done.returncode == status, done.stdout + done.stderr
    said = done.stderr[done.stderr.index(SAID) :]
    assert said.splitlines() == [
        f"{SAID}, and to be mended (2):",
        "==>   test_some.py::test_by_chance[a b]",
        "==>   test_some.py::test_by_chance[c]",
    ]


@pytest.mark.parametrize(("content", "status"), [("", 5), ("def test_right(): pass", 0), (WRONG, 1)])
def test_nothing_is_named_where_nothing_is_a_matter_of_chance(
    repository: Path, tmp_path: Path, content: str, status: int
) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_some.py").write_text(content)
    done = run(repository, tmp_path)
    assert done.returncode == status, done.stdout + done.stderr
    assert SAID not in done.stderr
