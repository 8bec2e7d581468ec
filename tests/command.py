"""The `headrace` command, as a user calls it."""

from __future__ import annotations

import asyncio
import sys

from .hang import HANG_SECONDS


async def headrace_pool(*arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of `headrace pool`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headrace.cli.main", "pool", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(HANG_SECONDS):
        out, error = await process.communicate()
    assert b"Traceback" not in error, error.decode()
    return process.returncode or 0, out.decode(), error.decode()
