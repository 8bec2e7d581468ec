"""Listens to the servers' KV cache events over ZeroMQ: one subscription for each endpoint.

ZeroMQ connects as long as it takes; a connection that breaks is made anew. A message that cannot be read is counted and
left; nothing that a server sends ends its subscription."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, InitVar, dataclass
from functools import partial

import zmq
import zmq.asyncio

from headrace.core import Endpoint
from headrace.prefixes.kv_events import MAX_MESSAGE_BYTES, Batch, MalformedEvents, read_parts
from headrace.prefixes.kv_settings import KvEventsSettings
from headrace.serving.tasks import Supervisor, TaskPerKey

logger = logging.getLogger(__name__)

# More waiting than this and the picker is not keeping up: servers keep what comes then, or drop it, which is seen.
_MOST_WAITING = 10_000
_FEWEST_WAITING = 2
# After a break, so that a server that causes it again and again costs little.
_PAUSE_SECONDS = 0.5
_MOST_SOCKETS = 65_536


@dataclass(eq=False)
class KvSubscriber:
    """One task of `tasks` per endpoint. `on_batch` is told each batch, `on_bad` of each message that is none,
    `on_disconnect` of each endpoint whose connection broke."""

    settings: KvEventsSettings
    tasks: InitVar[Supervisor]
    _: KW_ONLY
    on_batch: Callable[[str, Batch], object]
    on_bad: Callable[[], None] = lambda: None
    on_disconnect: Callable[[str], object] = lambda key: None
    # Of the messages that wait to be read, over all endpoints.
    waiting_bytes: int = 64 << 20

    def __post_init__(self, tasks: Supervisor) -> None:
        self._context = zmq.asyncio.Context()
        self._context.set(zmq.MAX_SOCKETS, _MOST_SOCKETS)
        self._tasks = TaskPerKey(tasks, "KV events")
        self._sockets: set[zmq.asyncio.Socket] = set()
        self._waiting = _FEWEST_WAITING

    def adjust(self, endpoints: Iterable[Endpoint]) -> None:
        """Listen to exactly these endpoints. An address that changed hands is started anew."""
        work = {f"{found.key} {found.uid}": partial(self._listen, found) for found in endpoints}
        self._waiting = waiting_messages(self.waiting_bytes, len(work))
        for socket in self._sockets:
            socket.set(zmq.RCVHWM, self._waiting)
        self._tasks.adjust(work)

    def close(self) -> None:
        """Close the sockets, once the tasks are over."""
        self._context.destroy(linger=0)

    async def _listen(self, endpoint: Endpoint) -> None:
        """Follow an endpoint's server over one connection after the other."""
        while True:
            try:
                await self._connection(endpoint)
            except Exception:
                self.on_disconnect(endpoint.key)
                raise
            # Messages are lost until there is another.
            self.on_disconnect(endpoint.key)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _connection(self, endpoint: Endpoint) -> None:
        """Take messages until the connection breaks. ZeroMQ would make it anew by itself, but for one that broke the
        protocol, or sent too long a message."""
        socket = self._context.socket(zmq.SUB)
        monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._sockets.add(socket)
        try:
            socket.set(zmq.RCVHWM, self._waiting)
            socket.set(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
            socket.set(zmq.IPV6, 1)
            socket.set(zmq.RECONNECT_IVL, 100)
            socket.set(zmq.RECONNECT_IVL_MAX, 5_000)
            socket.set(zmq.SUBSCRIBE, self.settings.topic.encode())
            socket.connect(address(endpoint, self.settings))
            taking = asyncio.ensure_future(self._take(socket, endpoint))
            broken = asyncio.ensure_future(monitor.recv_multipart())
            try:
                await asyncio.wait((taking, broken), return_when=asyncio.FIRST_COMPLETED)
                if taking.done():
                    taking.result()
            finally:
                taking.cancel()
                broken.cancel()
                await asyncio.gather(taking, broken, return_exceptions=True)
        finally:
            self._sockets.discard(socket)
            socket.disable_monitor()
            socket.close(linger=0)

    async def _take(self, socket: zmq.asyncio.Socket, endpoint: Endpoint) -> None:
        """Take messages until cancelled."""
        complained = False
        while True:
            frames = await socket.recv_multipart()
            try:
                for part in read_parts(frames):
                    self.on_batch(endpoint.key, part)
                    # What waits already is given without a wait: a fast sender would keep the loop for itself.
                    await asyncio.sleep(0)
            except MalformedEvents as error:
                self.on_bad()
                if not complained:
                    logger.warning("KV events of %s are not readable: %s", endpoint.key, error)
                    complained = True
                await asyncio.sleep(0)
            else:
                complained = False


def waiting_messages(most_bytes: int, endpoints: int) -> int:
    """How many messages of the longest kind may wait for each endpoint."""
    share = most_bytes // (MAX_MESSAGE_BYTES * max(1, endpoints))
    return min(_MOST_WAITING, max(_FEWEST_WAITING, share))


def address(endpoint: Endpoint, settings: KvEventsSettings) -> str:
    """Where an endpoint's server publishes."""
    host = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
    return f"tcp://{host}:{settings.port + endpoint.rank}"
