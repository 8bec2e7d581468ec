"""Our own HTTP/2 server: clients of gRPC's make over loopback, TLS, and what an attacker can do to a picker."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from headrace.epp.http2_server import Http2Server
from headrace.extproc.http2 import BufferBudget, Limits, RequestHeaders, Stream, frames
from headrace.serving.tls import InvalidCertificate, server_context

from ...certificates import Authority
from ...hang import HANG_SECONDS
from ...unit.extproc import messages as m
from ...unit.extproc.http2.peer import GREETING, Application, NotedCall, block, data, grpc_message, request
from ..ext_proc import DESTINATION, METHOD, ask, channel
from .picker import PickerProcess, start_picker

ECHO, SINK, MISSING = "/test.S/Echo", "/test.S/Sink", "/test.S/Missing"
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Late(NotedCall):
    """Echoes each message a moment later, one at a time."""

    def message(self, message: bytes) -> None:
        self.stream.pause()
        asyncio.get_running_loop().call_soon(self._answer, message)

    def _answer(self, message: bytes) -> None:
        self.stream.send(message)
        self.stream.resume()
        self.stream.flush()


class LateApplication(Application):
    def open(self, headers: RequestHeaders, stream: Stream) -> NotedCall | None:
        call = self.calls[stream.id] = Late(headers.path, stream)
        return call


@contextlib.asynccontextmanager
async def serving(application: Any = None, **changes: Any) -> AsyncIterator[tuple[Http2Server, int]]:
    """A server on loopback, and its port."""
    bounds = changes.pop("bounds", Limits())
    server = Http2Server(application or Application(), bounds, BufferBudget(64 << 20), **changes)
    port = await server.bind("127.0.0.1", 0)
    await server.start()
    try:
        async with asyncio.timeout(HANG_SECONDS):
            yield server, port
    finally:
        await server.stop(0)
        assert not server.peers


async def echoed(call: Any, messages: list[bytes]) -> list[bytes]:
    """Send messages as the answers come, and give the answers."""

    async def send() -> None:
        for message in messages:
            await call.write(message)
        await call.done_writing()

    sending = asyncio.create_task(send())
    found = [answer async for answer in call]
    await sending
    return found


@pytest.mark.parametrize("application", [Application, LateApplication])
async def test_many_calls_with_long_messages(application: Any) -> None:
    async with serving(application()) as (server, port), grpc.aio.insecure_channel(f"127.0.0.1:{port}", _OPTIONS) as c:
        sizes = [0, 1, 1000, 16_384, 70_000, 1 << 20]
        calls = [[bytes([n]) * size for size in sizes[n % 3 :]] for n in range(40)]
        calls.append([b"x" * (20 << 20)])
        answers = await asyncio.gather(*(echoed(c.stream_stream(ECHO)(), messages) for messages in calls))
        assert answers == calls
        [peer] = server.peers
        assert peer._connection.stream_count == 0
        assert server.budget.held == 0


@pytest.mark.parametrize(
    ("path", "size", "options", "code"),
    [
        (MISSING, 1, {}, grpc.StatusCode.UNIMPLEMENTED),
        (ECHO, 20_001, {}, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (ECHO, 900, {"compression": grpc.Compression.Gzip}, grpc.StatusCode.UNIMPLEMENTED),
    ],
)
async def test_errors_have_their_codes(path: str, size: int, options: Any, code: grpc.StatusCode) -> None:
    async with (
        serving(bounds=Limits(max_message_bytes=20_000)) as (_, port),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as connection,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await connection.unary_unary(path)(b"x" * size, **options)
        assert caught.value.code() is code


async def test_the_server_ends_a_call_whose_time_is_over() -> None:
    application = Application()
    async with serving(application) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        headers = block(request(("grpc-timeout", "50m"), path=SINK))
        late = block(request(("grpc-timeout", "1H"), path=SINK))
        writer.write(GREETING + frames.frame(frames.HEADERS, frames.END_HEADERS, 1, late))
        writer.write(frames.frame(frames.HEADERS, frames.END_HEADERS, 3, headers))
        received = b""
        while b"grpc-status\x014" not in received:
            received += await reader.read(1000)
        assert application.calls[3].events == ["ended"]
        assert application.calls[1].events == []
        writer.close()


async def test_a_stop_waits_for_open_calls_and_takes_no_new_ones() -> None:
    async with serving() as (server, port), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as connection:
        call = connection.stream_stream(ECHO)()
        await call.write(b"one")
        assert await call.read() == b"one"
        stopping = asyncio.create_task(server.stop(HANG_SECONDS))
        await asyncio.sleep(0)
        await call.write(b"two")
        assert await call.read() == b"two"
        assert not stopping.done()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        await stopping
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_a_second_stop_ends_what_the_first_waits_for() -> None:
    application = Application()
    async with serving(application) as (server, port), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as connection:
        call = connection.stream_stream(SINK)()
        await call.write(b"one")
        while not application.calls:  # noqa: ASYNC110 (the other end)
            await asyncio.sleep(0.01)
        first = asyncio.create_task(server.stop(HANG_SECONDS))
        await asyncio.sleep(0)
        await server.stop(0)
        await first
        assert application.calls[1].events[-1] == "ended"
        assert await call.code() is grpc.StatusCode.UNAVAILABLE


async def test_one_busy_connection_leaves_the_others_their_turns() -> None:
    application = Application()
    async with serving(application) as (_, port):
        _, busy = await asyncio.open_connection("127.0.0.1", port)
        reader, other = await asyncio.open_connection("127.0.0.1", port)
        other.write(GREETING)
        total = 40_000
        busy.write(GREETING + frames.frame(frames.HEADERS, frames.END_HEADERS, 1, block(request(path=SINK))))
        busy.write(data(1, grpc_message(b"x")) * total)
        while not application.calls or not application.calls[1].events:  # noqa: ASYNC110
            await asyncio.sleep(0)
        other.write(frames.frame(frames.PING, 0, 0, b"12345678"))
        received = b""
        while b"12345678" not in received:
            received += await reader.read(1000)
        assert len(application.calls[1].events) < total
        while len(application.calls[1].events) < total:  # noqa: ASYNC110
            await asyncio.sleep(0)
        busy.close()
        other.close()


async def test_who_does_not_read_is_not_heard() -> None:
    application = Application()
    async with serving(application) as (server, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        grown = frames.settings((frames.INITIAL_WINDOW_SIZE, frames.MAX_WINDOW))
        most = frames.window_update(0, frames.MAX_WINDOW - frames.DEFAULT_WINDOW)
        writer.write(GREETING + grown + most + frames.frame(frames.HEADERS, 4, 1, block(request())))
        # Never read: far more than the buffers of both ends.
        piece = data(1, grpc_message(bytes(16_000)))
        sending = asyncio.create_task(_send_forever(writer, piece))
        while not any(peer._choked for peer in server.peers):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        [peer] = server.peers
        held = peer._transport.get_write_buffer_size()
        assert held < 8 << 20
        # It is not blamed for what it was not let say.
        peer.sweep()
        peer.sweep()
        assert not peer._connection.closed
        sending.cancel()
        writer.transport.abort()


async def _send_forever(writer: asyncio.StreamWriter, piece: bytes) -> None:
    while True:
        writer.write(piece)
        await writer.drain()


# ---- TLS ----


async def test_mutual_tls_and_its_reload(tmp_path: Path) -> None:
    authority, other = Authority("clients"), Authority("others")
    authority.issue("epp.test").write(tmp_path, authority.certificate)
    tls = server_context(tmp_path, authority=tmp_path / "ca.crt")
    async with serving(tls=tls) as (_, port):

        async def call(by: Authority, trusted: Authority) -> list[bytes]:
            pair = by.issue("gateway", client=True)
            credentials = grpc.ssl_channel_credentials(trusted.certificate, pair.key, pair.certificate)
            options = [("grpc.ssl_target_name_override", "epp.test")]
            async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as connection:
                return await echoed(connection.stream_stream(ECHO)(), [b"hello"])

        assert await call(authority, authority) == [b"hello"]
        with pytest.raises(grpc.aio.AioRpcError):
            await call(other, authority)
        other.issue("epp.test").write(tmp_path, other.certificate)
        assert await call(other, other) == [b"hello"]
        with pytest.raises(grpc.aio.AioRpcError):
            await call(authority, other)


async def test_a_client_without_a_certificate_is_not_served(tmp_path: Path) -> None:
    authority = Authority("clients")
    authority.issue("epp.test").write(tmp_path, authority.certificate)
    async with serving(tls=server_context(tmp_path, authority=tmp_path / "ca.crt")) as (server, port):
        context = ssl.create_default_context(cadata=authority.certificate.decode())
        context.set_alpn_protocols(["h2"])
        with pytest.raises((ssl.SSLError, ConnectionError)):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="epp.test")
            writer.write(GREETING)
            assert await reader.read(100) == b""
            raise ConnectionError
        assert not server.peers


def test_files_that_are_no_certificate(tmp_path: Path) -> None:
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).write_text("x")
    with pytest.raises(InvalidCertificate, match=str(tmp_path)):
        server_context(tmp_path)


# ---- a picker under attack ----

FIELDS = block([*request(path=METHOD)])


def opened(stream_id: int) -> bytes:
    return frames.frame(frames.HEADERS, frames.END_HEADERS, stream_id, FIELDS)


def rapid_resets() -> bytes:
    return b"".join(opened(n) + frames.rst_stream(n, frames.CANCEL) for n in range(1, 20_001, 2))


FLOODS = {
    "rapid reset": rapid_resets(),
    "continuation": frames.frame(frames.HEADERS, 0, 1, FIELDS) + frames.frame(frames.CONTINUATION, 0, 1, b"") * 10_000,
    "settings": frames.settings((frames.INITIAL_WINDOW_SIZE, 1000)) * 10_000,
    "ping": frames.frame(frames.PING, 0, 0, bytes(8)) * 10_000,
    "empty frames": opened(1) + data(1, b"") * 10_000,
}


async def goodbye(port: int, sent: bytes) -> bytes:
    """The last that a connection is told."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    with contextlib.suppress(ConnectionError):
        writer.write(GREETING + sent)
        while piece := await reader.read(1 << 16):
            received = (received + piece)[-1000:]
    writer.close()
    return received


