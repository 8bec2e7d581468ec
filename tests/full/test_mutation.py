"""Mutants of the pure packages, each against its package's unit tests: at least 85 of 100 are killed.

MUTATION_SEED draws them, MUTATION_COUNT says how many, MUTATION_MINUTES is the longest that a run takes: the next one
goes on where it ended. What is known is in build/mutants, by commit and seed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ..tools import mutation

SEED = int(os.environ.get("MUTATION_SEED", "15"))
COUNT = int(os.environ.get("MUTATION_COUNT", "300"))
MINUTES = float(os.environ.get("MUTATION_MINUTES", "40"))
LEAST = 0.85


def test_the_unit_tests_notice(repository: Path, tmp_path: Path) -> None:
    assert mutation.MUTATORS.is_dir(), f"{mutation.MUTATORS} is missing: run this with `make mutation`"
    sys.path.append(str(mutation.MUTATORS))
    try:
        git = ("git", "-C", str(repository))
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True)
        # What is committed, so that nobody's changes to a module get in the way of a mutant, nor a mutant in theirs.
        archive = subprocess.run([*git, "archive", "HEAD"], check=True, capture_output=True)
        subprocess.run(["tar", "x", "-C", str(tmp_path)], input=archive.stdout, check=True)
        results = repository / "build" / "mutants" / f"{commit.stdout.strip()}-{SEED}.jsonl"
        results.parent.mkdir(parents=True, exist_ok=True)
        found = mutation.run(tmp_path, results, SEED, COUNT, MINUTES, ())
    finally:
        sys.path.remove(str(mutation.MUTATORS))
    score = mutation.report(found, COUNT, SEED)
    assert len(found) == COUNT, f"{len(found)} of {COUNT} in {MINUTES} minutes: run it again to go on"
    assert score >= LEAST
