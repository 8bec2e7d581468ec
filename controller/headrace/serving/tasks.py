"""Background tasks, all in groups that watch over them: none ends without an error in the log.

One that the process cannot do without ends the process. One that concerns a single endpoint is counted and started
again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, NoReturn, Self

logger = logging.getLogger(__name__)

_PAUSE_SECONDS = 5.0


class UnexpectedEnd(RuntimeError):  # noqa: N818
    """Work that the process cannot do without has ended by itself."""


async def _forever(work: Awaitable[object], name: str) -> NoReturn:
    """Do work that must not end before it is cancelled: the group of its task ends when this does.

    Raises what the work raises, and UnexpectedEnd where it just returns."""
    try:
        await work
    except Exception as error:
        # Of a group the traceback is logged already, where its member failed.
        logger.error("%s failed: the process ends", name, exc_info=not isinstance(error, BaseExceptionGroup))
        raise
    logger.error("%s ended by itself: the process ends", name)
    raise UnexpectedEnd(name)


class Supervisor:
    """The background tasks of a process, as a group: leaving it cancels them and waits for their end.

    `on_failure` is told the kind of each task that has failed and is started again."""

    def __init__(self, on_failure: Callable[[str], None] = lambda kind: None) -> None:
        self._on_failure = on_failure
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await self._group.__aexit__(kind, error, trace)

    def start(self, work: Coroutine[Any, Any, object], name: str) -> asyncio.Task[NoReturn]:
        """Work that the process cannot do without: when it ends before it is cancelled, so does the group."""
        return self._add(_forever(work, name), name)

    def start_restarting(
        self, kind: str, of: str, work: Callable[[], Awaitable[object]], pause_seconds: float = _PAUSE_SECONDS
    ) -> asyncio.Task[None]:
        """Work on one thing of many, as an endpoint, until it returns. When it fails it starts again after a pause.

        `kind` is the name that it is counted by; `of` is the thing, for the log."""
        name = f"{kind} {of}"

        async def again() -> None:
            while True:
                try:
                    await work()
                    return
                except Exception:  # a fault with one must not end the others
                    logger.exception("%s failed: it starts again in %g s", name, pause_seconds)
                self._on_failure(kind)
                await asyncio.sleep(pause_seconds)

        return self._add(again(), name)

    def _add(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = self._group.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class TaskPerKey:
    """A task for each of a changing set of keys. `kind` says what they do."""

    def __init__(self, supervisor: Supervisor, kind: str) -> None:
        self._supervisor = supervisor
        self._kind = kind
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def adjust(self, wanted: Mapping[str, Callable[[], Awaitable[object]]]) -> list[str]:
        """Have a task for exactly these keys, each started by its function. Gives the keys whose task was ended."""
        gone = [key for key in self._tasks if key not in wanted]
        for key in gone:
            self._tasks.pop(key).cancel()
        for key, work in wanted.items():
            if key not in self._tasks:
                self._tasks[key] = self._supervisor.start_restarting(self._kind, key, work)
        return gone
