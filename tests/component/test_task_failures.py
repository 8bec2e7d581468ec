"""A process whose informer ends, in whatever way, ends with an error: it does not go on with what it knew."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.list_watch import ListWatchServer

# Runs the command with an informer of one kind that ends as soon as it has listed.
PROGRAM = """
import sys
from headrace.kube.reflector import Reflector

async def run(self):
    await self._list()
    if sys.argv[1] == "raises":
        raise KeyError("x")

original = Reflector.run

async def patched(self):
    await (run(self) if self.resource.plural == sys.argv[2] else original(self))

Reflector.run = patched
from headrace.cli.main import main
sys.exit(main(sys.argv[3:]))
"""
POOLS = "/apis/inference.networking.k8s.io/v1/namespaces/n/inferencepools"
POOL = {
    "metadata": {"name": "p", "namespace": "n", "resourceVersion": "1"},
    "spec": {"selector": {"matchLabels": {"app": "m"}}, "targetPorts": [{"number": 8000}]},
}
PORTS = ("--grpc-port=0", "--grpc-health-port=0", "--metrics-port=0")
EPP = ("epp", "--pool-name=p", "--pool-namespace=n", "--bind-address=127.0.0.1", "--secure-serving=false", *PORTS)
GATEWAY = (
    "gateway",
    "--bind-address=127.0.0.1",
    "--insecure",
    "--hook-port=0",
    "--eds-port=0",
    "--health-port=0",
    "--metrics-port=0",
)


@pytest.mark.parametrize("how", ["raises", "returns"])
@pytest.mark.parametrize(
    ("command", "kind"), [(EPP, "pods"), (EPP, "inferencepools"), (EPP, "inferenceobjectives"), (GATEWAY, "gateways")]
)
async def test_the_process_ends_with_an_error(how: str, command: tuple[str, ...], kind: str, tmp_path: Path) -> None:
    server = ListWatchServer()
    server.objects = {
        POOLS: [POOL],
        "/api/v1/namespaces/n/pods": [],
        "/apis/inference.networking.x-k8s.io/v1alpha2/namespaces/n/inferenceobjectives": [],
        "/apis/gateway.networking.k8s.io/v1/gateways": [],
    }
    kubeconfig = await server.start(tmp_path)
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM, how, kind, *command, f"--kubeconfig={kubeconfig}"),
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(60):
                _, output = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 1, output.decode()
        assert b"the process ends" in output
    finally:
        await server.close()
