"""Requests to replay: read from a trace of real traffic, or made up."""

from __future__ import annotations

import csv
import datetime
import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import msgspec

from headrace.simulator.timing import StepCost

# Tokens of a block in Mooncake's traces.
BLOCK_TOKENS = 512
# How many answers are written at a time where the work of a trace is estimated.
_BATCH = 8
_MAX_TOKENS = 1 << 20
ADAPTERS = tuple(f"adapter-{number}" for number in range(12))


class BadTrace(ValueError):  # noqa: N818
    """A file that is no trace. The message names file, line, value and fix."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request. `at` is in seconds from the trace's begin. `blocks` are ids of the prompt's blocks of `BLOCK_TOKENS`
    tokens, the last one perhaps not full: prompts that begin with equal ids begin with equal tokens."""

    at: float
    blocks: tuple[int, ...]
    input_tokens: int
    output_tokens: int
    adapter: str = ""


def read_trace(path: Path) -> list[Arrival]:
    """The requests of a file, in the order of their times: Mooncake's JSON lines, or Azure's CSV. Raises BadTrace."""
    try:
        with path.open(encoding="utf-8") as lines:
            first = lines.readline()
            read = _azure if first.startswith("TIMESTAMP") else _mooncake
            found = read(path, itertools.chain([first], lines))
    except (OSError, UnicodeDecodeError) as error:
        raise BadTrace(f"{path} cannot be read: {error}; give a file of JSON lines, or CSV, in UTF-8") from None
    if not found:
        raise BadTrace(f"{path} has no requests; give a trace with at least one")
    return sorted(found, key=lambda arrival: arrival.at)


