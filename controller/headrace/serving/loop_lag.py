"""How long the event loop keeps others waiting, as a task sees it that only sleeps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NoReturn

_INTERVAL_SECONDS = 0.1


async def watch_lag(observe: Callable[[float], None], clock: Callable[[], float] = time.monotonic) -> NoReturn:
    """Tell ten times a second by how many seconds a task was woken too late."""
    while True:
        due = clock() + _INTERVAL_SECONDS
        await asyncio.sleep(_INTERVAL_SECONDS)
        observe(max(0.0, clock() - due))
