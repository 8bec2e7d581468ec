"""An API server that lists and watches what a test tells it, down to the bytes of a watch's lines: no real one can be
made to send garbage."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from headrace.kube.reflector import Reflector


async def eventually(holds: Callable[[], bool]) -> None:
    """Until it holds; the caller bounds the time."""
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


@asynccontextmanager
async def following(reflector: Reflector) -> AsyncIterator[None]:
    """A reflector that runs, and still does at the end of the block. Closes its client."""
    task = asyncio.create_task(reflector.run())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await reflector.client.close()


class ListWatchServer:
    """`objects` by path, such as `/api/v1/namespaces/n/pods`; other paths are answered 404. `lists` counts lists, and
    `watches` has the query of each watch. A watch begins with the changes after the version that it names.

    `manners` by path is how the next watches are answered instead, once each: "silent" (nothing is ever said), "half"
    (half a line), "slow" (a byte at a time), "end" (at once), "headers" (there are none), "gone" (410), "refused"
    (500), "garbage" (no JSON)."""

    def __init__(self) -> None:
        self.objects: dict[str, list[Any]] = {}
        self.lists: dict[str, int] = {}
        self.watches: dict[str, list[dict[str, str]]] = {}
        self.manners: dict[str, list[str]] = {}
        self._version = 1
        self._changes: dict[str, list[tuple[int, bytes]]] = {}
        self._watches: dict[str, set[asyncio.Queue[bytes]]] = {}
        self._runner: web.AppRunner | None = None

    async def start(self, directory: Path) -> Path:
        """Serve; returns a kubeconfig."""
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self._runner.addresses[0][1]}"}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path = directory / "kubeconfig"
        path.write_text(json.dumps(config))
        return path

    async def close(self) -> None:
        """Stop serving."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def watched(self, path: str, times: int = 1) -> None:
        """Until this path has been watched so many times."""
        await eventually(lambda: len(self.watches.get(path, ())) >= times)

    def send(self, path: str, *lines: bytes) -> None:
        """Send lines, as they are, to all who watch this path."""
        for queue in self._watches.get(path, ()):
            queue.put_nowait(b"".join(line + b"\n" for line in lines))

    def change(self, path: str, kind: str, found: Any) -> bytes:
        """The line of a change that the next list shows too."""
        self._version += 1
        found["metadata"]["resourceVersion"] = str(self._version)
        kept = [entry for entry in self.objects[path] if entry["metadata"]["name"] != found["metadata"]["name"]]
        self.objects[path] = kept if kind == "DELETED" else [*kept, found]
        line = json.dumps({"type": kind, "object": found}).encode()
        self._changes.setdefault(path, []).append((self._version, line))
        return line

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path not in self.objects:
            return web.json_response({"reason": "NotFound", "message": "there is no such kind"}, status=404)
        if request.query.get("watch") != "true":
            self.lists[path] = self.lists.get(path, 0) + 1
            return web.json_response({"metadata": {"resourceVersion": str(self._version)}, "items": self.objects[path]})
        if self.manners.get(path):
            return await _mannered(request, self.manners[path].pop(0))
        answer = web.StreamResponse()
        await answer.prepare(request)
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._watches.setdefault(path, set()).add(queue)
        self.watches.setdefault(path, []).append(dict(request.query))
        known = int(request.query.get("resourceVersion", "0"))
        try:
            for version, line in self._changes.get(path, ()):
                if version > known:
                    await answer.write(line + b"\n")
            while True:
                await answer.write(await queue.get())
        except ConnectionError:
            return answer
        finally:
            self._watches[path].discard(queue)


async def _mannered(request: web.Request, manner: str) -> web.StreamResponse:
    """A watch as no API server should answer it."""
    if manner in ("gone", "refused"):
        return web.json_response({"kind": "Status"}, status=410 if manner == "gone" else 500)
    if manner == "headers":
        await asyncio.Event().wait()
    answer = web.StreamResponse()
    await answer.prepare(request)
    with contextlib.suppress(ConnectionError):
        match manner:
            case "garbage":
                await answer.write(b"<html>\n\xff\xfe\n")
            case "half":
                await answer.write(b'{"type":"ADDED","object":{"meta')
            case "slow":
                for byte in b'{"type":"ADDED",':
                    await answer.write(bytes([byte]))
                    await asyncio.sleep(0.2)
        if manner not in ("end", "garbage"):
            await asyncio.Event().wait()
    return answer
