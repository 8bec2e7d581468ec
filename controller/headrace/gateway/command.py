"""`headrace gateway`."""

from __future__ import annotations

import argparse

from headrace.gateway.options import add_arguments, read_options
from headrace.gateway.process import Process
from headrace.serving import lifecycle
from headrace.serving.memory import share_heap

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM; 1 where something needed is missing. Wrong flags and files raise ValueError with the fix."""
    share_heap()
    options = read_options(args)

    async def serve() -> None:
        await Process(options).run()

    return lifecycle.run(serve())
