"""`headrace pool replace`: exit codes, following through an API server's restart, and a way back that leads nowhere."""

from __future__ import annotations

import argparse
import json
from typing import Any

import pytest

from headrace.cli.main import main
from headrace.config.flags import InvalidFlag
from headrace.kube.client import ApiError
from headrace.replace import command
from headrace.replace.command import add_arguments, read_options
from headrace.replace.plan import parse_plan
from headrace.replace.state import Phase

from .test_routes import PLAN


def options(*arguments: str) -> command.Options:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return read_options(parser.parse_args(["--pool", "old", "--namespace", "serving", *arguments]))


def test_an_accident_is_no_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*arguments: Any) -> int:
        raise ValueError("an answer that nobody thought of")

    monkeypatch.setattr(command, "_connected", broken)
    given = ["pool", "replace", "--pool=a", "--replacement=b"]
    # A Job fails for good with 2, and is started again with 1.
    assert main(given) == 1
    assert main([*given, '--plan={"steps": [50]}']) == 2
    assert main([*given, "--plan=["]) == 2


@pytest.mark.parametrize("flag", ["poll_interval", "lease_patience", "lease_duration", "timeout"])
@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1e3", 1000.0), (".5", 0.5), ("+5", 5.0), ("5", 5.0), ("2.5", 2.5), ("1m30s", 90.0), ("50ms", 0.05)],
)
def test_times_are_seconds_or_durations(flag: str, text: str, seconds: float) -> None:
    given = f"--{flag.replace('_', '-')}={text}"
    assert getattr(options("--action=follow", given), flag) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["0", "-1", "inf", "nan", "1e7", "1e400", "soon", "", "5d", "0s"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(InvalidFlag, match=f"--timeout={text}: "):
        options("--action=follow", f"--timeout={text}")


@pytest.mark.parametrize("status", [0, 429, 500, 503])
async def test_following_outlives_an_api_server_that_restarts(
    status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers: list[Any] = [ApiError(status, "", "x"), {"finished": True, "milestones": 1}]

    async def read(*_: Any) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def no_wait(seconds: float) -> None: ...

    monkeypatch.setattr(command.status, "read", read)
    monkeypatch.setattr(command.asyncio, "sleep", no_wait)
    assert await command.Command(options("--action=follow"), PLAN, None, None).follow() == 0  # type: ignore[arg-type]
    assert json.loads(capsys.readouterr().out)["finished"]
    answers.append(ApiError(403, "", "x"))
    with pytest.raises(ApiError):
        await command.Command(options("--action=follow"), PLAN, None, None).follow()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("phase", "lacks", "code"),
    [
        (Phase.DONE, "it has no ready endpoint", 4),
        (Phase.DONE, "", 0),
        # One that is under way is taken back whatever the old pool is like: half of the traffic is there.
        (Phase.GATE, "it has no ready endpoint", 0),
    ],
)
async def test_traffic_goes_back_to_none_but_a_pool_that_serves(
    phase: Phase, lacks: str, code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[Any] = []

    async def read(*_: Any) -> Any:
        return {"phase": phase.value, "plan": PLAN.as_json(), "share": 100}

    async def ask(self: Any, request: Any) -> None:
        asked.append(request.action)

    async def lacking(measure: Any, pool: Any) -> str:
        assert pool == parse_plan(PLAN.as_json()).old
        return lacks

    monkeypatch.setattr(command.status, "read", read)
    monkeypatch.setattr(command.Store, "ask", ask)
    monkeypatch.setattr(command, "lacks_to_serve", lacking)
    assert await command.Command(options("--action=rollback"), PLAN, None, None).ask() == code  # type: ignore[arg-type]
    assert asked == ([] if code else ["rollback"])
    assert not code or "it has no ready endpoint: bring it up" in caplog.text
