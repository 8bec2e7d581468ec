"""Whether the event loop lets others have their turn."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass


@dataclass
class Turns:
    """How many turns another task has had so far."""

    count: int = 0


@contextlib.asynccontextmanager
async def counted_turns() -> AsyncIterator[Turns]:
    """Count another task's turns until the block ends."""
    turns = Turns()

    async def others() -> None:
        while True:
            turns.count += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    try:
        yield turns
    finally:
        task.cancel()
