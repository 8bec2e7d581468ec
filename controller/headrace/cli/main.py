"""Entry point of the `headrace` command.

Each subcommand lives in its own package as a module with `add_arguments(parser)` and `run(args) -> int`. Only the
module of the subcommand that was asked for is imported: `headrace simulate` starts without gRPC or the Kubernetes
client, and a package that cannot be imported does not take the others along.

Exit codes: 0 done; 1 failed while running; 2 wrong usage, or a subcommand whose packages are not installed; 130
interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from msgspec import Struct

from headrace.core.version import version
from headrace.serving.logs import LEVELS, configure_logging

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_logger = logging.getLogger("headrace.cli")


class UsageError(Exception):
    """A flag's value, or a combination of flags, is wrong; the message names flag, value and fix.

    A command's `run` may raise it, or any ValueError, for what argparse cannot check: exit code 2, no traceback.
    """


class Subcommand(Struct, frozen=True):
    """Where a subcommand lives, and its line in `headrace --help`."""

    module: str
    summary: str


SUBCOMMANDS = {
    "epp": Subcommand("headrace.epp.command", "serve Envoy as the endpoint picker of one InferencePool"),
    "gateway": Subcommand("headrace.gateway.command", "make Envoy Gateway serve InferencePools: hook, EDS and status"),
    "pool": Subcommand("headrace.cli.pool.command", "look at pools, explain picks, check manifests, replace a pool"),
    "replay": Subcommand("headrace.replay.command", "replay a trace against routing policies, in virtual time"),
    "simulate": Subcommand("headrace.simulator.command", "run a simulated vLLM model server"),
    "gpu-simulator": Subcommand("headrace.simulator.gpu_command", "advertise simulated GPUs to the kubelet"),
}


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors end with what to do next."""

    def error(self, message: str) -> NoReturn:
        # argparse prints the whole usage before every error; the message is what the reader needs.
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message}\nRun '{self.prog} --help' for the flags.\n")


def _top_parser() -> _Parser:
    parser = _Parser(
        prog="headrace",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Inference pools on Kubernetes: the endpoint picker, Envoy Gateway support, and simulators.",
        epilog="subcommands:\n"
        + "\n".join(f"  {name:<15}{command.summary}" for name, command in SUBCOMMANDS.items())
        + "\n\nRun 'headrace SUBCOMMAND --help' for a subcommand's flags.",
    )
    parser.add_argument("--version", action="version", version=f"headrace {version()}")
    # Not a choice and not argparse subparsers: those would need every module's flags, and so every module.
    parser.add_argument("subcommand", nargs="?", metavar="SUBCOMMAND", help="one of: " + ", ".join(SUBCOMMANDS))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the subcommand's flags")
    return parser


def _load(name: str) -> Any:
    """A subcommand's module, imported. Raises UsageError when it, or something it imports, is not installed."""
    try:
        return importlib.import_module(SUBCOMMANDS[name].module)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"'headrace {name}' needs the Python module '{error.name}', which is not installed. "
            "Install the distribution with its dependencies: pip install --require-hashes -r constraints.txt"
        ) from error


def _run(name: str, arguments: Sequence[str]) -> int:
    command = _load(name)
    parser = _Parser(
        prog=f"headrace {name}",
        description=SUBCOMMANDS[name].summary[:1].upper() + SUBCOMMANDS[name].summary[1:] + ".",
        # A prefix that is unique today ("--model") becomes ambiguous with the next flag; manifests outlive that.
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--log-level", choices=LEVELS, default="info", help="log from this level up, as JSON lines")
    command.add_arguments(parser)
    args = parser.parse_args(arguments)
    configure_logging(args.log_level)
    try:
        return int(command.run(args))
    except (UsageError, ValueError) as error:
        _logger.debug("refused", exc_info=True)
        parser.error(str(error))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `headrace` command with `argv` (default: the process's arguments) and return its exit code."""
    parser = _top_parser()
    try:
        parsed = parser.parse_args(argv)
        if parsed.subcommand is None:
            parser.error("name a subcommand: " + ", ".join(SUBCOMMANDS))
        if parsed.subcommand not in SUBCOMMANDS:
            parser.error(f"unknown subcommand '{parsed.subcommand}'; one of: " + ", ".join(SUBCOMMANDS))
        return _run(parsed.subcommand, parsed.arguments)
    except UsageError as error:
        sys.stderr.write(f"headrace: error: {error}\n")
        return EXIT_USAGE
    except SystemExit as error:  # argparse: --help, --version, and its errors
        return error.code if isinstance(error.code, int) else EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_FAILED
    except Exception as error:  # the last line of defence: a log line, not a bare traceback
        configure_logging("info")
        _logger.error("stopped by an unexpected error: %s", error, exc_info=True)
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
