"""CPU per pick of a whole picker process, by transport: `python -m benchmarks.transport`.

Pickers with the built-in profile and ten endpoints (`--endpoints`), one for each transport, get the same requests in
turn from a compiled client over one connection (benchmarks/load, needs Go). CPU is the server process's, all threads,
so that a busy machine matters little; the rounds are interleaved and the median is shown, with the lowest and highest.
`--against=HOST:PORT=PID` measures any other picker beside them. Every answer is checked."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from aiohttp import web

from headrace.xds.envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from .decision import messages

SIZES = {"1 KiB": 1 << 10, "32 KiB": 32 << 10, "256 KiB": 256 << 10}
ENDPOINTS = 10
LOAD = Path(__file__).parent / "load" / "main.go"
_PAGE = "vllm:num_requests_running 1\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0.1\n"
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Server:
    """A picker to measure."""

    name: str
    address: str
    pid: int

    def cpu_seconds(self) -> float:
        """What its process has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS


def response(chunks: int) -> list[bytes]:
    """A streamed response of so many pieces, as it passes by; none for 0."""
    if not chunks:
        return []
    headers = pb.ProcessingRequest()
    for key, value in {":status": "200", "content-type": "text/event-stream"}.items():
        headers.response_headers.headers.headers.add(key=key, raw_value=value.encode())
    sent = [headers]
    for number in range(chunks):
        piece = pb.ProcessingRequest()
        piece.response_body.body = b'data: {"choices":[{"index":0,"text":"token %d "}],"model":"m"}\n\n' % number
        piece.response_body.end_of_stream = number == chunks - 1
        sent.append(piece)
    return [message.SerializeToString() for message in sent]


def write_requests(path: Path, size: int, count: int, chunks: int, rng: Random) -> None:
    """Requests as a gateway sends them that has the response pass by too, for the load generator."""
    with path.open("wb") as file:
        for _ in range(count):
            first, *rest = messages(size, rng)
            headers = pb.ProcessingRequest.FromString(first)
            # The stream's end is the request's end: nothing is left in the account.
            headers.protocol_config.response_body_mode = 4  # type: ignore[assignment]
            sent = [headers.SerializeToString(), *rest, *response(chunks)]
            file.write(len(sent).to_bytes(4))
            for message in sent:
                file.write(len(message).to_bytes(4) + message)


def run(binary: Path, server: Server, requests: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One run: what the load generator saw, and `cpu`, the server's microseconds a request."""
    before = server.cpu_seconds()
    flags = [f"-address={server.address}", f"-file={requests}", f"-streams={args.streams}", f"-seconds={args.seconds}"]
    flags.append(f"-tls={str(args.tls).lower()}")
    done = subprocess.run([binary, *flags], check=True, capture_output=True, text=True)
    seen: dict[str, Any] = json.loads(done.stdout)
    if seen["bad"] or not seen["answered"]:
        raise RuntimeError(f"{server.name}: {seen}")
    return {**seen, "cpu": (server.cpu_seconds() - before) / seen["answered"] * 1e6}


@contextlib.contextmanager
def picker(transport: str, endpoints: str, flags: Sequence[str]) -> Iterator[Server]:
    """A picker of this code, over a transport."""
    command = [sys.executable, "-m", "headrace.cli.main", "epp", f"--endpoints={endpoints}", "--bind-address=127.0.0.1"]
    ports = ["--grpc-port=0", "--grpc-health-port=0", "--metrics-port=0", "--drain-delay=0s"]
    process = subprocess.Popen(
        [*command, *ports, f"--extproc-transport={transport}", *flags], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "ports" in (told := json.loads(line)):
                yield Server(transport, f"127.0.0.1:{told['ports']['grpc']}", process.pid)
                return
        raise RuntimeError("the picker did not start")
    finally:
        process.kill()
        process.wait()


async def serve_pages(ready: asyncio.Future[str]) -> None:
    """Metrics pages of the endpoints, until cancelled."""

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=_PAGE)

    app = web.Application()
    app.router.add_get("/metrics", page)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    addresses = []
    for number in range(ENDPOINTS):
        await web.TCPSite(runner, f"127.0.1.{number + 1}", 0).start()
        addresses.append(f"127.0.1.{number + 1}:{runner.addresses[-1][1]}")
    ready.set_result(",".join(addresses))
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def measure(servers: Sequence[Server], folder: Path, args: argparse.Namespace) -> None:
    """Run the rounds and print the table."""
    binary = folder / "load"
    subprocess.run(["go", "build", "-o", binary, LOAD], check=True)
    rng = Random(7)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for size in args.sizes:
        requests = folder / "requests"
        write_requests(requests, SIZES[size], max(20, min(4000, (32 << 20) // SIZES[size])), args.chunks, rng)
        for number in range(args.rounds + 1):
            for server in servers:
                seen = run(binary, server, requests, args)
                if number:  # the first is for warming up
                    found.setdefault((size, server.name), []).append(seen)
    load = os.getloadavg()[0]
    print(
        f"{args.streams} streams, {args.chunks} chunks, {ENDPOINTS} endpoints, {args.rounds} rounds; load {load:.1f}\n"
    )
    print("| body | server | CPU a pick, us (lowest to highest) | of the last | p50 ms | p99 ms | load's own CPU, us |")
    print("|---|---|---|---|---|---|---|")
    for size in args.sizes:
        base = statistics.median(one["cpu"] for one in found[size, servers[-1].name])
        for server in servers:
            rows = found[size, server.name]
            cpus = sorted(one["cpu"] for one in rows)
            p50, p99 = (1000 * statistics.median(one[key] for one in rows) for key in ("p50_seconds", "p99_seconds"))
            own = statistics.median(one["own_cpu_seconds"] / one["answered"] * 1e6 for one in rows)
            middle = statistics.median(cpus)
            print(
                f"| {size} | {server.name} | {middle:.0f} ({cpus[0]:.0f} to {cpus[-1]:.0f}) | {middle / base:.2f} "
                f"| {p50:.1f} | {p99:.1f} | {own:.0f} |"
            )


async def main() -> None:
    """Start the pickers, measure, and stop them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--chunks", type=int, default=0, help="pieces of a response that passes by")
    parser.add_argument("--sizes", type=lambda text: text.split(","), default=list(SIZES))
    parser.add_argument("--transports", type=lambda text: text.split(","), default=["http2", "grpcio"])
    parser.add_argument("--against", action="append", default=[], help="another server: HOST:PORT=PID")
    parser.add_argument("--flag", action="append", default=[], help="a flag for the pickers")
    parser.add_argument("--tls", action="store_true", help="as the roles serve")
    args = parser.parse_args()
    args.flag.append(f"--secure-serving={str(args.tls).lower()}")
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    pages = asyncio.create_task(serve_pages(ready))
    endpoints = await ready
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = [stack.enter_context(picker(name, endpoints, args.flag)) for name in args.transports]
        for given in args.against:
            address, _, pid = given.rpartition("=")
            servers.append(Server(address, address, int(pid)))
        await asyncio.to_thread(measure, servers, folder, args)
    pages.cancel()


if __name__ == "__main__":
    asyncio.run(main())
