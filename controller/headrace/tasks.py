"""Background tasks that somebody watches over: one that ends unexpectedly ends the process, or is started again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn

logger = logging.getLogger(__name__)

_PAUSE_SECONDS = 5.0


class UnexpectedEnd(RuntimeError):  # noqa: N818
    """Work that the process cannot do without has ended by itself."""


async def forever(work: Awaitable[object], name: str) -> NoReturn:
    """Do work that must not end before it is cancelled. For the TaskGroup of a process: it ends when this does.

    Raises what the work raises, and UnexpectedEnd where it just returns."""
    try:
        await work
    except Exception as error:
        # Of a group the traceback is logged already, where its member failed.
        logger.error("%s failed: the process ends", name, exc_info=not isinstance(error, BaseExceptionGroup))
        raise
    logger.error("%s ended by itself: the process ends", name)
    raise UnexpectedEnd(name)


async def restarted(work: Callable[[], Awaitable[object]], name: str, pause_seconds: float = _PAUSE_SECONDS) -> None:
    """Do work that concerns one endpoint only, until it returns: where it fails, again after a pause."""
    while True:
        try:
            await work()
            return
        except Exception:  # a fault with one must not end the others
            logger.exception("%s failed: it is started again in %g s", name, pause_seconds)
        await asyncio.sleep(pause_seconds)


def log_failure(task: asyncio.Task[None]) -> None:
    """Log a failure that nobody else would see. For `add_done_callback`."""
    if not task.cancelled() and task.exception() is not None:
        logger.error("%s failed", task.get_name(), exc_info=task.exception())
