"""What a hundred pickers cost an API server: its CPU and requests, by how long a watch lasts.

    python -m benchmarks.watch_load [--pickers 100] [--seconds 120]

A real kube-apiserver with its etcd (`make binaries`); the pickers' reflectors run in this process, four for each as
`headrace epp` has them: its pool, its Pods, InferenceObjectives, InferenceModelRewrites. Nothing changes meanwhile but
one Pod each second, so that the cost is that of the watches. Printed for each length of watches: CPU of the API server
in percent of a core, requests a second by verb, its memory, and how late changes came."""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.integration.apiserver import ApiServer, running_with_crds

from headrace.core import EXTENSION_GROUP, GA_GROUP
from headrace.core.pool import VERSION_OF_GROUP
from headrace.kube.client import MERGE_PATCH, connect, request
from headrace.kube.reflector import WATCH_SECONDS, Reflector, Resource
from headrace.serving.tasks import Supervisor

REPOSITORY = Path(__file__).parents[1]
NAMESPACE = "default"
PODS_A_POOL = 5
# What it was before, and what it is.
LENGTHS = ((45, 60), WATCH_SECONDS)
PODS = Resource("", "v1", "pods", True)
POOLS = Resource(GA_GROUP, VERSION_OF_GROUP[GA_GROUP], "inferencepools", True)
POLICIES = tuple(
    Resource(EXTENSION_GROUP, VERSION_OF_GROUP[EXTENSION_GROUP], plural, True)
    for plural in ("inferenceobjectives", "inferencemodelrewrites")
)
STAMP = "headrace-benchmark/at"


async def create(client: Any, resource: Resource, body: dict[str, Any]) -> None:
    """POST an object."""
    body = {"apiVersion": f"{resource.group}/{resource.version}".strip("/"), **body}
    await request(client, "POST", resource.path(NAMESPACE), body=body, content_type="application/json")


async def populate(client: Any, pickers: int) -> None:
    """A pool and its Pods for each picker."""
    slots = asyncio.Semaphore(20)

    async def pool(number: int) -> None:
        labels = {"app": f"pool-{number}"}
        reference = {"name": f"pool-{number}-epp", "port": {"number": 9002}}
        spec = {"selector": {"matchLabels": labels}, "targetPorts": [{"number": 8000}], "endpointPickerRef": reference}
        async with slots:
            await create(client, POOLS, {"kind": "InferencePool", "metadata": {"name": f"pool-{number}"}, "spec": spec})
            for pod in range(PODS_A_POOL):
                metadata = {"name": f"pool-{number}-{pod}", "labels": labels}
                containers = [{"name": "server", "image": "example.test/server"}]
                await create(client, PODS, {"kind": "Pod", "metadata": metadata, "spec": {"containers": containers}})

    await asyncio.gather(*map(pool, range(pickers)))


def counted(server: ApiServer) -> tuple[float, float, Counter[str]]:
    """CPU seconds, bytes of memory, and requests by verb, as the API server's metrics say."""
    page = server.kubectl("get", "--raw", "/metrics").stdout
    requests: Counter[str] = Counter()
    for verb, count in re.findall(r'^apiserver_request_total\{.*verb="(\w+)".*\} (\S+)$', page, re.MULTILINE):
        requests[verb] += int(float(count))

    def value(name: str) -> float:
        found = re.search(rf"^{name} (\S+)$", page, re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    return value("process_cpu_seconds_total"), value("process_resident_memory_bytes"), requests


def reflectors(client: Any, number: int, length: tuple[int, int], delays: list[float]) -> list[Reflector]:
    """What one picker follows. `delays` gets the seconds that each stamp of a Pod took to come."""
    seen: set[str] = set()

    def changed() -> None:
        for pod in pods.objects.values():
            stamp = (pod["metadata"].get("annotations") or {}).get(STAMP)
            if stamp is not None and stamp not in seen:
                seen.add(stamp)
                delays.append(time.time() - float(stamp))

    pods = Reflector(
        client,
        PODS,
        namespace=NAMESPACE,
        label_selector=f"app=pool-{number}",
        on_change=changed,
        watch_seconds=length,
    )
    name = f"metadata.name=pool-{number}"
    pool = Reflector(client, POOLS, namespace=NAMESPACE, field_selector=name, watch_seconds=length)
    policies = [Reflector(client, kind, namespace=NAMESPACE, watch_seconds=length) for kind in POLICIES]
    return [pods, pool, *policies]


async def measure(server: ApiServer, pickers: int, seconds: float, length: tuple[int, int]) -> None:
    """Run the pickers' watches for so long, and print what they cost."""
    # As separate processes have them: a client, and so connections, for each picker.
    clients = [await connect(str(server.kubeconfig)) for _ in range(pickers)]
    delays: list[float] = []
    try:
        async with Supervisor() as tasks:
            for number, client in enumerate(clients):
                following = reflectors(client, number, length, delays)
                for found in following:
                    tasks.start(found.run(), f"{found.resource} of picker {number}")
                await asyncio.gather(*(found.wait_settled() for found in following))
            # The watches of the start would all end in the same seconds: they are spread before it counts.
            await asyncio.sleep(length[1])
            delays.clear()
            cpu, _, requests = await asyncio.to_thread(counted, server)
            started = time.monotonic()
            while time.monotonic() - started < seconds:
                number = int(time.monotonic() - started) % pickers
                stamp = {"metadata": {"annotations": {STAMP: repr(time.time())}}}
                path = PODS.path(NAMESPACE, f"pool-{number}-0")
                await request(clients[0], "PATCH", path, body=stamp, content_type=MERGE_PATCH)
                await asyncio.sleep(1)
            cpu_after, memory, requests_after = await asyncio.to_thread(counted, server)
            passed = time.monotonic() - started
    finally:
        for client in clients:
            await client.close()
    rates = ", ".join(
        f"{verb} {(count - requests[verb]) / passed:.1f}" for verb, count in sorted(requests_after.items())
    )
    share = (cpu_after - cpu) / passed
    print(f"watches of {length[0]} to {length[1]} s: {share * 100:5.1f} % of a core, {memory / 1e6:.0f} MB")
    print(f"    requests/s: {rates}")
    late = [delay * 1000 for delay in delays]
    print(f"    {len(late)} changes came after {statistics.median(late):.0f} ms, the last after {max(late):.0f} ms")


async def run(server: ApiServer, pickers: int, seconds: float) -> None:
    """Both lengths, one after the other."""
    client = await connect(str(server.kubeconfig))
    try:
        await populate(client, pickers)
    finally:
        await client.close()
    for length in LENGTHS:
        await measure(server, pickers, seconds, length)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pickers", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=120.0, help="for each length of watches")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, running_with_crds(REPOSITORY, Path(directory)) as server:
        print(f"{args.pickers} pickers, {4 * args.pickers} watches, {PODS_A_POOL * args.pickers} Pods")
        asyncio.run(run(server, args.pickers, args.seconds))


if __name__ == "__main__":
    main()
