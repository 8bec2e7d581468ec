"""Fuzzing: each target for FUZZ_SECONDS (a minute here, twenty with `make fuzz`), without a crash, a hang, or the
memory running over. What was found before stays in build/fuzzing, and so does what is found now."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ..fuzz.seeds import SEEDS

SECONDS = int(os.environ.get("FUZZ_SECONDS", "60"))
# Address space, as a backstop to the fuzzer's own limit: the fuzzer reserves much and touches little.
MOST_BYTES = 8 << 30


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    os.nice(10)


@pytest.mark.parametrize("target", SEEDS)
def test_fuzz(repository: Path, target: str) -> None:
    fuzzer = repository / "build/fuzz"
    assert (fuzzer / "atheris").is_dir(), f"{fuzzer} has no atheris: run it with `make fuzz`"
    directory = repository / "build/fuzzing" / target
    paths = os.pathsep.join((str(fuzzer), str(repository / "controller")))
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", target, str(directory), f"-max_total_time={SECONDS}"],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": paths},
        preexec_fn=_limit,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=SECONDS + 300,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    runs = re.search(r"stat::number_of_executed_units: (\d+)", done.stdout)
    coverage = re.findall(r" cov: (\d+) ft: (\d+) corp: (\d+)", done.stdout)[-1]
    assert runs is not None
    print(f"{target}: {runs[1]} inputs in {SECONDS} s, coverage {coverage[0]}, {coverage[1]} features, no finding")
