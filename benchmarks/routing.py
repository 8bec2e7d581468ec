"""Time to first token under several picker configurations: simulated servers, a real picker, a real Envoy.

`python -m benchmarks.routing --config none --config benchmarks/affinity.yaml --busy 0.4` compares the picker without a
configuration file with one that has it. Each run has fresh processes: the simulated
servers, the picker, Envoy. Configurations take turns, so that a busy machine spoils all alike, and every one gets the
same requests at the same times. The servers and the requests are `--speedup` times faster than real ones; what is
printed is in the servers' own seconds. A machine that has no time for the processes adds its own waits: look at the
load beside each row, and take a lower `--speedup`.

Workloads: `chat`, conversations whose prompts grow turn by turn; `adapters`, the same with a LoRA adapter for each
conversation; `shared`, a few prefixes of very different popularity, and nothing else in common. `--trace` takes
requests of a file in the format of Mooncake's traces instead of `chat` and for `adapters`; a seed is then where in it
the run begins.

`--busy` is the share of the servers' time that the work takes if each part of a prompt is computed once and answers
are written eight at a time; caches are never that good."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from tests.component.envoy import REPOSITORY, start_envoy
from tests.component.epp.configs import LISTENER, picking_mode, pool_config
from tests.component.epp.picker import start_picker
from tests.component.simulator.process import MODEL, simulator

from headrace.replay.policies import prompt_of
from headrace.replay.traces import (
    ADAPTERS,
    Arrival,
    at_load,
    conversations,
    read_trace,
    shared_prefixes,
    stretch,
    with_adapters,
)
from headrace.simulator.timing import StepCost

SLOTS = 4
AFFINITY = REPOSITORY / "benchmarks/affinity.yaml"


@dataclass(frozen=True)
class Result:
    """What a run came to; seconds of the servers' own time."""

    first: Sequence[float]
    whole: Sequence[float]
    cached: float
    failed: int
    cores: float


async def ask_one(port: int, ask: Arrival) -> tuple[float, float]:
    """Seconds to the first token and to the end of the stream. Raises ValueError for anything but a whole answer."""
    asked = {
        "model": ask.adapter or MODEL,
        "prompt": prompt_of(ask).decode(),
        "max_tokens": ask.output_tokens,
        "ignore_eos": True,
        "stream": True,
    }
    body = json.dumps(asked).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: pool\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n"
    )
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    try:
        writer.write(f"{head}content-type: application/json\r\n\r\n".encode() + body)
        status = await reader.readline()
        if status.split()[1:2] != [b"200"]:
            raise ValueError(f"{status!r}")
        await reader.readuntil(b"data: ")
        first, tail = time.monotonic() - began, b""
        while piece := await reader.read(1 << 16):
            tail = (tail + piece)[-1024:]
        # A server that ends aborts what it is answering, and ends the stream as if it were whole.
        if b"[DONE]" not in tail or b'"abort"' in tail:
            raise ValueError(f"the stream ended with {tail!r}")
        return first, time.monotonic() - began
    finally:
        writer.close()


async def run(asks: Sequence[Arrival], config: str, options: argparse.Namespace) -> Result:
    """One run: everything is started, asked and stopped."""
    cpu_before, started = cpu_seconds(), time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        flags = [f"--speedup={options.speedup}", f"--max-loras={SLOTS}", "--max-model-len=262144"]
        if any(ask.adapter for ask in asks):
            flags += ["--lora-adapter", *ADAPTERS]
        # Pages are read as often in the servers' own time as they are without --speedup. A pick that a busy machine
        # delays is late, and fails nothing.
        paced = f"--refresh-metrics-interval={round(200 / options.speedup)}ms", "--pick-deadline=5m"
        servers = [simulator(*flags, f"--seed={number}") for number in range(options.servers)]
        urls = await asyncio.gather(*(asyncio.to_thread(stack.enter_context, server) for server in servers))
        keys = [url.removeprefix("http://") for _, url in urls]
        picker = await stack.enter_async_context(start_picker(keys, directory, *picker_flags(config), *paced))
        pool = pool_config(epp_port=picker.grpc_port, endpoints=keys, mode=picking_mode(), observe=True)
        envoy = await stack.enter_async_context(start_envoy(pool, directory))
        port = await envoy.listener_port(LISTENER)
        began = time.monotonic() + 0.5

        async def later(ask: Arrival) -> tuple[float, float]:
            await asyncio.sleep(began + ask.at / options.speedup - time.monotonic())
            return await ask_one(port, ask)

        answers = await asyncio.gather(*map(later, asks), return_exceptions=True)
        good = [answer for answer in answers if not isinstance(answer, BaseException)]
        for problem in [answer for answer in answers if isinstance(answer, BaseException)][:3]:
            print(f"  failed: {problem!r}", flush=True)
        first, whole = ([answer[at] * options.speedup for answer in good] for at in (0, 1))
        cached = await cached_share(keys)
    cores = (cpu_seconds() - cpu_before) / (time.monotonic() - started)
    return Result(first, whole, cached, len(answers) - len(good), cores)


