"""`headrace epp`."""

from __future__ import annotations

import argparse
import asyncio
import logging

import uvloop

from headrace.epp.options import add_arguments, read_options
from headrace.epp.ports import CannotServe
from headrace.epp.process import Process

__all__ = ["add_arguments", "run"]

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM; 1 where something needed is missing. Wrong flags and files raise ValueError with the fix."""
    options = read_options(args)
    if options.verbosity >= 4:
        logging.getLogger().setLevel(logging.DEBUG)

    async def serve() -> None:
        await Process(options).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(serve())
        except (CannotServe, OSError) as error:
            logger.error("cannot serve: %s", error)
            return 1
    return 0
