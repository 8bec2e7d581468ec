"""`python -m tests.fuzz TARGET DIRECTORY [FLAG ...]`: fuzz one target, its corpus and what it finds in the directory.

The flags are libFuzzer's own. Wants the fuzzer on the path; `make fuzz` sees to that."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import atheris

# What takes a minute by the clock hangs, however busy the machine: no target gets more than some hundred kilobytes.
FLAGS = ("-timeout=60", "-rss_limit_mb=2048", "-max_len=65536", "-print_final_stats=1")


def main() -> None:
    """Fuzz until the time is up, or something is found: then the process ends with an error."""
    name, directory, *flags = sys.argv[1:]
    corpus, found = Path(directory, "corpus"), Path(directory, "found")
    corpus.mkdir(parents=True, exist_ok=True)
    found.mkdir(exist_ok=True)
    with atheris.instrument_imports(include=["headrace", "yaml", "json"]):
        target = importlib.import_module(f"tests.fuzz.{name}").target
        known = importlib.import_module("tests.fuzz.seeds")
    for number, seed in enumerate([*known.SEEDS[name](), *known.kept(name)]):
        (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *FLAGS, f"-artifact_prefix={found}/", *flags, str(corpus)], target)
    atheris.Fuzz()


main()
