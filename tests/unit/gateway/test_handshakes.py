"""Whether pickers' certificates are trusted, tried with real handshakes on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from headrace.core import GA_GROUP
from headrace.gateway.endpoints import Address
from headrace.gateway.handshakes import Handshakes, NotTrusted, handshake
from headrace.gateway.snapshot import Snapshot
from headrace.gateway.trust import Trust
from tests.certificates import Authority, Pair
from tests.unit.gateway import objects as o

KEY = (GA_GROUP, "default", "pool")
HOST = "epp.default.svc"


@contextlib.asynccontextmanager
async def serving(directory: Path, pair: Pair) -> AsyncIterator[Address]:
    """Something that speaks TLS with that certificate."""
    pair.write(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "tls.crt", directory / "tls.key")
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[:2]


async def test_what_a_handshake_tells(tmp_path: Path):
    ours, other = Authority("ours"), Authority("other")
    bundle = (other.certificate + ours.certificate).decode()
    async with serving(tmp_path, ours.issue(HOST, "second.test")) as address:
        await handshake(address, Trust(HOST, ca=bundle))
        await handshake(address, Trust("x", ca=bundle, alternative_names=(("Hostname", "second.test"),)))
        for trust in (
            Trust(HOST, ca=other.certificate.decode()),
            Trust("another.test", ca=bundle),
            Trust(HOST, ca=bundle, alternative_names=(("Hostname", "another.test"), ("URI", "spiffe://x"))),
            Trust(HOST, ca="-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        ):
            with pytest.raises(NotTrusted):
                await handshake(address, trust)


async def test_what_cannot_be_reached_tells_nothing():
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    address = server.sockets[0].getsockname()[:2]
    trust = Trust(HOST, ca=Authority("ours").certificate.decode())
    async with server:
        # It speaks no TLS, and then it is gone.
        with pytest.raises(OSError):
            await handshake(address, trust)
    with pytest.raises(OSError):
        await handshake(address, trust)


def world(addresses: int = 1, **kinds: Any) -> Snapshot:
    reference = {"group": "", "kind": "ConfigMap", "name": "ca"}
    policy = {
        "metadata": o.metadata("p"),
        "spec": {
            "targetRefs": [{"group": "", "kind": "Service", "name": "epp"}],
            "validation": {"hostname": HOST, "caCertificateRefs": [reference]},
        },
    }
    base = {
        "services": [o.service()],
        "endpoint_slices": [o.slice_of("epp", {f"10.0.0.{at}": {"ready": True} for at in range(1, addresses + 1)})],
        "backend_tls_policies": [policy],
        "config_maps": [{"metadata": o.metadata("ca"), "data": {"ca.crt": "-----BEGIN CERTIFICATE-----"}}],
    }
    return o.snapshot([o.pool()], **{**base, **kinds})


class Bench:
    """Pickers that answer as they are told, and a clock."""

    def __init__(self) -> None:
        self.snapshot = world()
        self.now = 0.0
        self.answers: dict[str, Exception | None] = {}
        self.asked: list[str] = []
        self.changes = 0
        self.handshakes = Handshakes(lambda: self.snapshot, self.change, attempt=self.attempt, clock=lambda: self.now)

    def change(self) -> None:
        self.changes += 1

    async def attempt(self, address: Address, trust: Trust) -> None:
        self.asked.append(address[0])
        if (answer := self.answers.get(address[0])) is not None:
            raise answer

    async def look(self, after: float = 0.0) -> str:
        self.now += after
        await self.handshakes.look()
        return self.handshakes.problem(KEY)


async def test_a_verdict_comes_and_goes():
    bench = Bench()
    bench.answers["10.0.0.1"] = NotTrusted("self-signed certificate")
    assert await bench.look() == "self-signed certificate"
    assert bench.changes == 1
    # Not again at once; soon, for it is to be mended; and seldom once it is.
    await bench.look(1.0)
    assert len(bench.asked) == 1
    bench.answers.clear()
    assert await bench.look(4.5) == ""
    assert (bench.changes, len(bench.asked)) == (2, 2)
    await bench.look(30.0)
    assert len(bench.asked) == 2
    await bench.look(40.0)
    assert len(bench.asked) == 3


async def test_a_change_is_looked_at_at_once():
    bench = Bench()
    await bench.look()
    bench.snapshot = world(2)
    await bench.look()
    assert len(bench.asked) == 2
    bench.snapshot = world(2, services=[o.service(appProtocol="kubernetes.io/h2c")])
    assert await bench.look() == ""
    assert len(bench.asked) == 2


@pytest.mark.parametrize("away", [ConnectionRefusedError(), TimeoutError(), ssl.SSLError(1, "handshake failure")])
async def test_a_picker_that_cannot_be_reached_is_no_verdict(away: Exception):
    bench = Bench()
    bench.snapshot = world(2)
    bench.answers = {"10.0.0.1": away, "10.0.0.2": away}
    assert await bench.look() == ""
    # One that is trusted, or one that is not, tells for those that do not.
    bench.answers = {"10.0.0.1": away, "10.0.0.2": NotTrusted("expired")}
    assert await bench.look(61.0) == "expired"
    bench.answers = {"10.0.0.1": NotTrusted("expired")}
    assert await bench.look(6.0) == ""


@pytest.mark.parametrize(
    "kinds",
    [
        {"services": []},
        {"endpoint_slices": []},
        {"backend_tls_policies": []},
        {"config_maps": []},
        {"services": [o.service(appProtocol="kubernetes.io/h2c")]},
    ],
    ids=["no Service", "no endpoint", "no policy", "no CA", "cleartext"],
)
async def test_nobody_is_asked_where_that_tells_nothing(kinds: dict[str, Any]):
    bench = Bench()
    bench.snapshot = world(**kinds)
    assert await bench.look() == ""
    assert bench.asked == []
