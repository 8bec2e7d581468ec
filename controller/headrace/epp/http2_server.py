"""Serves HTTP/2 connections on a port: the asyncio half of `extproc.http2`.

What a connection answers to a read is one write. A read that has much to do is handled in parts, with a turn for other
connections between them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Callable
from typing import cast

from headrace.extproc.http2 import Application, BufferBudget, Connection, Limits
from headrace.extproc.http2.frames import ERRORS

logger = logging.getLogger(__name__)

_SWEEP_SECONDS = 10.0
# For a peer's word that it knows of the drain.
_ANNOUNCE_SECONDS = 1.0
_SLOW_SECONDS = 0.05
_HANDSHAKE_SECONDS = 10.0
_BACKLOG = 1024
_LARGE_READ_BYTES = 64 << 10
# Of one connection: then its peer is not heard until it takes some of it.
_MOST_UNWRITTEN_BYTES = 4 << 20
# How long a peer may leave what it is sent without a sign.
_PEER_TIMEOUT_MS = 60_000


class Http2Server:
    """A server of one port. `bind`, `start`, and `stop` in the end; `sweep` is to run meanwhile.

    `on_fault` is told the name of the error of each connection that was closed for what its peer did, `on_slow` of each
    callback that took more than 50 ms of CPU."""

    def __init__(
        self,
        application: Application,
        bounds: Limits,
        budget: BufferBudget,
        *,
        tls: ssl.SSLContext | None = None,
        on_fault: Callable[[str], None] = lambda name: None,
        on_slow: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.application = application
        self.bounds = bounds
        self.budget = budget
        self.on_fault = on_fault
        self.on_slow = on_slow
        self.clock = clock
        self.peers: set[_Peer] = set()
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._gone = asyncio.Event()
        self.stopping = False

    async def bind(self, address: str, port: int) -> int:
        """Take a port, 0 for a free one; gives its number. Raises OSError."""
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Peer(self),
            address,
            port,
            ssl=self._tls,
            backlog=_BACKLOG,
            start_serving=False,
            ssl_handshake_timeout=_HANDSHAKE_SECONDS if self._tls is not None else None,
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Accept connections."""
        assert self._server is not None
        await self._server.start_serving()

    async def sweep(self) -> None:
        """Close what does not move, as long as the server runs."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            self.budget.rotate()
            for peer in list(self.peers):
                peer.sweep()

    async def stop(self, grace: float | None) -> None:
        """Take no new streams, and wait so many seconds for those that are open; then end them. Called again, it is the
        shorter of both times."""
        if self._server is not None:
            self._server.close()
        if not self.stopping:
            self.stopping = True
            for peer in list(self.peers):
                peer.drain()
            asyncio.get_running_loop().call_later(_ANNOUNCE_SECONDS, self._refuse_more)
        if grace:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._all_gone()
        for peer in list(self.peers):
            peer.close()
        await self._all_gone()

    def left(self, peer: _Peer) -> None:
        """A connection is closed."""
        self.peers.discard(peer)
        if not self.peers:
            self._gone.set()

    async def _all_gone(self) -> None:
        while self.peers:
            self._gone.clear()
            await self._gone.wait()

    def _refuse_more(self) -> None:
        for peer in list(self.peers):
            peer.refuse_more()


class _Peer(asyncio.Protocol):
    """One connection's transport."""

    def __init__(self, server: Http2Server) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._connection = Connection(
            server.application, server.bounds, server.budget, now=server.clock(), on_output=self._wake
        )
        self._transport: asyncio.Transport
        self._flush_due = False
        # Reading stops until others have had their turn, and while the peer does not take what is written.
        self._behind = False
        self._choked = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none of its subclasses
        _keep_alive(transport.get_extra_info("socket"))
        self._transport.set_write_buffer_limits(high=_MOST_UNWRITTEN_BYTES)
        self._server.peers.add(self)
        if self._server.stopping:
            self.close()
        self._write()

    def data_received(self, data: bytes) -> None:
        """Handle what came, and answer."""
        began = time.thread_time()
        connection = self._connection
        try:
            connection.receive(data, self._server.clock())
            self._write()
            # After a large read there is more to read: the event loop would do so at once, many times.
            behind = connection.more or len(data) >= _LARGE_READ_BYTES
            if behind != self._behind:
                self._behind = behind
                self._adjust_reading()
            if behind:
                self._loop.call_soon(self._go_on)
            elif connection.next_deadline is not None:
                self._set_timer()
        except Exception:  # noqa: BLE001 (logged there)
            self._failed()
        if time.thread_time() - began > _SLOW_SECONDS:
            self._server.on_slow()

    def connection_lost(self, error: Exception | None) -> None:
        """The peer is gone, or was closed."""
        if self._timer is not None:
            self._timer.cancel()
        self._connection.lost()
        self._server.left(self)

    def pause_writing(self) -> None:
        """The peer does not take what is written: it is not heard until it does."""
        self._choked = True
        self._adjust_reading()

    def resume_writing(self) -> None:
        """It does."""
        self._choked = False
        self._adjust_reading()

    def drain(self) -> None:
        """Tell the peer to begin no more streams, and close when the last one is over."""
        self._connection.drain()
        self._write()

    def refuse_more(self) -> None:
        """Do so whether the peer has answered or not."""
        self._connection.refuse_more()
        self._write()

    def close(self) -> None:
        """End all streams, and the connection."""
        self._connection.close()
        self._write()
        if self._choked:
            self._transport.abort()

    def sweep(self) -> None:
        """Close what does not move."""
        if self._closing:
            # It does not take the last that it is told.
            self._transport.abort()
            return
        # What was not read cannot be complete.
        if not self._behind and not self._choked:
            try:
                self._connection.sweep()
                self._write()
            except Exception:  # noqa: BLE001 (logged there)
                self._failed()

    def _failed(self) -> None:
        """An exception is being handled. A fault of ours costs this connection, which gateways open anew."""
        logger.exception("a connection failed: a fault in the picker")
        self.close()

    def _go_on(self) -> None:
        if not self._connection.closed:
            self.data_received(b"")

    def _wake(self) -> None:
        """There is output outside of a read: it is written in the end of this turn, all in one."""
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        self._write()

    def _write(self) -> None:
        connection = self._connection
        output = connection.take_output()
        if output and not self._transport.is_closing():
            self._transport.write(output)
        if connection.closed and not self._closing:
            self._closing = True
            if connection.fault is not None:
                self._server.on_fault(ERRORS[connection.fault.code])
                peer = self._transport.get_extra_info("peername")
                logger.warning("a connection was closed: %s", connection.fault, extra={"peer": str(peer)})
            self._transport.close()

    def _adjust_reading(self) -> None:
        if self._transport.is_closing():
            return
        if self._behind or self._choked:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _set_timer(self) -> None:
        """Have `_expire` called at the first deadline."""
        at = self._connection.next_deadline
        if at is None or (self._timer is not None and self._timer_at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(max(0.0, at - self._server.clock()), self._expire)

    def _expire(self) -> None:
        self._timer = None
        self._connection.expire(self._server.clock())
        self._write()
        self._set_timer()


def _keep_alive(sock: socket.socket | None) -> None:
    """Have the kernel notice a peer that is gone without a word."""
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _PEER_TIMEOUT_MS)
