"""The endpoint picker over 1,000 Pods that never rest: no pick goes where nobody has been for a second."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles

import grpc.aio
import pytest

from headrace.extproc import BodyMode
from headrace.xds.envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from ..component.epp.picker import PickerProcess, start_picker
from ..integration.apiserver import ApiServer, running_with_crds
from ..ports import free_port
from ..unit.extproc import messages as m
from .churn import LABELS, Lives, paced, pods_of

PODS = 1_000
RATE = 50.0
CHANGES = int(os.environ.get("CHURN_CHANGES", "3000"))
PICKS_A_SECOND = 20.0
STALE_SECONDS = 1.0
METHOD = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"


@pytest.fixture(scope="module")
def api(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server of the module's own."""
    with running_with_crds(repository, tmp_path_factory.mktemp("apiserver")) as server:
        yield server


@contextlib.asynccontextmanager
async def page_servers(repository: Path) -> AsyncIterator[int]:
    """A real server's page on every address of 127.0.0.0/8; the port."""
    port = free_port()
    page = repository / "tests/unit/datalayer/data/vllm-0.32.0-under-load.txt"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.full.pages", str(port), str(page)), cwd=repository
    )
    try:
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.9.9.9", port)
                    writer.close()
                    break
                await asyncio.sleep(0.1)
        yield port
    finally:
        process.kill()
        await process.wait()


@dataclass(frozen=True)
class Used:
    """What a process has used: seconds of CPU, and its memory in MiB now and at most."""

    at: float
    cpu: float
    resident: float
    peak: float

    @classmethod
    def by(cls, pid: int) -> Used:
        """Read it."""
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        resident, peak = (int(status[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
        return cls(time.monotonic(), cpu, resident, peak)

    def since(self, earlier: Used) -> str:
        """For people."""
        share = (self.cpu - earlier.cpu) / (self.at - earlier.at)
        return f"{share:.2f} cores, {self.resident:.0f} MiB (at most {self.peak:.0f})"


@dataclass
class Requests:
    """ext_proc requests straight to the picker, and where it sent them."""

    channel: grpc.aio.Channel
    lives: Lives
    latencies: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    stale: list[tuple[str, float]] = field(default_factory=list)
    picked: set[str] = field(default_factory=set)

    async def one(self) -> None:
        """One request: its headers and body, a pick, the end."""
        config = m.config(BodyMode.FULL_DUPLEX_STREAMED)
        headers = {**m.REQUEST, "x-request-id": f"r-{len(self.latencies)}-{time.monotonic_ns()}"}
        body = json.dumps({"model": "m", "prompt": f"{time.monotonic_ns()} tell me of the sea"}).encode()
        asked = time.monotonic()
        call = self.channel.stream_stream(METHOD)(timeout=60)
        await call.write(m.request_headers(headers, protocol_config=config).SerializeToString())
        await call.write(m.body("request_body", body, True).SerializeToString())
        try:
            answer = pb.ProcessingResponse.FromString(await call.read())
            answered = time.monotonic()
            self.latencies.append(answered - asked)
            await call.done_writing()
            while await call.read() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError as error:
            self.failed.append(f"{error.code().name} after {time.monotonic() - asked:.1f} s")
            return
        if answer.WhichOneof("response") == "immediate_response":
            self.refused.append(answer.immediate_response.status.code)
            return
        destination = m.picked_metadata(answer)
        address = destination.rpartition(":")[0]
        self.picked.add(address)
        gone = self.lives.stale_seconds(address, asked, answered)
        if gone > STALE_SECONDS:
            self.stale.append((destination, gone))


async def known(picker: PickerProcess, addresses: set[str], port: int, seconds: float) -> None:
    """Until the picker knows exactly these. Raises AssertionError."""
    wanted = {f"{address}:{port}" for address in addresses}
    seen: set[str] = set()
    try:
        async with asyncio.timeout(seconds):
            while (seen := set(await picker.endpoints())) != wanted:  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise AssertionError(f"missing: {sorted(wanted - seen)[:9]}, too many: {sorted(seen - wanted)[:9]}") from None


async def test_no_stale_pick_while_a_thousand_pods_come_and_go(
    api: ApiServer, repository: Path, tmp_path: Path
) -> None:
    selector = ",".join(f"{name}={value}" for name, value in LABELS.items())
    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(page_servers(repository))
        pods = await stack.enter_async_context(pods_of(api.kubeconfig, "default"))
        await paced(200, PODS, pods.come)
        source = [
            f"--kubeconfig={api.kubeconfig}",
            "--pool-namespace=default",
            f"--endpoint-selector={selector}",
            f"--endpoint-target-ports={port}",
        ]
        picker = await stack.enter_async_context(start_picker([], tmp_path, source=source))
        pid = picker.process.pid
        await known(picker, {address for _, address in pods.present}, port, 60)
        await asyncio.sleep(10)  # every server's first page
        begun = Used.by(pid)
        await asyncio.sleep(15)
        print(f"\n{PODS} Pods at rest: {Used.by(pid).since(begun)}")

        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{picker.grpc_port}"))
        requests = Requests(channel, pods.lives)
        begun = Used.by(pid)
        await paced(PICKS_A_SECOND, int(15 * PICKS_A_SECOND), requests.one)
        print(f"{PICKS_A_SECOND:.0f} picks a second: {Used.by(pid).since(begun)}, {_times(requests.latencies)}")

        requests.latencies.clear()
        requests.picked.clear()
        begun, writes = Used.by(pid), pods.writes
        over = asyncio.Event()

        async def ask() -> None:
            while not over.is_set():
                await paced(PICKS_A_SECOND, int(PICKS_A_SECOND), requests.one)

        asking = asyncio.create_task(ask())
        seconds = await paced(RATE, CHANGES, pods.go, pods.come)
        used = Used.by(pid).since(begun)
        over.set()
        await asking
        print(f"load of the machine: {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores")
        print(
            f"{CHANGES} Pods came and as many went in {seconds:.0f} s ({(pods.writes - writes) / seconds:.0f} writes a "
            f"second), {len(requests.latencies)} picks of {len(requests.picked)} addresses: {used}, "
            f"{_times(requests.latencies)}"
        )
        assert requests.stale == []
        assert requests.refused == []
        assert requests.failed == []
        assert len(requests.picked) > min(PODS, len(requests.latencies)) / 4
        await known(picker, {address for _, address in pods.present}, port, 10)
        errors = [line for line in picker.log.read_text().splitlines() if '"level":"ERROR"' in line.replace(" ", "")]
        assert errors == []


def _times(seconds: list[float]) -> str:
    cuts = quantiles(seconds, n=100)
    return f"picks in {1000 * cuts[49]:.1f} ms, 99 of 100 in {1000 * cuts[98]:.1f} ms"
