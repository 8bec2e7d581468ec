"""The endpoint picker as a process of its own, started by the command that a Pod starts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from ...hang import HANG_SECONDS

# The transport of pickers that are not given one. Fixture `transport` sets it; to run everything over one of them:
# HEADRACE_TEST_TRANSPORT=grpcio.
transport = os.environ.get("HEADRACE_TEST_TRANSPORT", "http2")


@dataclass
class PickerProcess:
    """A running picker. Its ports are those it logged when it began to serve."""

    process: asyncio.subprocess.Process
    grpc_port: int
    health_port: int
    metrics_port: int
    log: Path

    async def get(self, path: str) -> tuple[int, str]:
        """Status and text of a page of its HTTP port."""
        url = f"http://127.0.0.1:{self.metrics_port}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status, await answer.text()

    async def endpoints(self) -> dict[str, dict[str, Any]]:
        """/debug/endpoints, by endpoint."""
        listed = json.loads((await self.get("/debug/endpoints"))[1])["endpoints"]
        return {entry["endpoint"]: entry for entry in listed}

    async def decisions(self, query: str = "") -> list[dict[str, Any]]:
        """/debug/decisions."""
        return list(json.loads((await self.get(f"/debug/decisions{query}"))[1])["decisions"])

    async def metric(self, sample: str) -> float:
        """A sample of /metrics, written as it stands there; 0 if it is not there yet."""
        for line in (await self.get("/metrics"))[1].splitlines():
            name, _, value = line.rpartition(" ")
            if name == sample:
                return float(value)
        return 0.0

    async def load(self) -> dict[str, int]:
        """What each endpoint has in flight, of all replicas that the picker knows."""
        return {key: int(entry["in_flight"]) for key, entry in (await self.endpoints()).items()}

    async def peers(self) -> dict[str, Any]:
        """/debug/peers."""
        return dict(json.loads((await self.get("/debug/peers"))[1]))

    async def in_flight(self) -> int:
        """What the picker thinks is on its way."""
        return int(await self.metric("headrace_epp_ledger_requests"))

    async def wait_in_flight(self, wanted: int) -> None:
        """Until that many requests are in flight. Raises AssertionError with the last count."""
        seen = -1
        try:
            async with asyncio.timeout(HANG_SECONDS):
                while (seen := await self.in_flight()) != wanted:  # noqa: ASYNC110 (another process)
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{seen} requests in flight, not {wanted}") from None

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send it a signal."""
        self.process.send_signal(number)


@contextlib.asynccontextmanager
async def start_picker(
    endpoints: Sequence[str],
    directory: Path,
    *flags: str,
    name: str = "epp",
    source: Sequence[str] | None = None,
    prefix: Sequence[str] = (),
) -> AsyncIterator[PickerProcess]:
    """Run `headrace epp` until the block ends. `source` replaces `--endpoints`; `prefix` is a command that runs it."""
    log = directory / f"{name}.log"
    with log.open("wb") as stream:
        process = await asyncio.create_subprocess_exec(
            *(*prefix, sys.executable, "-m", "headrace.cli.main", "epp"),
            *(source if source is not None else (f"--endpoints={','.join(endpoints)}",)),
            *("--bind-address=127.0.0.1", "--grpc-port=0", "--grpc-health-port=0", "--metrics-port=0"),
            *("--drain-delay=0s", "--secure-serving=false"),
            # A machine that does a lot else is no reason to know nothing of a server.
            "--metrics-staleness-threshold=10m",
            f"--extproc-transport={transport}",
            *flags,
            stderr=asyncio.subprocess.PIPE,
            stdout=stream,
        )
        assert process.stderr is not None
        copying: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(HANG_SECONDS):
                ports = None
                while ports is None:
                    line = await process.stderr.readline()
                    if not line:
                        raise RuntimeError(f"the picker ended: {_text(log)}")
                    stream.write(line)
                    stream.flush()
                    ports = _ports(line)
            copying = asyncio.create_task(_copy(process.stderr, stream))
            yield PickerProcess(process, ports["grpc"], ports["health"], ports["metrics"], log)
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            await process.wait()
            if copying is not None:
                await copying


def _ports(line: bytes) -> dict[str, int] | None:
    try:
        return dict(json.loads(line).get("ports", {})) or None
    except ValueError:
        return None


async def _copy(source: asyncio.StreamReader, target: Any) -> None:
    while line := await source.readline():
        target.write(line)
        target.flush()


def _text(path: Path) -> str:
    return path.read_text(errors="replace")
