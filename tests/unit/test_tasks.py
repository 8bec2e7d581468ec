"""Background tasks: none ends without a word."""

from __future__ import annotations

import asyncio
import logging

import pytest

from headrace.tasks import UnexpectedEnd, forever, log_failure, restarted


async def returns() -> None:
    return


async def fails() -> None:
    raise KeyError("x")


async def waits() -> None:
    await asyncio.Event().wait()


async def test_work_that_ends_ends_its_group(caplog: pytest.LogCaptureFixture) -> None:
    for work, expected in ((returns, UnexpectedEnd), (fails, KeyError)):
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(forever(waits(), "other"))
                tasks.create_task(forever(work(), "this"))
        assert caught.value.subgroup(expected) is not None
        assert any(record.levelno == logging.ERROR and "this" in record.getMessage() for record in caplog.records)
        caplog.clear()


async def test_work_that_is_cancelled_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    task = asyncio.create_task(forever(waits(), "this"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not caplog.records


async def test_work_of_one_endpoint_is_started_again_until_it_returns(caplog: pytest.LogCaptureFixture) -> None:
    tries = 0

    async def work() -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise KeyError(tries)

    await restarted(work, "this", pause_seconds=0)
    assert tries == 3
    assert len(caplog.records) == 2


async def test_a_failure_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    for work, count in ((fails, 1), (returns, 0)):
        caplog.clear()
        task = asyncio.create_task(work(), name="this")
        task.add_done_callback(log_failure)
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0)
        assert len(caplog.records) == count
