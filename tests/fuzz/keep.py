"""`python -m tests.fuzz.keep`: keep of what fuzzing has found in build/fuzzing what reaches what no seed does.

That is lines of ours, and how often each is run, by powers of two. For each target the smallest such inputs, up to
KEPT_BYTES, go into tests/fuzz/corpora, a line of base64 each, behind those that are there: one that once failed
stays."""

from __future__ import annotations

import base64
import importlib
import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

from .seeds import CORPORA, SEEDS, TESTS, kept

FOUND = TESTS.parent / "build/fuzzing"
OURS = str(TESTS.parent / "controller" / "headrace")
KEPT_BYTES, LONGEST = 6 << 10, 1 << 10


def reached(target: Callable[[bytes], None], data: bytes) -> set[tuple[str, int, int]]:
    """The lines that an input runs, and how often."""
    counts: Counter[tuple[str, int]] = Counter()

    def line(frame: FrameType, event: str, _: Any) -> Any:
        counts[frame.f_code.co_filename, frame.f_lineno] += event == "line"
        return line

    def call(frame: FrameType, _: str, __: Any) -> Any:
        return line if frame.f_code.co_filename.startswith(OURS) else None

    sys.settrace(call)
    try:
        target(data)
    finally:
        sys.settrace(None)
    return {(*place, count.bit_length()) for place, count in counts.items()}


def main() -> None:
    """Write the files."""
    CORPORA.mkdir(exist_ok=True)
    for name, seeds in SEEDS.items():
        target = importlib.import_module(f"tests.fuzz.{name}").target
        inputs = kept(name)
        seen = set().union(*(reached(target, one) for one in (*seeds(), *inputs)))
        found = [path.read_bytes() for path in (FOUND / name).glob("*/*") if path.stat().st_size <= LONGEST]
        for one in sorted(found, key=lambda one: (len(one), one)):
            if sum(map(len, inputs)) + len(one) <= KEPT_BYTES and not (new := reached(target, one)) <= seen:
                seen |= new
                inputs.append(one)
        (CORPORA / f"{name}.txt").write_text("".join(base64.b64encode(one).decode() + "\n" for one in inputs))
        print(f"{name}: {len(inputs)} inputs, {sum(map(len, inputs))} bytes")


if __name__ == "__main__":
    main()
