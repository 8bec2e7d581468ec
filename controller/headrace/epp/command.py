"""`headrace epp`."""

from __future__ import annotations

import argparse
import logging

from headrace.epp.options import add_arguments, read_options
from headrace.epp.process import Process
from headrace.serving import lifecycle
from headrace.serving.memory import share_heap

logger = logging.getLogger(__name__)

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM; 1 where something needed is missing. Wrong flags and files raise ValueError with the fix."""
    share_heap()
    options = read_options(args)
    if options.verbosity >= 4:
        logging.getLogger().setLevel(logging.DEBUG)
    memory, bodies = options.limits, options.conversation
    held = {"body_bytes": bodies.max_body_bytes, "held_body_bytes": bodies.bodies.most}
    logger.info("may hold", extra={"memory_bytes": memory.memory, "by": memory.source, **held})

    async def serve() -> None:
        await Process(options).run()

    return lifecycle.run(serve())
