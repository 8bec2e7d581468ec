"""Pods that come and go in a real API server without a kubelet, and what was there when."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

LABELS = {"app": "churn"}


@dataclass
class Lives:
    """When the Pods of an address were there, by the word of the API server: (came, went), times of time.monotonic.

    `came` is before the request that made it ready, `went` after the one that deleted it was answered: whatever the
    picker does between them is right."""

    spans: dict[str, list[list[float]]] = field(default_factory=dict)

    def came(self, address: str) -> None:
        """A Pod with this address is about to be ready."""
        self.spans.setdefault(address, []).append([time.monotonic(), float("inf")])

    def went(self, address: str) -> None:
        """The last Pod with this address is gone."""
        self.spans[address][-1][1] = time.monotonic()

    def stale_seconds(self, address: str, asked: float, answered: float) -> float:
        """For a pick of the address that was made between two times: how long it had been gone at the first, 0 if it
        was there at any time since; infinity if it never was before the second."""
        spans = [span for span in self.spans.get(address, ()) if span[0] <= answered]
        return max(0.0, asked - max(span[1] for span in spans)) if spans else float("inf")


@dataclass
class Pods:
    """Makes and deletes Pods of a namespace, each with an address of 127.0.0.0/8 of its own."""

    session: aiohttp.ClientSession
    url: str
    lives: Lives = field(default_factory=Lives)
    present: deque[tuple[str, str]] = field(default_factory=deque)
    made: int = 0
    writes: int = 0

    def __post_init__(self) -> None:
        # Addresses are taken again, the longest unused one first, as address ranges of nodes are.
        self._free = deque(f"127.{10 + n // 250}.{n % 250 // 10}.{1 + n % 10}" for n in range(1_500))

    async def come(self) -> None:
        """One more Pod, ready."""
        name, address = f"pod-{self.made}", self._free.popleft()
        self.made += 1
        container = {"name": "server", "image": "model-server"}
        pod = {"metadata": {"name": name, "labels": LABELS}, "spec": {"containers": [container]}}
        await self._send("POST", "", pod)
        self.lives.came(address)
        condition = {"type": "Ready", "status": "True"}
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": [condition]}
        await self._send("PATCH", f"/{name}/status", {"status": status})
        self.present.append((name, address))

    async def go(self) -> None:
        """The oldest Pod is deleted."""
        name, address = self.present.popleft()
        await self._send("DELETE", f"/{name}", {"gracePeriodSeconds": 0})
        self.lives.went(address)
        self._free.append(address)

    async def _send(self, method: str, path: str, body: Any) -> None:
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {"content-type": kind}
        async with self.session.request(method, self.url + path, data=json.dumps(body), headers=headers) as answer:
            assert answer.status in (200, 201), (method, path, answer.status, await answer.text())
            await answer.read()
        self.writes += 1


@asynccontextmanager
async def pods_of(kubeconfig: Path, namespace: str) -> AsyncIterator[Pods]:
    """Pods of a namespace, by the account of a kubeconfig with a token."""
    config = json.loads(await asyncio.to_thread(kubeconfig.read_text))
    server = config["clusters"][0]["cluster"]["server"]
    headers = {"authorization": f"Bearer {config['users'][0]['user']['token']}"}
    connector = aiohttp.TCPConnector(ssl=False, limit=0)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
        yield Pods(session, f"{server}/api/v1/namespaces/{namespace}/pods")


async def paced(rate: float, count: int, *work: Callable[[], Awaitable[None]], at_once: int = 64) -> float:
    """Do the work `count` times, `rate` a second or as fast as it goes; the seconds until the last was done."""
    started = time.monotonic()
    places = asyncio.Semaphore(at_once)

    async def turn() -> None:
        try:
            for one in work:
                await one()
        finally:
            places.release()

    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
            await places.acquire()
            tasks.create_task(turn())
    return time.monotonic() - started
