"""Asked once a process drains, asked twice it ends at once."""

from __future__ import annotations

import asyncio
import os
import signal

from headrace.core.invalid import CannotServe
from headrace.serving.lifecycle import Shutdown, run, within

from ...hang import HANG_SECONDS


async def test_two_signals() -> None:
    shutdown = Shutdown()
    with shutdown.by_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        assert await within(shutdown.asked, HANG_SECONDS)
        assert not await within(shutdown.at_once, 0)
        os.kill(os.getpid(), signal.SIGINT)
        assert await within(shutdown.at_once, HANG_SECONDS)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_the_last_work_is_waited_for_until_it_is_to_end_at_once() -> None:
    shutdown = Shutdown()
    done: list[str] = []

    async def work(name: str, ends: asyncio.Event) -> None:
        await ends.wait()
        done.append(name)

    never, now = asyncio.Event(), asyncio.Event()
    now.set()
    await shutdown.finish(work("short", now))
    await shutdown.finish(work("late", never), seconds=0.01)
    shutdown.ask()
    shutdown.ask()
    await shutdown.finish(work("long", never))
    await shutdown.pause(HANG_SECONDS)
    assert done == ["short"]


def test_what_is_missing_is_an_exit_code() -> None:
    async def fine() -> None:
        return

    async def missing() -> None:
        raise CannotServe("--port=1: taken")

    assert run(fine()) == 0
    assert run(missing()) == 1
