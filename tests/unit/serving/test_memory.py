"""Memory that a burst has taken is given back. In a process of its own: what others keep does not count."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, ctypes
from pathlib import Path
from headrace.serving.memory import give_back_memory, share_heaps

def resident():
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmRSS"))
    return int(line.split()[1]) << 10

async def main():
    share_heaps()
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.free.argtypes = [ctypes.c_void_p]
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_what_is_free_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50 << 20
