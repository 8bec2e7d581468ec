"""`headrace pool VERB`: what concerns a whole InferencePool."""

from __future__ import annotations

import argparse
import importlib
from dataclasses import dataclass
from typing import Any, cast


@dataclass(frozen=True)
class Verb:
    """Where a verb lives, a module with `add_arguments` and `run`, and its line in `headrace pool --help`."""

    module: str
    summary: str


VERBS = {
    "replace": Verb("headrace.replace.command", "replace a pool under traffic, gated and rolled back by itself"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verbs, each with its flags."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, help=", ".join(VERBS))
    for name, verb in VERBS.items():
        found = verbs.add_parser(
            name,
            help=verb.summary,
            description=verb.summary[:1].upper() + verb.summary[1:] + ".",
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        _module(verb).add_arguments(found)


def run(args: argparse.Namespace) -> int:
    """Run the verb that was asked for."""
    return cast(int, _module(VERBS[args.verb]).run(args))


def _module(verb: Verb) -> Any:
    return importlib.import_module(verb.module)
