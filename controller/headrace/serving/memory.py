"""Gives memory that is free back to the machine: what a burst has taken would else stay with the process."""

from __future__ import annotations

import asyncio
import ctypes
from typing import NoReturn

_EVERY_SECONDS = 20.0


async def give_back_memory(seconds: float = _EVERY_SECONDS) -> NoReturn:
    """Have the C library give back what is free in its heaps, now and then. It has done nothing else since the heaps
    grew; the work is done in a thread, without Python's lock. Does nothing where the library is not glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while True:
        await asyncio.sleep(seconds)
        if trim is not None:
            await asyncio.to_thread(trim, 0)
