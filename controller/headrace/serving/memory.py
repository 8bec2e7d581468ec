"""Keeps a process's memory near what it uses: what a burst has taken would else stay with it.

Does nothing where the C library is not glibc."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from typing import NoReturn

_EVERY_SECONDS = 20.0
# Of malloc.h. Each thread of gRPC would have a heap of its own, and what is free in one is of no use to the others.
_M_ARENA_MAX, _HEAPS = -8, 2


def share_heaps() -> None:
    """Have all threads use the same few heaps. Call it before there are any."""
    limit = getattr(ctypes.CDLL(None), "mallopt", None)
    if limit is not None:
        limit(_M_ARENA_MAX, _HEAPS)


def settle() -> None:
    """The process is set up: what there is now stays. Without this, Python's collector would go through all of it again
    and again, ten milliseconds at a time."""
    gc.collect()
    gc.freeze()


async def give_back_memory(seconds: float = _EVERY_SECONDS) -> NoReturn:
    """Have the C library give back what is free in its heaps, now and then: in a thread, without Python's lock."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while True:
        await asyncio.sleep(seconds)
        if trim is not None:
            await asyncio.to_thread(trim, 0)
