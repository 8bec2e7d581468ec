"""The life of a process: it runs until it is asked to stop, drains, and ends at once if it is asked again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Awaitable, Coroutine, Iterator
from typing import Any

import uvloop

from headrace.core.invalid import CannotServe

logger = logging.getLogger(__name__)


class Shutdown:
    """`asked` is set by the first SIGTERM or SIGINT, `at_once` by the second."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.at_once = asyncio.Event()

    def ask(self) -> None:
        """Drain and end; asked a second time, end at once."""
        (self.at_once if self.asked.is_set() else self.asked).set()

    @contextlib.contextmanager
    def by_signals(self) -> Iterator[None]:
        """Signals ask, in this block."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self.ask)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    async def pause(self, seconds: float) -> None:
        """Wait, less long if the process is to end at once."""
        await within(self.at_once, seconds)

    async def finish(self, work: Awaitable[object], seconds: float | None = None) -> None:
        """Do some last work; it is cancelled after `seconds`, and when the process is to end at once."""
        working, now = asyncio.ensure_future(work), asyncio.ensure_future(self.at_once.wait())
        await asyncio.wait((working, now), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in (working, now):
            task.cancel()
        await asyncio.gather(working, now, return_exceptions=True)


async def within(event: asyncio.Event, seconds: float) -> bool:
    """Whether the event comes within so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


def run(serve: Coroutine[Any, Any, None]) -> int:
    """Serve until it ends; the exit code: 1 where something needed is missing."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(serve)
        except (CannotServe, OSError) as error:
            logger.error("cannot serve: %s", error)
            return 1
    return 0
