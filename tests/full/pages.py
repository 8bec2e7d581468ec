"""`python -m tests.full.pages PORT FILE`: answers every request on every address of this machine with one page.

Cheap on purpose: a thousand model servers are a thousand machines, and here they share one with what is tested."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path


class _Page(asyncio.Protocol):
    answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._begun = b""

    def data_received(self, data: bytes) -> None:
        *requests, self._begun = (self._begun + data).split(b"\r\n\r\n")
        for _ in requests:
            self._transport.write(self.answer)


async def _serve(port: int, page: bytes) -> None:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {len(page)}\r\n\r\n"
    _Page.answer = head.encode() + page
    server = await asyncio.get_running_loop().create_server(_Page, "0.0.0.0", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), Path(sys.argv[2]).read_bytes()))
