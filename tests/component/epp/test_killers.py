"""A request that kills servers does not walk through the pool: simulated servers that die of one prompt."""

from __future__ import annotations

import asyncio
from pathlib import Path

from headrace.protocol import http

from .worst_day import World, world

SERVERS = 8
MAGIC = "say the word"


async def test_it_ends_two_servers_and_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path, servers=SERVERS) as w:
        for server in w.servers:
            await server.post(w.session, "/faults", {"die": MAGIC})
        innocent: list[asyncio.Task[tuple[int, str]]] = []
        reasons = []
        async with asyncio.TaskGroup() as tasks:
            # At once after each answer, until long after it was refused for the first time.
            killing = tasks.create_task(_again_and_again(w, reasons))
            while not killing.done():
                innocent.append(tasks.create_task(_ask(w, f"harmless {len(innocent)}", f"client-{len(innocent) % 5}")))
                await asyncio.sleep(1 / 20)
        dead = [server for server in w.servers if server.killed]
        assert len(dead) <= 2, reasons[:4]
        assert reasons[-1] == "kills-servers"
        assert "kills-servers" not in {task.result()[1] for task in innocent}
        # Only what the dead servers had at that moment may be lost.
        lost = [task.result() for task in innocent if task.result()[0] != 200]
        assert len(lost) <= 2, lost
        counted = await w.picker.metric('headrace_epp_refused_total{reason="kills-servers"}')
        assert counted == reasons.count("kills-servers")


async def _again_and_again(w: World, reasons: list[str]) -> None:
    while reasons.count("kills-servers") < 100:
        status, reason = await _ask(w, MAGIC, "killer")
        assert status == 503
        reasons.append(reason)


async def _ask(w: World, prompt: str, client: str) -> tuple[int, str]:
    body = {"model": "base", "prompt": prompt, "max_tokens": 5}
    async with w.session.post(w.url, json=body, headers={http.FAIRNESS_ID[1]: client}) as answer:
        await answer.read()
        return answer.status, answer.headers.get(http.DROPPED_REASON, "")
