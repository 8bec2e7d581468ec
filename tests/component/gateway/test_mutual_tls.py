"""Mutual TLS of the hook and of discovery: who gets in, and certificates that change while calls go on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from headrace.serving.tls import InvalidCertificate, mutual_credentials

from ...certificates import Authority, Pair
from ...hang import HANG_SECONDS

HOST = "hook.test"
_OPTIONS = [("grpc.ssl_target_name_override", HOST)]


@dataclass
class Serving:
    """A server that answers everybody whom it lets in. `directory` is what is mounted."""

    port: int
    directory: Path

    @asynccontextmanager
    async def caller(self, server_ca: Authority, client: Pair | None) -> AsyncIterator[Any]:
        """Calls over a connection of its own."""
        credentials = grpc.ssl_channel_credentials(
            server_ca.certificate,
            private_key=client.key if client else None,
            certificate_chain=client.certificate if client else None,
        )
        async with grpc.aio.secure_channel(f"127.0.0.1:{self.port}", credentials, options=_OPTIONS) as channel:
            call: Any = channel.unary_unary("/test.Test/Echo")
            yield lambda: call(b"ping", timeout=HANG_SECONDS)

    async def lets_in(self, server_ca: Authority, client: Pair | None) -> bool:
        """Whether a new connection gets an answer."""
        async with self.caller(server_ca, client) as call:
            try:
                return bool(await call() == b"ping")
            except grpc.aio.AioRpcError:
                return False


@asynccontextmanager
async def serving(directory: Path, pair: Pair, ca: Authority) -> AsyncIterator[Serving]:
    pair.write(directory, ca.certificate)

    async def echo(request: bytes, _: Any) -> bytes:
        return request

    handlers: dict[str, Any] = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    port = server.add_secure_port("127.0.0.1:0", mutual_credentials(directory, directory / "ca.crt"))
    await server.start()
    try:
        yield Serving(port, directory)
    finally:
        await server.stop(0)


async def test_only_clients_with_a_certificate_of_the_ca_get_in(tmp_path: Path) -> None:
    ours, theirs = Authority("ours"), Authority("theirs")
    async with serving(tmp_path, ours.issue(HOST), ours) as server:
        assert await server.lets_in(ours, ours.issue("client", client=True))
        assert not await server.lets_in(ours, theirs.issue("client", client=True))
        assert not await server.lets_in(ours, None)


async def test_certificates_change_while_calls_go_on(tmp_path: Path) -> None:
    old, new = Authority("old"), Authority("new")
    old_client, new_client = old.issue("client", client=True), new.issue("client", client=True)
    async with serving(tmp_path, old.issue(HOST), old) as server, server.caller(old, old_client) as call:

        async def goes_on() -> None:
            """A call over the connection that was there before."""
            assert await call() == b"ping"

        assert await server.lets_in(old, old_client)
        await goes_on()
        # First both CAs are trusted, then the certificate is new, then only the new CA is left.
        both = old.certificate + new.certificate
        old.issue(HOST).write(tmp_path, both)
        assert await server.lets_in(old, new_client)
        await goes_on()
        new.issue(HOST).write(tmp_path, both)
        assert await server.lets_in(new, old_client)
        await goes_on()
        new.issue(HOST).write(tmp_path, new.certificate)
        assert await server.lets_in(new, new_client)
        assert not await server.lets_in(new, old_client)
        await goes_on()
        # What cannot be used is not taken up.
        (tmp_path / "tls.crt").write_bytes(b"nonsense")
        assert await server.lets_in(new, new_client)
        await goes_on()


def test_files_that_cannot_be_served_with_are_named(tmp_path: Path) -> None:
    ca = Authority("ca")
    pair, other = ca.issue(HOST), ca.issue(HOST)
    with pytest.raises(InvalidCertificate, match=r"tls\.crt and tls\.key"):
        mutual_credentials(tmp_path, tmp_path / "ca.crt")
    Pair(pair.certificate, other.key).write(tmp_path, ca.certificate)
    with pytest.raises(InvalidCertificate, match="do not belong together"):
        mutual_credentials(tmp_path, tmp_path / "ca.crt")
    pair.write(tmp_path, b"nonsense")
    with pytest.raises(InvalidCertificate, match=r"ca\.crt is not a PEM certificate"):
        mutual_credentials(tmp_path, tmp_path / "ca.crt")
