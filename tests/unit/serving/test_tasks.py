"""Background tasks: none ends without a word."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

import pytest

from headrace.serving.tasks import Supervisor, TaskPerKey, UnexpectedEnd


async def returns() -> None:
    return


async def fails() -> None:
    raise KeyError("x")


async def waits() -> None:
    await asyncio.Event().wait()


async def test_work_that_ends_ends_its_group(caplog: pytest.LogCaptureFixture) -> None:
    for work, expected in ((returns, UnexpectedEnd), (fails, KeyError)):
        with pytest.raises(ExceptionGroup) as caught:
            async with Supervisor() as tasks:
                other = tasks.start(waits(), "other")
                tasks.start(work(), "this")
                await asyncio.Event().wait()
        assert caught.value.subgroup(expected) is not None
        assert other.cancelled()
        assert any(record.levelno == logging.ERROR and "this" in record.getMessage() for record in caplog.records)
        caplog.clear()


async def test_leaving_the_group_cancels_and_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    async with Supervisor() as tasks:
        started = [tasks.start(waits(), "this"), tasks.start_restarting("some", "that", waits)]
        alone = tasks.start(waits(), "one that is not needed any more")
        await asyncio.sleep(0)
        alone.cancel()
    assert all(task.cancelled() for task in (*started, alone))
    assert not caplog.records


async def test_work_on_one_thing_starts_again_until_it_returns(caplog: pytest.LogCaptureFixture) -> None:
    tries = 0
    failures: list[str] = []

    async def work() -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise KeyError(tries)

    async with Supervisor(failures.append) as tasks:
        await tasks.start_restarting("scrape", "10.0.0.1:8000", work, pause_seconds=0)
    assert tries == 3
    assert failures == ["scrape", "scrape"]
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2


async def test_there_is_a_task_for_each_key() -> None:
    running: set[str] = set()

    async def work(key: str) -> None:
        running.add(key)
        try:
            await asyncio.Event().wait()
        finally:
            running.remove(key)

    async with Supervisor() as tasks:
        each = TaskPerKey(tasks, "some")

        async def adjusted(keys: str) -> set[str]:
            gone = each.adjust({key: partial(work, key) for key in keys})
            for _ in range(3):
                await asyncio.sleep(0)
            assert len(each) == len(keys)
            return set(gone)

        assert await adjusted("ab") == set()
        assert running == {"a", "b"}
        assert await adjusted("bc") == {"a"}
        assert running == {"b", "c"}
    assert running == set()
