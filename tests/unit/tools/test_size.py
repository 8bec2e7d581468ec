from pathlib import Path

import pytest

from tests.tools.size import code_lines, count, too_long

SOURCE = '''"""A module.

Two lines of text."""

from __future__ import annotations

# A comment.
NAME = """not
a docstring"""


class Thing:
    """What it is."""

    def size(self) -> int:
        """Its size."""
        return (
            1
            # Between two lines of code.
            + 2
        )  # Beside code.
'''


@pytest.mark.parametrize(
    "source, lines",
    [
        ("", 0),
        ("\n\n# only a comment\n", 0),
        ('"""A docstring."""\n', 0),
        ("'not' 'a docstring'.upper()\n", 1),
        ("a = 1; b = 2\n", 1),
        (SOURCE, 9),
    ],
)
def test_lines_that_hold_code_count(source: str, lines: int) -> None:
    assert code_lines(source) == lines


def test_packages_are_counted_without_the_simulator_and_generated_modules(tmp_path: Path) -> None:
    for name in ("tasks.py", "core/pool.py", "core/deep/pool.py", "simulator/engine.py", "core/peers_pb2.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a = 1\nb = 2\n")
    assert count(tmp_path) == {".": 2, "core": 4}


def test_what_is_too_long_is_named_with_its_line() -> None:
    body = "    x = 1\n" * 61
    assert too_long(f"def short():\n    pass\n\ndef long():\n{body}") == [
        "4: long has 62 lines, at most 60 are allowed"
    ]
    methods = "".join(f"    def m{number}(self):\n        pass\n" for number in range(130))
    assert too_long(f"class Wide:\n{methods}") == ["1: Wide has 261 lines, at most 250 are allowed"]
    assert too_long("x = 1\n" * 401) == ["1: the module has 401 lines, at most 400 are allowed"]
    assert too_long("x = 1\n" * 400) == []
