"""Two commands beside each other: their exit status, their output, and their end."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from ...hang import HANG_SECONDS


def command(repository: Path, first: str, second: str) -> list[str]:
    # Where the tests themselves run in the background of a script, they ignore SIGINT.
    begin = ["env", "--default-signal=INT", str(repository / "tests/tools/beside.sh")]
    return [*begin, "sh", "-c", first, "--", "sh", "-c", second]


def test_they_run_at_the_same_time_and_the_firsts_output_comes_last(repository: Path, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    # Each ends only once the other has begun.
    first = f"echo one; touch {a}; until [ -e {b} ]; do sleep 0.05; done; echo two"
    second = f"touch {b}; until [ -e {a} ]; do sleep 0.05; done; echo three"
    done = subprocess.run(command(repository, first, second), capture_output=True, text=True, timeout=HANG_SECONDS)
    assert (done.returncode, done.stdout.split()) == (0, ["three", "one", "two"]), done.stderr


@pytest.mark.parametrize(("first", "second", "code"), [("exit 3", "true", 3), ("true", "exit 4", 4)])
def test_one_that_fails_fails_both(repository: Path, first: str, second: str, code: int) -> None:
    done = subprocess.run(
        command(repository, f"echo one; {first}", second), capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert (done.returncode, done.stdout) == (code, "one\n"), done.stderr


def test_interrupted_it_waits_until_the_first_has_cleaned_up(repository: Path, tmp_path: Path) -> None:
    begun, cleaned = tmp_path / "begun", tmp_path / "cleaned"
    first = f"trap 'sleep 0.3; touch {cleaned}; exit 1' INT; touch {begun}; while :; do sleep 0.05; done"
    second = f"until [ -e {begun} ]; do sleep 0.05; done; echo begun; exec sleep {2 * HANG_SECONDS}"
    with subprocess.Popen(
        command(repository, first, second), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        # As a terminal does it: to all that run in the foreground.
        subprocess.run(["kill", "-INT", "--", f"-{process.pid}"], check=True)
        assert process.wait(HANG_SECONDS) == 128 + signal.SIGINT
    assert cleaned.exists()
