"""A gateway controller with a Pod's memory, and bodies that are to be read for their model: it lives, and answers."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from headrace.core.bounded_json import MAX_NODES, MAX_VALUES
from headrace.protocol import http
from tests.list_watch import ListWatchServer
from tests.memory import memory_group

from ..ext_proc import ask, channel

MIB = 1 << 20
# The limit that role envoy_gateway gives the controller.
LIMIT = 512 * MIB
FLAGS = ("--insecure", "--bind-address=127.0.0.1", "--hook-port=0", "--eds-port=0", "--health-port=0")


def repeated(piece: bytes, size: int) -> bytes:
    return b'{"x":[' + piece * (size // len(piece)) + b'0],"model":"m"}'


BODIES = {
    "over the limit": (repeated(b'{"":0},', 31 * MIB), 413),
    "objects": (repeated(b'{"":0},', 7 * MIB), 400),
    "lists": (repeated(b"[[],[]],", 7 * MIB), 400),
    "as many values as are read": (repeated(b"1e9,", 4 * (MAX_VALUES - 9)), 200),
    "as many strings as are read": (repeated(b'"a",', 4 * (MAX_NODES - 9)), 200),
}


async def test_the_controller_outlives_bodies_of_any_kind(tmp_path: Path) -> None:
    server = ListWatchServer()
    kubeconfig = await server.start(tmp_path)
    with memory_group(LIMIT) as group:
        process = await asyncio.create_subprocess_exec(
            *(*group.prefix, sys.executable, "-m", "headrace.cli.main", "gateway"),
            *(*FLAGS, "--metrics-port=0", f"--kubeconfig={kubeconfig}"),
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        try:
            async with asyncio.timeout(120):
                port = 0
                while not port:
                    line = json.loads(await process.stderr.readline())
                    port = line.get("ports", {}).get("eds", 0)
                draining = asyncio.create_task(process.stderr.read())
                async with channel(port) as connection:
                    for name, (body, status) in BODIES.items():
                        asked = [ask(connection, "/v1/completions", body, whole=True) for _ in range(4)]
                        for answered, headers in await asyncio.gather(*asked):
                            assert answered == status, name
                            assert headers.get(http.MODEL) == ("m" if status == 200 else None), name
            assert process.returncode is None
            print(f"peak {group.peak() >> 20} MiB")
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            await server.close()
        await draining
