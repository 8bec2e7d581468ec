"""A watch's sign of life: a peer that keeps the connection and says nothing is given up, and nothing is missed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from headrace.kube.client import connect
from headrace.kube.reflector import WATCH_GRACE_SECONDS, WATCH_SECONDS, Reflector, Resource
from tests.hang import HANG_SECONDS
from tests.list_watch import ListWatchServer, eventually, following

PODS = Resource("", "v1", "pods", True)
PATH = "/api/v1/namespaces/n/pods"


def made(name: str) -> dict[str, Any]:
    return {"metadata": {"namespace": "n", "name": name, "uid": name, "resourceVersion": "1"}}


class Forwarder:
    """A TCP peer between client and server. `silence` has the connections of this moment say nothing more, open."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._alive: set[asyncio.Event] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0

    async def start(self) -> int:
        """Listen; returns the port."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    def silence(self) -> None:
        """From now on what comes over these connections goes nowhere."""
        for alive in self._alive:
            alive.clear()
        self._alive = set()

    async def close(self) -> None:
        """Close all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        alive = asyncio.Event()
        alive.set()
        self._alive.add(alive)
        to, back = await asyncio.open_connection("127.0.0.1", self._port)
        for source, target in ((reader, back), (to, writer)):
            task = asyncio.create_task(self._forward(source, target, alive))
            self._tasks.add(task)

    async def _forward(self, source: asyncio.StreamReader, to: asyncio.StreamWriter, alive: asyncio.Event) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await source.read(1 << 16):
                await alive.wait()
                to.write(piece)
                await to.drain()
        if alive.is_set():
            to.close()


@contextlib.asynccontextmanager
async def followed(directory: Path) -> AsyncIterator[tuple[ListWatchServer, Forwarder, Reflector]]:
    server = ListWatchServer()
    server.objects[PATH] = [made("a")]
    kubeconfig = await server.start(directory)
    config = yaml.safe_load(kubeconfig.read_text())
    cluster = config["clusters"][0]["cluster"]
    forwarder = Forwarder(urlsplit(cluster["server"]).port or 0)
    cluster["server"] = f"http://127.0.0.1:{await forwarder.start()}"
    kubeconfig.write_text(yaml.safe_dump(config))
    client = await connect(str(kubeconfig))
    reflector = Reflector(client, PODS, namespace="n", watch_seconds=(1, 1), grace_seconds=0.2)
    try:
        async with following(reflector), asyncio.timeout(HANG_SECONDS):
            await server.watched(PATH)
            yield server, forwarder, reflector
    finally:
        await forwarder.close()
        await server.close()


async def test_a_silent_peer_is_given_up_and_nothing_is_missed_or_listed_again(tmp_path: Path) -> None:
    async with followed(tmp_path) as (server, forwarder, reflector):
        server.send(PATH, server.change(PATH, "ADDED", made("b")))
        await eventually(lambda: ("n", "b") in reflector.objects)
        watches, connections = len(server.watches[PATH]), forwarder.connections
        forwarder.silence()
        # Said to nobody: the watch that would have had it is silent.
        server.send(PATH, server.change(PATH, "ADDED", made("c")), server.change(PATH, "DELETED", made("a")))
        await eventually(lambda: {name for _, name in reflector.objects} == {"b", "c"})
        assert forwarder.connections > connections
        assert len(server.watches[PATH]) > watches
        assert server.watches[PATH][watches]["resourceVersion"] == "2"
        assert server.lists[PATH] == 1


async def test_a_peer_that_says_nothing_new_is_asked_again_without_a_list(tmp_path: Path) -> None:
    async with followed(tmp_path) as (server, _, _):
        await server.watched(PATH, times=3)
        assert server.lists[PATH] == 1
        assert {watch["timeoutSeconds"] for watch in server.watches[PATH]} == {"1"}


def test_what_is_known_is_at_most_20_seconds_old() -> None:
    assert (WATCH_SECONDS, WATCH_GRACE_SECONDS) == ((10, 15), 3.0)
