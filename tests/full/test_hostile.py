"""Every relative of each attack that once worked, in random order, beside 20 ordinary requests a second.

Each pair is a run with them and one without: nothing ordinary is lost, and their times and the picker's memory are
nearly the same. HOSTILE_SECONDS is the time of a run, HOSTILE_PAIRS how many pairs, HOSTILE_SEED the order and the
relatives; it is printed."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random, SystemRandom

import pytest

from ..hostile.ordinary import Ordinary, asking
from ..hostile.relatives import ROWS, relatives
from ..hostile.world import GATEWAY_BYTES, PICKER_BYTES, World, running
from ..memory import memory_group, resident
from .files import all_open_files

SECONDS = float(os.environ.get("HOSTILE_SECONDS", "300"))
PAIRS = int(os.environ.get("HOSTILE_PAIRS", "1"))
SEED = int(os.environ.get("HOSTILE_SEED", str(SystemRandom().randrange(1 << 30))))
# After it began, and after what was hostile has ended.
SETTLE_SECONDS = 60.0
SLOWER_SECONDS, MORE_MEMORY = 0.5, 1.1


@dataclass(frozen=True)
class Run:
    """What a run came to. Memory in bytes, before and a minute after."""

    ordinary: Ordinary
    before: int
    after: int
    peaks: tuple[int, int]


@pytest.fixture(autouse=True)
def many_files() -> Iterator[None]:
    """Each hostile stream is a connection."""
    with all_open_files():
        yield


def made(folder: Path) -> Path:
    """A folder, made."""
    folder.mkdir()
    return folder


async def attack(world: World, seed: int) -> Counter[int]:
    """All relatives of all rows once, in random order, and again until the time is up. How many of each row it were."""
    rng = Random(seed)
    until = time.monotonic() + SECONDS
    done: Counter[int] = Counter()
    while True:
        every = [(row, one) for row in ROWS for one in relatives(row, rng.getrandbits(32))]
        rng.shuffle(every)
        for row, one in every:
            # The first time all of them, however long it takes.
            if time.monotonic() > until and len(done) == len(ROWS) and min(done.values()) >= 30:
                return done
            await world.act(one)
            done[row] += 1
            assert world.picker.process.returncode is None, f"the picker ended after {one.name}"
            assert world.gateway.returncode is None, f"the gateway controller ended after {one.name}"


async def run(directory: Path, seed: int | None) -> Run:
    """One run; hostile where there is a seed."""
    with memory_group(PICKER_BYTES) as picker_memory, memory_group(GATEWAY_BYTES) as gateway_memory:
        async with running(directory, picker_memory, gateway_memory) as world:
            pid = world.picker.process.pid
            async with asking(world.picker.grpc_port) as found:
                await asyncio.sleep(SETTLE_SECONDS)
                before = resident(pid)
                if seed is None:
                    await asyncio.sleep(SECONDS)
                else:
                    print(f"relatives by row: {dict(sorted((await attack(world, seed)).items()))}")
                await asyncio.sleep(SETTLE_SECONDS)
                after = resident(pid)
                if seed is not None:
                    # It was heard, and what is good still counts.
                    assert await world.picker.metric('headrace_epp_kv_event_batches_total{result="error"}')
                    assert await world.picker.metric('headrace_epp_metrics_pages_total{result="error"}')
                    assert await world.picker.metric('headrace_epp_malformed_objects_total{kind="pods"}')
                    assert any(key.startswith("127.0.0.1:") for key in await world.picker.endpoints())
                    assert await world.picker.metric("headrace_epp_held_body_bytes") < 1 << 20
            return Run(found, before, after, (picker_memory.peak(), gateway_memory.peak()))


@pytest.mark.parametrize("pair", range(PAIRS))
async def test_ordinary_requests_do_not_notice(tmp_path: Path, pair: int) -> None:
    seed = SEED + pair
    print(f"\nHOSTILE_SEED={seed}")
    order = Random(seed).sample([None, seed], 2)
    runs = {one: await run(made(tmp_path / str(number)), one) for number, one in enumerate(order)}
    for name, one in (("quiet", runs[None]), ("hostile", runs[seed])):
        times = " ".join(
            f"{share:g}: {one.ordinary.quantile(share) * 1000:.1f} ms" for share in (0.5, 0.99, 0.999, 1.0)
        )
        print(
            f"{name}: {len(one.ordinary.seconds)} requests, {len(one.ordinary.lost)} lost, {times}; memory"
            f" {one.before >> 20} MiB before, {one.after >> 20} after, peaks {[peak >> 20 for peak in one.peaks]}"
        )
    quiet, hostile = runs[None], runs[seed]
    assert quiet.ordinary.lost == hostile.ordinary.lost == []
    assert hostile.ordinary.quantile(0.999) <= quiet.ordinary.quantile(0.999) + SLOWER_SECONDS
    assert hostile.after <= hostile.before * MORE_MEMORY