async def test_attackers_are_sent_away_and_users_are_served(tmp_path: Path) -> None:
    async with (
        start_picker(["127.0.0.1:1"], tmp_path, "--extproc-transport=http2") as picker,
        channel(picker.grpc_port) as users,
        asyncio.timeout(HANG_SECONDS),
    ):
        body = b'{"model":"m","prompt":"hello"}'
        for flood in FLOODS.values():
            attacks = [asyncio.create_task(goodbye(picker.grpc_port, flood)) for _ in range(3)]
            while not all(attack.done() for attack in attacks):
                _, headers = await ask(users, "/v1/completions", body)
                assert headers[DESTINATION] == "127.0.0.1:1"
                await asyncio.sleep(0.01)
            for attack in attacks:
                # Where the reset of the socket does not overtake it.
                assert (last := await attack) == b"" or b"\0\0\0\x0b" in last
        closed = 'headrace_epp_http2_closed_connections_total{error="ENHANCE_YOUR_CALM"}'
        assert await picker.metric(closed) == 3 * len(FLOODS)
        assert await picker.metric('headrace_epp_streams_inflight{kind="pick"}') == 0
        assert picker.log.read_text().count("a connection was closed") == 3 * len(FLOODS)


async def test_a_gateway_whose_clients_all_leave_at_once_keeps_its_connection(tmp_path: Path) -> None:
    async with start_picker(["127.0.0.1:1"], tmp_path, "--extproc-transport=http2") as picker:
        async with asyncio.timeout(HANG_SECONDS):
            await leave_at_once(picker)


async def leave_at_once(picker: PickerProcess) -> None:
    asked = grpc_message(m.request_headers().SerializeToString())
    reader, writer = await asyncio.open_connection("127.0.0.1", picker.grpc_port)
    writer.write(GREETING)
    reading = asyncio.create_task(until(reader, b"the last"))
    for turn in range(10):
        numbers = range(1 + 10_000 * turn, 1 + 10_000 * (turn + 1), 2)
        writer.write(b"".join(opened(n) + data(n, asked) for n in numbers))
        await writer.drain()
        writer.write(b"".join(frames.rst_stream(n, frames.CANCEL) for n in numbers))
        await writer.drain()
    writer.write(frames.frame(frames.PING, 0, 0, b"the last"))
    assert await reading
    assert await picker.metric('headrace_epp_streams_inflight{kind="pick"}') == 0
    assert await picker.in_flight() == 0
    writer.close()


async def until(reader: asyncio.StreamReader, wanted: bytes) -> bool:
    """Whether these bytes come before the end."""
    tail = b""
    while piece := await reader.read(1 << 18):
        tail = tail[-len(wanted) :] + piece
        if wanted in tail:
            return True
    return False
