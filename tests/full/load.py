"""A load client that shares no code with what it tests: HTTP/1.1 on plain sockets, every byte accounted for.

Requests start on a fixed schedule (open loop): a server that slows down gets no fewer. Every second one is streamed.
An answer is whole if its framing is (Content-Length or the last chunk), its status 200, and it has every token that
was asked for; a stream has to end with `[DONE]` as well, and none may end by `abort`."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

_READ_SECONDS = 60.0
ABORTED = "finish_reason abort: the server cut the answer"


def aborted(part: dict[str, Any]) -> bool:
    """Whether an answer, or a part of a stream, says that it was cut: a server that ends says so with status 200."""
    return any(choice.get("finish_reason") == "abort" for choice in part["choices"])


@dataclass(frozen=True)
class Outcome:
    """One request. `fault` is "" for a whole answer. `body_bytes` without framing; times on the wall clock."""

    started: float
    seconds: float
    stream: bool
    status: int
    pod: str
    body_bytes: int
    wire_bytes: int
    events: int
    fault: str

    @property
    def pool(self) -> str:
        """The Deployment that the Pod is of."""
        return self.pod.rsplit("-", 2)[0]


class Cut(Exception):  # noqa: N818
    """The answer ended before it was over."""


@dataclass
class _Reader:
    stream: asyncio.StreamReader
    count: int = 0

    async def line(self) -> bytes:
        line = await asyncio.wait_for(self.stream.readline(), _READ_SECONDS)
        self.count += len(line)
        if not line.endswith(b"\n"):
            raise Cut(f"the connection ended within a line: {line[:80]!r}")
        return line.rstrip(b"\r\n")

    async def exactly(self, size: int) -> bytes:
        try:
            found = await asyncio.wait_for(self.stream.readexactly(size), _READ_SECONDS)
        except asyncio.IncompleteReadError as error:
            raise Cut(f"{len(error.partial)} of {size} bytes came") from error
        self.count += size
        return found


@dataclass
class Load:
    """Steady traffic for as long as the block lasts; then `outcomes` has every request."""

    address: str
    model: str
    rate: float = 50.0
    stream_tokens: int = 40
    paths: tuple[str, ...] = ("/v1/completions",)
    outcomes: list[Outcome] = field(default_factory=list)
    skipped: int = 0

    def __enter__(self) -> Load:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """No more requests; those under way are waited for."""
        self._stopping.set()
        self._thread.join()

    async def _run(self) -> None:
        began, number = time.monotonic(), 0
        async with asyncio.TaskGroup() as tasks:
            while not self._stopping.is_set():
                due = began + number / self.rate
                if (wait := due - time.monotonic()) > 0:
                    await asyncio.sleep(wait)
                path = self.paths[number // 2 % len(self.paths)]
                tasks.create_task(self._one(path, number))
                number += 1

    async def _one(self, path: str, number: int) -> None:
        stream = number % 2 == 1
        started, clock = time.time(), time.monotonic()
        status, pod, body, wire, events, fault = 0, "", 0, 0, 0, ""
        try:
            status, pod, content, wire = await self._exchange(path, stream, number)
            body = len(content)
            events, fault = self._verdict(stream, status, content)
        except (OSError, Cut, TimeoutError, ValueError) as error:
            fault = f"{type(error).__name__}: {error}"
        seconds = time.monotonic() - clock
        self.outcomes.append(Outcome(started, seconds, stream, status, pod, body, wire, events, fault))

    def _verdict(self, stream: bool, status: int, content: bytes) -> tuple[int, str]:
        if status != 200:
            return 0, f"status {status}: {content[:200]!r}"
        if not stream:
            answer = json.loads(content)
            if aborted(answer):
                return 1, ABORTED
            tokens = answer["usage"]["completion_tokens"]
            return 1, "" if tokens == 8 else f"{tokens} tokens of 8"
        data = [line[5:].strip() for line in content.split(b"\n") if line.startswith(b"data:")]
        if not data or data[-1] != b"[DONE]":
            return len(data), f"the stream has {len(data)} events, the last is not [DONE]"
        parts = [json.loads(one) for one in data[:-1]]
        if any(map(aborted, parts)):
            return len(data), ABORTED
        tokens = sum(bool(choice.get("text")) for part in parts for choice in part["choices"])
        if tokens < self.stream_tokens:
            return len(data), f"{tokens} tokens of {self.stream_tokens} in the stream"
        return len(data), ""

    async def _exchange(self, path: str, stream: bool, number: int) -> tuple[int, str, bytes, int]:
        host, port = self.address.rsplit(":", 1)
        asked = {"model": self.model, "prompt": f"request {number} ", "ignore_eos": True, "stream": stream}
        asked["max_tokens"] = self.stream_tokens if stream else 8
        body = json.dumps(asked).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {self.address}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        stream_reader, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), 20)
        reader = _Reader(stream_reader)
        try:
            writer.write(head.encode() + body)
            await writer.drain()
            status = int((await reader.line()).split()[1])
            headers = {}
            while line := await reader.line():
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            if headers.get("transfer-encoding") == "chunked":
                content = b""
                while size := int((await reader.line()).split(b";")[0], 16):
                    content += await reader.exactly(size)
                    await reader.exactly(2)
                while await reader.line():
                    pass
            else:
                content = await reader.exactly(int(headers.get("content-length", "0")))
            return status, headers.get("x-headrace-pod", ""), content, reader.count
        finally:
            writer.close()

    # ---- what came of it

    @property
    def faults(self) -> list[Outcome]:
        """Requests without a whole answer."""
        return [outcome for outcome in self.outcomes if outcome.fault]

    def pools(self, begin: float, end: float) -> Counter[str]:
        """Who answered the requests that started in a span of time."""
        return Counter(outcome.pool for outcome in self.outcomes if begin <= outcome.started < end and outcome.pod)

    def summary(self) -> str:
        """One line for people."""
        streams = [outcome for outcome in self.outcomes if outcome.stream]
        body, wire = sum(one.body_bytes for one in self.outcomes), sum(one.wire_bytes for one in self.outcomes)
        longest = max((outcome.seconds for outcome in streams), default=0.0)
        return (
            f"{len(self.outcomes)} requests, {len(streams)} streamed (up to {longest:.1f} s), "
            f"{len(self.faults)} failed; {body} bytes of bodies in {wire} bytes on the wire"
        )
