"""What clients see of a server that fails, by what the gateway sends once more: `python -m benchmarks.retries`.

Real Envoy, picker and simulated servers. For each fault and policy: clients ask without a pause, one server of the pool
fails, and answers that did not end well are counted until the picker knows of it; and how often Envoy sent a request,
for each that a client sent, where every server fails. Rounds of the policies are interleaved. Counts, not times."""

from __future__ import annotations

import argparse
import asyncio
import signal
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from google.protobuf.json_format import MessageToDict
from tests.component.epp.worst_day import World, world

from headrace.gateway.retries import retry_policy

# By name: the statuses that are sent once more, and how often at most.
POLICIES: Mapping[str, tuple[tuple[int, ...], int]] = {
    "503, twice": ((503,), 2),
    "500 and 503, once": ((500, 503), 1),
}
FAULTS = ("500", "503", "drain", "kill", "all 500")
# Answers after the fault, of which those that failed are counted.
ANSWERS = 400


def policy(name: str) -> dict[str, Any]:
    """The gateway's retry policy, with the statuses and the number of this one."""
    made = retry_policy()
    statuses, made.num_retries.value = POLICIES[name]
    made.retriable_status_codes[:] = statuses
    return dict(MessageToDict(made, preserving_proto_field_name=True))


async def begin(w: World, fault: str) -> None:
    """Break the sick server, or all of them."""
    if fault == "kill":
        w.sick.send(signal.SIGKILL)
        return
    for server in w.servers if fault.startswith("all ") else [w.sick]:
        await server.post(w.session, "/faults", {fault.removeprefix("all "): True})


async def measure(fault: str, name: str, servers: int, clients: int) -> tuple[int, float]:
    """The answers of ANSWERS that did not end well, and requests that Envoy sent for each."""
    with tempfile.TemporaryDirectory() as directory:
        async with world(Path(directory), servers=servers, retry=policy(name)) as w:
            w.ask(clients)
            await w.serves(100)
            await begin(w, fault)
            w.failed.clear()
            before = await w.envoy.counters("cluster.pool.upstream_rq_")
            answered = w.answered.total()
            await w.serves(ANSWERS)
            after = await w.envoy.counters("cluster.pool.upstream_rq_")
            asked = w.answered.total() - answered
            sent = after["cluster.pool.upstream_rq_total"] - before["cluster.pool.upstream_rq_total"]
            return len(w.failed), sent / asked


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--servers", type=int, default=3)
    parser.add_argument("--clients", type=int, default=16)
    arguments = parser.parse_args()
    found: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    for _ in range(arguments.rounds):
        for fault in FAULTS:
            for name in POLICIES:
                found[fault, name].append(await measure(fault, name, arguments.servers, arguments.clients))
    for (fault, name), rounds in found.items():
        failed = [count for count, _ in rounds]
        sent = median(each for _, each in rounds)
        print(f"{fault:8} {name:18} failed {failed} of {ANSWERS}, sent {sent:.2f} per request")


if __name__ == "__main__":
    asyncio.run(main())
