"""Some relatives of each attack that once worked, on a picker and a gateway controller with Pods' memory.

`make test-full PART=hostile` has all of them, for as long as they take."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

from tests.hang import HANG_SECONDS
from tests.hostile.ordinary import asking
from tests.hostile.relatives import ROWS, relatives
from tests.hostile.world import GATEWAY_BYTES, PICKER_BYTES, running
from tests.memory import memory_group, resident

A_ROW = 2
SEED = 20261130
# Of what the picker had before.
MORE_MEMORY = 1.1


async def test_nobody_loses_a_request_to_a_stranger(tmp_path: Path) -> None:
    chosen = [one for row in ROWS for one in Random(SEED).sample(relatives(row, SEED), A_ROW)]
    with memory_group(PICKER_BYTES) as picker_memory, memory_group(GATEWAY_BYTES) as gateway_memory:
        async with running(tmp_path, picker_memory, gateway_memory) as world:
            async with asking(world.picker.grpc_port) as found:
                pid = world.picker.process.pid
                before = resident(pid)
                for one in chosen:
                    await world.act(one)
                    assert world.picker.process.returncode is None, one.name
                    assert world.gateway.returncode is None, one.name
                # What was said of the pool after it counts.
                assert "127.0.0.1" in "".join(await world.picker.endpoints())
                # What was taken is given back, by and by.
                async with asyncio.timeout(HANG_SECONDS):
                    while resident(pid) > before * MORE_MEMORY:  # noqa: ASYNC110 (another process)
                        await asyncio.sleep(0.2)
            assert found.lost == []
            assert len(found.seconds) > len(chosen)
            print(f"peaks {picker_memory.peak() >> 20} and {gateway_memory.peak() >> 20} MiB")
