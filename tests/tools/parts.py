#!/usr/bin/env python3
"""The parts of `make test-full`, and the table in docs/verification.md of when each was run last.

    parts.py run [PART]  run it, or all of them, and write commit, date, result and time into the table
    parts.py stale       write into the table how often the code of each part has changed since, and name those parts

A part covers folders. Once a commit after the part's run has changed one of them, what the run said is out of date.
"""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = Path("docs/verification.md")
BEGIN, END = "<!-- parts -->\n", "<!-- end of parts -->\n"
HEADER = "| part | commit | date | result | minutes | changed since |\n|---|---|---|---|---|---|\n"
# The processes of Headrace, and all that brings them into a cluster.
STACK = ("controller", "crds", "inventories", "playbooks", "plugins", "roles")


@dataclass(frozen=True)
class Part:
    """What pytest is called with, and the paths whose changes ask for another run."""

    arguments: tuple[str, ...]
    covers: tuple[str, ...]
    profile: str = "default"


def full(*names: str, covers: tuple[str, ...] = STACK) -> Part:
    """Files of tests/full."""
    files = tuple(f"tests/full/{name}" for name in names)
    return Part((*files, "--durations=0"), (*covers, *files))


PARTS = {
    "long": Part(("-n3", "tests/component", "tests/unit"), ("controller", "plugins", "tests/unit"), profile="long"),
    "slow": Part(("-n3", "tests/integration", "-m", "slow"), (*STACK, "tests/integration")),
    "upgrade": full("test_versions.py", "test_upgrade.py"),
    "replacement": full("test_replacement.py"),
    "kinds": full("test_replacement_kinds.py", "test_adapters.py"),
    "picker": full(
        "test_epp_churn.py", "test_epp_failures.py", "test_picker_stalls.py",
        covers=("controller", "roles/inference_pool"),
    ),
    "gateway": full(
        "test_gateway_faults.py", "test_gateway_load.py", "test_hook_time.py", "test_weight_flips.py",
        covers=("controller", "roles/envoy_gateway", "roles/inference_gateway"),
    ),
    "lifecycle": full("test_lifecycle.py", "test_teardown.py"),
    "conformance": full("conformance"),
    "hostile": full("test_hostile.py", covers=("controller", "tests/hostile")),
    "mutation": full(
        "test_mutation.py",
        covers=tuple(
            f"{root}/{package}"
            for root in ("controller/headrace", "tests/unit")
            for package in ("extproc", "scheduling", "flowcontrol", "datalayer")
        ),
    ),
    "fuzz": full("test_fuzz.py", covers=("controller", "tests/fuzz")),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A row of the table. `minutes` and `commit` are text, as there: a commit with changes on top ends in "+"."""

    commit: str = ""
    date: str = ""
    result: str = "no run written down"
    minutes: str = ""
    since: str = ""


def git(repository: Path, *arguments: str) -> str:
    """git's output; empty where it fails, as it does for a commit that this clone does not have."""
    return subprocess.run(["git", *arguments], cwd=repository, capture_output=True, text=True).stdout


def changes(repository: Path, part: Part, run: Run) -> str:
    """How many commits since have changed what the part covers; "?" where this clone cannot say."""
    commit = run.commit.removesuffix("+")
    if not commit or not git(repository, "cat-file", "-t", commit):
        return "?" if commit else ""
    return str(len(git(repository, "log", "--format=%h", f"{commit}..", "--", *part.covers).splitlines()))


def read(text: str) -> dict[str, Run]:
    """The rows of the document's table, by part."""
    rows = text.partition(BEGIN)[2].partition(END)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if row.startswith("|")]
    return {part.strip("`"): Run(commit.strip("`"), *rest) for part, commit, *rest in cells}


def write(repository: Path, runs: dict[str, Run]) -> None:
    """The document with these rows, and how much of what they cover has changed since."""
    document = repository / DOCUMENT
    before, rest = document.read_text().split(BEGIN)
    after = rest.partition(END)[2]
    rows = []
    for name, part in PARTS.items():
        run = runs.get(name, Run())
        commit, since = f"`{run.commit}`" if run.commit else "", changes(repository, part, run)
        rows.append(f"| `{name}` | {commit} | {run.date} | {run.result} | {run.minutes} | {since} |\n")
    document.write_text(f"{before}{BEGIN}{HEADER}{''.join(rows)}{END}{after}")


def stale(repository: Path) -> list[str]:
    """The parts whose last run failed, is missing, or says nothing of the code as it is now."""
    runs = read((repository / DOCUMENT).read_text())
    return [
        name for name, part in PARTS.items()
        if (run := runs.get(name, Run())).result != "passed" or changes(repository, part, run) != "0"
    ]  # fmt: skip


def record(repository: Path, name: str, code: int, seconds: float) -> None:
    """Write a part's run into the table."""
    commit = git(repository, "rev-parse", "--short", "HEAD").strip()
    # The table itself does not count.
    changed = git(repository, "status", "--porcelain", "--untracked-files=no", "--", ".", f":!{DOCUMENT}")
    run = Run(
        commit=f"{commit}+" if changed else commit,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        result="failed" if code else "passed",
        minutes=f"{seconds / 60:.0f}",
    )
    write(repository, {**read((repository / DOCUMENT).read_text()), name: run})


def run_part(name: str) -> int:
    """Run a part, and write it down. Returns pytest's exit status."""
    part = PARTS[name]
    started = time.monotonic()
    command = [sys.executable, "-m", "pytest", *part.arguments]
    code = subprocess.call(command, cwd=ROOT, env={**os.environ, "HYPOTHESIS_PROFILE": part.profile})
    record(ROOT, name, code, time.monotonic() - started)
    return code


def main(arguments: list[str]) -> int:
    """Do what the arguments say; the exit status is the tests'."""
    match arguments:
        case ["run"]:
            statuses = [run_part(name) for name in PARTS]
            # A part that a signal ended has a negative status.
            return int(any(statuses))
        case ["run", name] if name in PARTS:
            return run_part(name)
        case ["run", name]:
            print(f"PART={name}: no such part. Parts: {' '.join(PARTS)}", file=sys.stderr)
            return 1
        case ["stale"]:
            write(ROOT, read((ROOT / DOCUMENT).read_text()))
            for name in stale(ROOT):
                print(f"make test-full PART={name}")
            return 0
        case _:
            print(__doc__, file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
