"""`python -m tests.hostile.ordinary PORT`: ordinary requests at a steady rate, until standard input ends.

A process of its own: one that makes hostile things would be late itself. Prints what became of the requests as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import grpc.aio

from tests.component.ext_proc import channel, converse

RATE = 20


@dataclass
class Ordinary:
    """How long each request took, and why those that were not picked for were not."""

    seconds: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """The time that this share of them took at most."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def ask(port: int, done: asyncio.Event) -> Ordinary:
    """RATE requests a second until `done`."""
    found = Ordinary()
    body = json.dumps({"model": "m", "prompt": "hello " * 100}).encode()
    async with channel(port) as connection, asyncio.TaskGroup() as tasks:

        async def one() -> None:
            started = time.perf_counter()
            try:
                await converse(connection, "/v1/completions", body, 0, answered=True)
            except (AssertionError, grpc.aio.AioRpcError) as error:
                found.lost.append(str(error)[:300])
            found.seconds.append(time.perf_counter() - started)

        began, number = time.monotonic(), 0
        while not done.is_set():
            number += 1
            tasks.create_task(one())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, began + number / RATE - time.monotonic())):
                    await done.wait()
    return found


@contextlib.asynccontextmanager
async def asking(port: int) -> AsyncIterator[Ordinary]:
    """Such a process while the block lasts; at its end the outcome is filled in."""
    found = Ordinary()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.hostile.ordinary", str(port)),
        cwd=Path(__file__).parents[2],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield found
        written, _ = await process.communicate(b"")
        told = json.loads(written)
        found.seconds, found.lost = told["seconds"], told["lost"]
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def main() -> None:
    """Ask until standard input ends."""
    done = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, done.set)
    found = await ask(int(sys.argv[1]), done)
    json.dump(asdict(found), sys.stdout)


if __name__ == "__main__":
    asyncio.run(main())
