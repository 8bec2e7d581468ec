"""How the benchmarks' processes end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

import pytest
from benchmarks import routing


def end_of(monkeypatch: pytest.MonkeyPatch, run: Any) -> Any:
    """The exit status of the comparison of two configurations, of which `run` makes each run."""
    monkeypatch.setattr(routing, "run", run)
    monkeypatch.setattr(sys, "argv", ["routing", "--seeds=1", "--requests=4"])
    try:
        routing.main()
    except SystemExit as end:
        return 1 if isinstance(end.code, str) else end.code or 0
    return 0


@pytest.mark.parametrize(("failed", "status"), [((0, 0), 0), ((1, 0), 1), ((0, 3), 1)])
def test_failed_requests_fail_the_comparison(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failed: tuple[int, int], status: int
) -> None:
    left = iter(failed)

    async def run(*_: Any) -> routing.Result:
        return routing.Result((1.0, 2.0), (3.0, 4.0), 0.5, next(left), 1.0)

    assert end_of(monkeypatch, run) == status
    # All runs are made and compared first.
    assert next(left, None) is None
    assert "TTFT mean 1.00" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_comparison_fails(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    async def run(*_: Any) -> routing.Result:
        os.kill(os.getpid(), number)
        await asyncio.Event().wait()
        raise AssertionError

    assert end_of(monkeypatch, run) == 1


def test_a_run_without_answers_ends_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(*_: Any) -> routing.Result:
        return routing.Result((), (), 0.0, 4, 1.0)

    assert end_of(monkeypatch, run) == 1
