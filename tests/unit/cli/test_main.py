"""The `headrace` command: subcommands are loaded one at a time, errors name flag and fix."""

from __future__ import annotations

import argparse
import subprocess
import sys
from types import ModuleType

import pytest

from headrace.cli import main as cli


class Recorded(ModuleType):
    """A subcommand's module that records what it was run with."""

    def __init__(self, failure: Exception | None = None) -> None:
        super().__init__("recorded")
        self.seen: argparse.Namespace | None = None
        self.failure = failure

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--port", type=int, default=1)

    def run(self, args: argparse.Namespace) -> int:
        self.seen = args
        if self.failure:
            raise self.failure
        return 7


def install(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
    monkeypatch.setitem(sys.modules, "recorded", module)
    monkeypatch.setitem(cli.SUBCOMMANDS, "epp", cli.Subcommand("recorded", "a test's"))


def test_a_subcommand_gets_its_flags_and_gives_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Recorded()
    install(monkeypatch, module)
    assert cli.main(["epp", "--port", "5", "--log-level", "error"]) == 7
    assert module.seen is not None
    assert (module.seen.port, module.seen.log_level) == (5, "error")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["name a subcommand", "epp", "gateway", "simulate", "gpu-simulator"]),
        (["simulat"], ["unknown subcommand 'simulat'", "simulate"]),
        (["--nonsense"], ["--nonsense"]),
        (["epp", "--port", "x"], ["headrace epp", "--port", "'x'", "--help"]),
        (["epp", "--por", "5"], ["--por"]),
        (["epp", "--log-level", "loud"], ["--log-level", "'loud'", "warning"]),
    ],
)
def test_wrong_usage_is_named_without_a_traceback(
    argv: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, Recorded())
    assert cli.main(argv) == cli.EXIT_USAGE
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert "Traceback" not in error


def test_a_value_error_of_a_command_is_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, Recorded(ValueError("--port 0: give a port from 1 to 65535")))
    assert cli.main(["epp"]) == cli.EXIT_USAGE
    assert "--port 0: give a port" in capsys.readouterr().err


def test_an_unexpected_error_is_one_log_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, Recorded(RuntimeError("boom")))
    assert cli.main(["epp"]) == cli.EXIT_FAILED
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("{")
    assert "boom" in lines[0]


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    module = Recorded()
    module.run = interrupted  # type: ignore[method-assign]
    install(monkeypatch, module)
    assert cli.main(["epp"]) == cli.EXIT_INTERRUPTED


def test_a_missing_module_is_named_and_leaves_the_other_subcommands_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, Recorded())
    monkeypatch.setitem(cli.SUBCOMMANDS, "gateway", cli.Subcommand("headrace_not_there", "missing"))
    assert cli.main(["gateway"]) == cli.EXIT_USAGE
    assert "headrace_not_there" in capsys.readouterr().err
    assert cli.main(["epp"]) == 7


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"headrace {cli.version()}\n"
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.SUBCOMMANDS)


def test_a_subcommand_imports_no_other_package() -> None:
    """`headrace simulate` runs in small Pods: neither gRPC nor the Kubernetes client may come along."""
    program = (
        "import sys; from headrace.cli.main import main; main(['simulate', '--help']); "
        "print([name for name in ('grpc', 'kubernetes', 'headrace.epp', 'headrace.gateway') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout
