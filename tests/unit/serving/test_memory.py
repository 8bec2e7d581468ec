"""Memory that a burst has taken is given back. In a process of its own: what others keep does not count."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.serving import memory

BEGIN = """
import asyncio, ctypes
from headrace.serving.memory import give_back_memory, resident, share_heap

share_heap()
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]
"""
TRIMMED = (
    BEGIN
    + """
async def main():
    before = resident()
    # Too small to be mapped one by one, and one that stays keeps the heap from shrinking by itself.
    taken = [library.malloc(60_000) for _ in range(2_000)]
    for place in taken:
        ctypes.memset(place, 1, 60_000)
    for place in taken[:-1]:
        library.free(place)
    kept = resident()
    task = asyncio.create_task(give_back_memory(0.001))
    async with asyncio.timeout(60):
        while resident() - before > (kept - before) // 4:
            await asyncio.sleep(0.01)
    task.cancel()
    print(kept - before)

asyncio.run(main())
"""
)


MAPPED = (
    BEGIN
    + """
# The C library learns from this that such lengths are usual, and would take them from the heap.
library.free(library.malloc(16 << 20))
before = resident()
long = []
for _ in range(200):
    long.append(library.malloc(500_000))
    ctypes.memset(long[-1], 1, 500_000)
    library.malloc(100)
taken = resident()
for place in long:
    library.free(place)
# Nothing has been trimmed.
assert resident() - before < (taken - before) // 4, (before, taken, resident())
print(taken - before)
"""
)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
@pytest.mark.parametrize("program", [TRIMMED, MAPPED], ids=["trimmed", "mapped"])
def test_what_is_free_is_given_back(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50 << 20


async def test_the_collector_is_called_for_more_memory_and_seldom_where_it_brings_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds = collected = 0
    memory_then, garbage = 100, 0
    enough = asyncio.Event()

    async def sleep(seconds: float) -> None:
        nonlocal rounds, garbage
        rounds += 1
        if rounds == 20:
            garbage = 300
        if rounds == 60:
            enough.set()
            await asyncio.Event().wait()

    def collect() -> None:
        nonlocal collected, garbage
        collected += 1
        calls.append(rounds)
        garbage = 0

    calls: list[int] = []
    monkeypatch.setattr(memory, "resident", lambda: memory_then + garbage + (50 if rounds >= 25 else 0))
    monkeypatch.setattr(memory.gc, "collect", collect)
    monkeypatch.setattr(memory.asyncio, "sleep", sleep)
    task = asyncio.create_task(memory.give_back_memory())
    await enough.wait()
    task.cancel()
    # Not without need; at once for garbage; and then, for what stays, after 1, 2, 4 and so on rounds.
    assert calls[0] == 20
    assert calls[1] == 25
    gaps = [after - before for before, after in itertools.pairwise(calls[1:])]
    assert gaps == [2, 4, 8, 16]


def test_memory_is_known_on_linux(tmp_path: Path) -> None:
    assert memory.resident() > 1 << 20
    assert memory.resident(tmp_path / "none") == 0
