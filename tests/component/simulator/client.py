"""A client of one simulated server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from .process import TIMEOUT


@dataclass(frozen=True)
class Reply:
    """An answer, read whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The data of an SSE answer, which must end with [DONE]."""
        assert self.headers["content-type"].startswith("text/event-stream")
        lines = self.body.decode().split("\n\n")
        assert lines.pop() == ""
        assert lines.pop() == "data: [DONE]"
        assert all(line.startswith("data: ") for line in lines)
        return [json.loads(line[6:]) for line in lines]


class Client:
    """Requests to one server."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url

    async def get(self, path: str) -> Reply:
        return await self.send("GET", path)

    async def post(self, path: str, body: Any, **headers: str) -> Reply:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.send("POST", path, data, {"content-type": "application/json", **headers})

    async def send(
        self,
        method: str,
        path: str,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        skip: Sequence[str] = (),
    ) -> Reply:
        """`skip`: headers that aiohttp is not to add."""
        async with self.session.request(
            method, self.url + path, data=data, headers=headers, skip_auto_headers=skip
        ) as response:
            lowered = {key.lower(): value for key, value in response.headers.items()}
            return Reply(response.status, lowered, await response.read())

    @asynccontextmanager
    async def endless(self, model: str | None = None) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer that runs for the length of the block, however slow the machine is."""
        body = {"model": model, "prompt": "x", "max_tokens": 100_000, "ignore_eos": True, "stream": True}
        async with self.session.post(self.url + "/v1/completions", json=body) as response:
            await response.content.readline()
            yield response

    async def metric(self, name: str, **labels: str) -> float:
        """One value of the metrics page."""
        page = (await self.get("/metrics")).body.decode()
        found = [
            sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == f"vllm:{name}" and labels.items() <= sample.labels.items()
        ]
        assert len(found) == 1, (name, labels, found)
        return found[0]

    async def wait_metric(self, name: str, holds: Callable[[float], bool], **labels: str) -> None:
        """Ask until a value is as wanted; the metrics page has no other way to wait."""
        deadline = time.monotonic() + TIMEOUT
        while not holds(value := await self.metric(name, **labels)):
            assert time.monotonic() < deadline, f"{name} is still {value}"
            await asyncio.sleep(0.01)
