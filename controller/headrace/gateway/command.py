"""`headrace gateway`."""

from __future__ import annotations

import argparse
import asyncio
import logging

import uvloop

from headrace.gateway.options import add_arguments, read_options
from headrace.gateway.process import CannotServe, Process

__all__ = ["add_arguments", "run"]

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM. Wrong flags and files raise ValueError with what to do."""
    options = read_options(args)

    async def serve() -> None:
        await Process(options).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(serve())
        except (CannotServe, OSError) as error:
            logger.error("cannot serve: %s", error)
            return 1
    return 0
