"""Keeps a process's memory near what it uses: what a burst has taken would else stay with it.

Does nothing where the C library is not glibc."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from pathlib import Path
from typing import NoReturn

_EVERY_SECONDS = 20.0
# Of memory: so much more than there was is a reason to collect, and so much less is worth it.
_MORE, _WORTH = 1.05, 0.03
# Rounds: an hour.
_LONGEST_WAIT = 180
# Of malloc.h. Each thread would have a heap of its own, and what is free in one is of no use to the others.
_M_ARENA_MAX, _HEAPS = -8, 1
# What is as long as this is mapped by itself, and given back when it is freed. The C library would raise this to the
# length of the longest body so far, and small things that stay would keep the holes that long ones leave in the heap.
_M_MMAP_THRESHOLD, _MAPPED_BYTES = -3, 256 << 10


def share_heap() -> None:
    """Have all threads use one heap, without what is long. Call it before there are threads."""
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    if option is not None:
        option(_M_ARENA_MAX, _HEAPS)
        option(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


def settle() -> None:
    """The process is set up: what there is now stays. Without this, Python's collector would go through all of it again
    and again, ten milliseconds at a time."""
    gc.collect()
    gc.freeze()


def resident(status: Path = Path("/proc/self/status")) -> int:
    """The process's memory in bytes; 0 where that cannot be known."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:")), 0)


async def give_back_memory(seconds: float = _EVERY_SECONDS) -> NoReturn:
    """Have the C library give back what is free in its heaps, now and then: in a thread, without Python's lock.

    What Python's collector alone can free waits for it, for long where little is going on. So it is called while there
    is more memory than there was, the more seldom the less that brings: it holds up others for some milliseconds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)
    least = resident()
    rounds, wait = 0, 1
    while True:
        await asyncio.sleep(seconds)
        await asyncio.to_thread(trim, 0)
        now = resident()
        rounds += 1
        if now > _MORE * least and rounds >= wait:
            gc.collect()
            await asyncio.to_thread(trim, 0)
            brought = now - resident() > _WORTH * now
            rounds, wait = 0, 1 if brought else min(2 * wait, _LONGEST_WAIT)
        least = min(least, resident())