class _Row(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


def _mooncake(path: Path, lines: Iterable[str]) -> list[Arrival]:
    """The clock of these traces has steps of some seconds: requests of one step are spread over it, evenly."""
    rows: list[_Row] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line, type=_Row)
        except msgspec.MsgspecError as error:
            fix = "a line is {timestamp, input_length, output_length, hash_ids}"
            raise BadTrace(f"{path}:{number}: {error}; {fix}") from None
        _check_tokens(path, number, row.input_length, row.output_length)
        if len(row.hash_ids) != -(-row.input_length // BLOCK_TOKENS):
            fix = f"give one id for each {BLOCK_TOKENS} tokens begun"
            raise BadTrace(f"{path}:{number}: hash_ids: {len(row.hash_ids)} of {row.input_length} tokens; {fix}")
        rows.append(row)
    steps = [(at, list(group)) for at, group in itertools.groupby(rows, key=lambda row: row.timestamp)]
    found = []
    for number, (at, group) in enumerate(steps):
        length = steps[number + 1][0] - at if number + 1 < len(steps) else 1.0
        for place, row in enumerate(group):
            seconds = (at + length * place / len(group) - steps[0][0]) / 1000
            found.append(Arrival(seconds, tuple(row.hash_ids), row.input_length, row.output_length))
    return found


def _azure(path: Path, lines: Iterable[str]) -> list[Arrival]:
    """Lengths alone: no prompt has anything in common with another."""
    found, fresh, began = [], itertools.count(), None
    for number, row in enumerate(csv.DictReader(lines), 2):
        try:
            # Seven digits of a second: more than the standard library reads.
            at = datetime.datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
            tokens, written = int(row["ContextTokens"]), int(row["GeneratedTokens"])
        except (KeyError, TypeError, ValueError) as error:
            fix = "columns are TIMESTAMP, ContextTokens and GeneratedTokens"
            raise BadTrace(f"{path}:{number}: {error!r}; {fix}") from None
        _check_tokens(path, number, tokens, written)
        began = at if began is None else began
        blocks = tuple(itertools.islice(fresh, -(-tokens // BLOCK_TOKENS)))
        found.append(Arrival(at - began, blocks, tokens, written))
    return found


def _check_tokens(path: Path, number: int, *counts: int) -> None:
    for count in counts:
        if not 1 <= count <= _MAX_TOKENS:
            raise BadTrace(f"{path}:{number}: {count} tokens; give 1 to {_MAX_TOKENS}")


def stretch(arrivals: Sequence[Arrival], count: int, number: int) -> list[Arrival]:
    """`count` requests in a row: the `number`-th such stretch of a trace, taken round. Its first one comes at 0."""
    start = number * count % max(1, len(arrivals) - count + 1)
    part = arrivals[start : start + count]
    return [replace(arrival, at=arrival.at - part[0].at) for arrival in part]


def conversations(count: int, seed: int) -> list[Arrival]:
    """Conversations of up to ten turns over four system prompts. Each turn brings the whole of the earlier ones. All of
    it within a second: see `at_load`."""
    rng, found, fresh = Random(seed), list[Arrival](), 100
    while len(found) < count:
        blocks = [rng.randrange(4)] * 2
        at = rng.random()
        for _ in range(rng.randint(1, 10)):
            grown = min(40, 1 + int(rng.expovariate(1 / 5)))
            blocks += range(fresh, fresh + grown)
            fresh += grown
            found.append(_made_up(at, blocks, rng))
            at += rng.expovariate(30)
            if at >= 1:
                break
    return sorted(found[:count], key=lambda arrival: arrival.at)


def shared_prefixes(count: int, seed: int) -> list[Arrival]:
    """Ten prefixes of 1 to 24 blocks, the first used by four requests of ten, then one to four blocks of their own. All
    of it within a second: see `at_load`."""
    rng, found, fresh = Random(seed), list[Arrival](), 10_000
    prefixes = [tuple(range(100 * number, 100 * number + rng.randint(1, 24))) for number in range(10)]
    for _ in range(count):
        prefix = rng.choices(prefixes, [4, 2, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25])[0]
        own = rng.randint(1, 4)
        found.append(_made_up(rng.random(), (*prefix, *range(fresh, fresh + own)), rng))
        fresh += own
    return sorted(found, key=lambda arrival: arrival.at)


def _made_up(at: float, blocks: Sequence[int], rng: Random) -> Arrival:
    return Arrival(at, tuple(blocks), len(blocks) * BLOCK_TOKENS, 20 + int(rng.expovariate(1 / 250)))


def with_adapters(arrivals: Sequence[Arrival], seed: int) -> list[Arrival]:
    """Each conversation is one adapter's, the popular ones' far more often."""
    weights = [1 / (1 + number) for number in range(len(ADAPTERS))]
    rng = Random(seed)
    home: dict[int, str] = defaultdict(lambda: rng.choices(ADAPTERS, weights)[0])
    # What prompts of many conversations begin with tells none from another: the third block does.
    return [replace(one, adapter=home[one.blocks[min(2, len(one.blocks) - 1)]]) for one in arrivals]


def work_seconds(arrivals: Sequence[Arrival], cost: StepCost) -> float:
    """Seconds of one server's time that the requests take if each part of a prompt is computed once and answers are
    written eight at a time. Caches are never that good."""
    work, seen = 0.0, set[tuple[str, int]]()
    for arrival in arrivals:
        new = [place for place, block in enumerate(arrival.blocks) if (arrival.adapter, block) not in seen]
        seen.update((arrival.adapter, block) for block in arrival.blocks)
        work += len(new) * BLOCK_TOKENS * cost.prefill_microseconds_per_token * 1e-6
        work += sum(new) * BLOCK_TOKENS**2 * cost.prefill_nanoseconds_per_context_token * 1e-9
        written = cost.step_milliseconds / _BATCH * 1e-3 + cost.decode_microseconds_per_sequence * 1e-6
        written += arrival.input_tokens * cost.decode_nanoseconds_per_context_token * 1e-9
        work += arrival.output_tokens * written
    return work


def at_load(arrivals: Sequence[Arrival], servers: float, busy: float, cost: StepCost) -> list[Arrival]:
    """The same requests, spread so that so many servers are busy for that share of the time. See `work_seconds`."""
    factor = work_seconds(arrivals, cost) / servers / busy / max(arrivals[-1].at, 1e-9)
    return [replace(arrival, at=arrival.at * factor) for arrival in arrivals]
