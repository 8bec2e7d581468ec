"""`headrace replay`: requests of a trace, or made up, against routing policies, in virtual time."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import msgspec

from headrace.config.flags import add_flags, choice, flag, number, path, read_flags, whole
from headrace.config.values import duration
from headrace.replay.figures import Figures, figures
from headrace.replay.fleet import FleetSettings
from headrace.replay.policies import BUILT_IN, SIMPLE, read_policy
from headrace.replay.report import Report, as_html, as_json, as_text
from headrace.replay.run import replay
from headrace.replay.traces import Arrival, at_load, conversations, read_trace, shared_prefixes, stretch, with_adapters
from headrace.simulator.engine import EngineSettings
from headrace.simulator.timing import StepCost

__all__ = ["add_arguments", "run"]

_USUAL_LOAD = 0.6
_MADE_UP = {"conversations": conversations, "shared-prefixes": shared_prefixes}


def _slow(text: str) -> dict[int, float]:
    """`number=times`, between commas."""
    found = {}
    for part in filter(None, text.split(",")):
        server, _, times = part.partition("=")
        found[whole(0, 4095)(server.strip())] = number(0.001, 1e6)(times.strip())
    return found


def _fleets(text: str) -> tuple[int, ...]:
    """Numbers of servers, between commas."""
    return tuple(whole(1, 4096)(part.strip()) for part in text.split(","))


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """The flags."""

    workload: str = flag("conversations", "requests where no trace is given", choice(tuple(_MADE_UP)))
    adapters: bool = flag(False, "each conversation asks for a LoRA adapter", action="store_true")
    policy: Sequence[str] = flag(
        [],
        f"an EndpointPickerConfig's file, or {BUILT_IN}, {', '.join(SIMPLE)}; may come several times, the others are "
        f"compared to the first (default: {BUILT_IN}, least-request, knowing)",
        action="append",
        metavar="FILE|NAME",
    )
    servers: tuple[int, ...] = flag("8", "numbers of servers, between commas", _fleets, metavar="N[,N...]")
    slow: dict[int, float] = flag(
        "", "servers, by their number from 0, and how many times slower they are", _slow, metavar="N=TIMES[,...]"
    )
    requests: int = flag(1000, "requests of a run", whole(10, 1_000_000))
    busy: float = flag(
        0.0,
        "spread the requests so that the largest fleet is busy for this share of the time; 0: the trace's own times "
        f"({_USUAL_LOAD} where none is given)",
        number(0, 5),
    )
    seeds: int = flag(3, "runs of each policy, with other stretches of the trace", whole(1, 1000))
    first_seed: int = flag(0, "the first of them", whole())
    bodies: bool = flag(False, "the picker sees the bodies of answers", action="store_true")
    target: float = flag(2.0, "time to the first token that counts as good", duration)
    processes: int = flag(0, "runs at once; 0: one for each core", whole(0, 1024))
    json: Path | None = flag(None, "write everything to this file", path)
    html: Path | None = flag(None, "write the report to this file", path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all flags, in groups."""
    parser.add_argument(
        "trace",
        nargs="?",
        metavar="TRACE",
        help="Mooncake's JSON lines, or Azure's CSV; without it requests are made up",
    )
    add_flags(parser, ReplayOptions)
    add_flags(parser.add_argument_group("the simulated servers' engine"), EngineSettings)
    add_flags(parser.add_argument_group("their timing, an 8B model in 16 bits on one A100 of 80 GB"), StepCost)


@dataclass(frozen=True)
class _Cell:
    policy: str
    servers: int
    seed: int


@dataclass(frozen=True)
class _Work:
    """What every process needs to make any cell."""

    trace: str | None
    options: ReplayOptions
    engine: EngineSettings

    def arrivals(self, seed: int) -> list[Arrival]:
        """The requests of a seed: the same ones for every policy and fleet."""
        options = self.options
        if self.trace is not None:
            found = stretch(_trace(self.trace), options.requests, seed)
        else:
            found = _MADE_UP[options.workload](options.requests, seed)
        if options.adapters:
            found = with_adapters(found, seed)
        return at_load(found, max(options.servers), options.busy, self.engine.cost) if options.busy else found

    def figures(self, cell: _Cell) -> Figures:
        """Make one run."""
        # The picker's log is about pools that nobody runs.
        logging.disable(logging.WARNING)
        fleet = FleetSettings(servers=cell.servers, engine=self.engine, slow=self.options.slow)
        outcome = replay(self.arrivals(cell.seed), cell.policy, fleet, seed=cell.seed, bodies=self.options.bodies)
        return figures(outcome, cell.servers, self.options.target)


@lru_cache(maxsize=1)
def _trace(name: str) -> list[Arrival]:
    """A trace, read once in each process."""
    return read_trace(Path(name))


def run(args: argparse.Namespace) -> int:
    """Replay, and report. Raises ValueError, naming flag or file, for what cannot be replayed."""
    options = read_flags(args, ReplayOptions)
    options = replace(
        options,
        policy=options.policy or [BUILT_IN, "least-request", "knowing"],
        busy=options.busy or (0.0 if args.trace is not None else _USUAL_LOAD),
    )
    engine = replace(read_flags(args, EngineSettings), cost=read_flags(args, StepCost))
    for policy in options.policy:
        read_policy(policy)
    work = _Work(args.trace, options, engine)
    work.arrivals(options.first_seed)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    cells = [_Cell(*cell) for cell in itertools.product(options.policy, options.servers, seeds)]
    found = _run_all(work, cells)
    runs = {
        (policy, servers): [found[_Cell(policy, servers, seed)] for seed in seeds]
        for policy, servers in itertools.product(options.policy, options.servers)
    }
    load = f"{options.busy:g} busy" if options.busy else "at its own times"
    title = f"{Path(args.trace).name if args.trace else options.workload}, {options.requests} requests, {load}"
    report = Report(title, options.target, runs)
    sys.stdout.write(as_text(report))
    if options.json is not None:
        options.json.write_bytes(msgspec.json.encode(as_json(report)))
    if options.html is not None:
        options.html.write_text(as_html(report))
    return 0


def _run_all(work: _Work, cells: Sequence[_Cell]) -> dict[_Cell, Figures]:
    """All runs, several at once, with their progress on standard error."""
    began, found = time.monotonic(), {}
    with ProcessPoolExecutor(min(len(cells), work.options.processes or os.cpu_count() or 1)) as pool:
        for cell, result in zip(cells, pool.map(work.figures, cells), strict=True):
            found[cell] = result
            left = (time.monotonic() - began) / len(found) * (len(cells) - len(found))
            sys.stderr.write(f"\r{len(found)} of {len(cells)} runs, about {left:.0f} s left ")
            sys.stderr.flush()
    sys.stderr.write("\n")
    return found
