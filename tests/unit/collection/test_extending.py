"""The examples of docs/extending.md, applied to a copy of the repository: they touch the files they name, no others."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ...hang import HANG_SECONDS

_FILE = re.compile(r"^`(\S+\.py)`\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_DIFF = re.compile(r"^```diff\n\+\+\+ (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COPIED = ("controller", "tests/unit", "pyproject.toml")


@dataclass
class Example:
    """A section of the page: files to write, and hunks to apply to files that are there."""

    files: dict[str, str]
    hunks: dict[str, list[str]] = field(default_factory=dict)

    @property
    def test(self) -> str:
        (path,) = (path for path in self.files if path.startswith("tests/"))
        return path


def examples(page: Path) -> dict[str, Example]:
    found = {}
    for section in page.read_text(encoding="utf-8").split("\n## ")[1:]:
        hunks = {path: re.split(r"^@@\n", text, flags=re.MULTILINE)[1:] for path, text in _DIFF.findall(section)}
        found[section.partition("\n")[0]] = Example(dict(_FILE.findall(section)), hunks)
    return found


PAGE = Path(__file__).parents[3] / "docs" / "extending.md"
EXAMPLES = examples(PAGE)


def apply(hunk: str, text: str) -> str:
    """The text with a hunk applied: its context is there once."""
    lines = hunk.splitlines()
    before = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
    after = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
    assert text.count(before) == 1, before
    return text.replace(before, after)


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Path:
    for name in _COPIED:
        source, target = repository / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    for path in (repository / "tests").glob("*.py"):
        shutil.copy(path, tmp_path / "tests")
    return tmp_path


def contents(checkout: Path) -> dict[str, bytes]:
    return {str(path.relative_to(checkout)): path.read_bytes() for path in checkout.rglob("*") if path.is_file()}


def run(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(checkout / "controller"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=2 * HANG_SECONDS, check=False
    )


def test_the_page_has_its_examples() -> None:
    assert list(EXAMPLES) == ["A scorer", "A data producer", "An admission policy"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_one_file_and_one_row(name: str, checkout: Path) -> None:
    example, before = EXAMPLES[name], contents(checkout)
    tests = ("pytest", "-q", "-n0", "-p", "no:cacheprovider", example.test)
    # One new module, its test, and one registry.
    assert (len(example.files), len(example.hunks)) == (2, 1)
    (checkout / example.test).write_text(example.files[example.test], encoding="utf-8")
    assert run(checkout, *tests).returncode == 1, "without the example its test fails"
    for path, text in example.files.items():
        assert path not in before
        (checkout / path).write_text(text, encoding="utf-8")
    for path, hunks in example.hunks.items():
        for hunk in hunks:
            (checkout / path).write_text(apply(hunk, (checkout / path).read_text(encoding="utf-8")), encoding="utf-8")
    done = run(checkout, *tests)
    assert done.returncode == 0, done.stdout + done.stderr
    after = contents(checkout)
    assert {path for path in after if before.get(path) != after[path]} == {*example.files, *example.hunks}
    (hunks,) = example.hunks.values()
    assert len([line for line in hunks[-1].splitlines() if line.startswith("+")]) == 1, "one row"
    for check in (("check", "--no-cache"), ("format", "--no-cache", "--check")):
        done = run(checkout, "ruff", *check, *example.files, *example.hunks)
        assert done.returncode == 0, done.stdout