def cpu_seconds() -> float:
    """CPU time of this process and of those that it started and that have ended."""
    both = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(one.ru_utime + one.ru_stime for one in both)


def picker_flags(config: str) -> list[str]:
    """The picker's flags for `none` or a file."""
    return [] if config == "none" else [f"--config-file={config}"]


async def cached_share(keys: Sequence[str]) -> float:
    """The share of prompt tokens that the servers' caches had."""
    totals = dict.fromkeys(("hits", "queries"), 0.0)
    async with aiohttp.ClientSession() as session:
        for key in keys:
            async with session.get(f"http://{key}/metrics") as answer:
                for line in (await answer.text()).splitlines():
                    for name in totals:
                        if line.startswith(f"vllm:prefix_cache_{name}_total"):
                            totals[name] += float(line.rpartition(" ")[2])
    return totals["hits"] / max(1.0, totals["queries"])


def line(result: Result) -> str:
    """A row's figures."""
    first = statistics.quantiles(result.first, n=100)
    return (
        f"{statistics.mean(result.first):8.3f} {first[49]:8.3f} {first[89]:8.3f} {first[98]:8.3f} "
        f"{statistics.mean(result.whole):8.3f} {result.cached:8.1%} {result.failed:8} {result.cores:8.2f}"
    )


def requests(options: argparse.Namespace, seed: int) -> list[Arrival]:
    """The requests of one seed."""
    if options.workload == "shared":
        return shared_prefixes(options.requests, seed)
    if options.trace:
        asks = stretch(read_trace(options.trace), options.requests, seed)
    else:
        asks = conversations(options.requests, seed)
    return with_adapters(asks, seed) if options.workload == "adapters" else asks


async def compare(options: argparse.Namespace) -> int:
    """All runs, and at the end the mean of each figure's ratios to the first configuration.

    Returns how many requests failed. Ends the process where a run has no answers."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        # Nothing that was started outlives it.
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    print(f"{options.workload} {options.trace or ''}, {options.requests} requests, {options.servers} simulated servers")
    print(f"busy {options.busy}, speedup {options.speedup:g}; machine: {os.cpu_count()} cores")
    names = "TTFT mean", "p50", "p90", "p99", "whole", "cached", "failed", "cores"
    print(f"{'seed':4} {'load':>5} {'config':20} " + " ".join(f"{name:>8}" for name in names), flush=True)
    ratios: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    failed = 0
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        asks = at_load(requests(options, seed), options.servers, options.busy, StepCost())
        order = options.config[seed % 2 :] + options.config[: seed % 2]
        found = {}
        for config in order:
            result = found[config] = await run(asks, config, options)
            failed += result.failed
            if len(result.first) < 2:
                sys.exit(f"{config}: {len(result.first)} of {len(asks)} requests were answered: nothing to compare")
            print(f"{seed:4} {os.getloadavg()[0]:5.1f} {Path(config).stem:20} {line(result)}", flush=True)
        base = found[options.config[0]]
        for config in options.config[1:]:
            ratios[config].append(compared(found[config], base))
    for config, found_ratios in ratios.items():
        mean, p90, whole = (statistics.mean(values) for values in zip(*found_ratios, strict=True))
        print(f"{Path(config).stem} to {Path(options.config[0]).stem}: TTFT mean {mean:.2f}, p90 {p90:.2f}; ", end="")
        print(f"whole answer {whole:.2f} (means of {len(found_ratios)} seeds' ratios)")
    return failed


def compared(result: Result, base: Result) -> tuple[float, float, float]:
    """Ratios of TTFT's mean, its 90th percentile, and the whole answer's mean."""
    tens = [statistics.quantiles(one.first, n=10)[8] for one in (result, base)]
    first, whole = (
        [statistics.mean(times) for times in pair] for pair in ((result.first, base.first), (result.whole, base.whole))
    )
    return first[0] / first[1], tens[0] / tens[1], whole[0] / whole[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", metavar="none|FILE", help="default: none, then affinity.yaml")
    parser.add_argument("--workload", choices=("chat", "adapters", "shared"), default="chat")
    parser.add_argument("--trace", type=Path, help="a file of Mooncake's trace format")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--servers", type=int, default=8)
    parser.add_argument("--busy", type=float, default=0.4)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--speedup", type=float, default=1.0)
    options = parser.parse_args()
    options.config = options.config or ["none", str(AFFINITY)]
    try:
        failed = asyncio.run(compare(options))
    except asyncio.CancelledError:
        sys.exit("interrupted: not all runs were made")
    if failed:
        sys.exit(f"{failed} requests failed: their times are missing above")


if __name__ == "__main__":
    main()
