"""A simulated server shared by a module's tests, and a client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from .client import Client
from .process import TIMEOUT, simulator


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a fast server with two adapters."""
    arguments = ["--speedup", "20", "--lora-adapter", "sql-lora", "chat-lora", "--max-model-len", "8192"]
    with simulator(*arguments, POD_NAME="pod-1") as (_, url):
        yield url


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as made:
        yield made


@pytest.fixture
async def client(server: str, session: aiohttp.ClientSession) -> Client:
    """A client of the shared server."""
    return Client(session, server)
