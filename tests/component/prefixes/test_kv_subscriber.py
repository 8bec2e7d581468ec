"""Subscriptions over real sockets: servers that come, go, come back and talk nonsense."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator

import msgspec
import pytest
import uvloop
import zmq
import zmq.asyncio

from headrace.core import Endpoint
from headrace.prefixes.kv_events import MAX_MESSAGE_BYTES
from headrace.prefixes.kv_settings import KvEventsSettings
from headrace.prefixes.kv_subscriber import KvSubscriber
from headrace.prefixes.precise import PreciseIndex
from headrace.serving.tasks import Supervisor

from ...hang import HANG_SECONDS
from ...turns import counted_turns

# A port no other test uses, at addresses of loopback.
PORT = 25_557
TOPIC = b"kv@"


class Server:
    """What vLLM's publisher does: bind, and number its batches."""

    def __init__(self, context: zmq.asyncio.Context, address: str, port: int = PORT) -> None:
        self.socket = context.socket(zmq.PUB)
        self.socket.bind(f"tcp://{address}:{port}")
        self.sequence = 0

    async def tell(self, *events: object) -> None:
        await self.send(msgspec.msgpack.encode([0.0, list(events), 0]))

    async def send(self, payload: bytes) -> None:
        await self.socket.send_multipart([TOPIC + b"pod@model", self.sequence.to_bytes(8, "big"), payload])
        self.sequence += 1

    def stop(self) -> None:
        self.socket.close(linger=0)


@pytest.fixture
def context() -> Iterator[zmq.asyncio.Context]:
    made = zmq.asyncio.Context()
    yield made
    made.destroy(linger=0)


class Listening:
    """An index, and how often something was not readable."""

    def __init__(self, tasks: Supervisor) -> None:
        self.index = PreciseIndex()
        self.bad = 0
        settings = KvEventsSettings(PORT, TOPIC.decode())
        self.subscriber = KvSubscriber(
            settings, tasks, on_batch=self.index.apply, on_bad=self._count, on_disconnect=self.index.disconnected
        )

    def _count(self) -> None:
        self.bad += 1

    def listen_to(self, *endpoints: Endpoint) -> None:
        for endpoint in endpoints:
            self.index.add(endpoint.key)
        self.subscriber.adjust(endpoints)


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[Listening]:
    async with Supervisor() as tasks:
        made = Listening(tasks)
        yield made
    made.subscriber.close()


def endpoint(address: str, rank: int = 0) -> Endpoint:
    return Endpoint(namespace="n", pod_name=f"pod-{address}", address=address, port=8000 + rank, rank=rank)


async def until(holds: Callable[[], bool], meanwhile: Callable[[], object] | None = None) -> None:
    """Until something is so; a subscription takes a moment, and what is told before it is not heard."""
    async with asyncio.timeout(HANG_SECONDS):
        while not holds():
            if meanwhile is not None:
                await meanwhile()  # type: ignore[misc]
            await asyncio.sleep(0.05)


async def started_again(context: zmq.asyncio.Context, address: str) -> Server:
    """A server where one was just stopped: ZeroMQ lets an address go a moment after its socket is closed."""
    async with asyncio.timeout(HANG_SECONDS):
        while True:
            try:
                return Server(context, address)
            except zmq.ZMQError as error:
                if error.errno != zmq.EADDRINUSE:
                    raise
            await asyncio.sleep(0.02)


SIZE = 8


def whole(*tokens: int) -> list[int]:
    """A block that begins with these tokens."""
    return [*tokens, *[0] * (SIZE - len(tokens))]


def block(name: int, *tokens: int) -> list[object]:
    return ["BlockStored", [name], None, whole(*tokens), SIZE, None, "GPU"]


async def test_each_endpoint_has_what_its_own_server_tells(context: zmq.asyncio.Context) -> None:
    first, second, ranked = endpoint("127.0.0.2"), endpoint("127.0.0.3"), endpoint("127.0.0.3", rank=1)
    servers = [
        Server(context, "127.0.0.2"),
        Server(context, "127.0.0.3"),
        # A further rank publishes one port up.
        Server(context, "127.0.0.3", PORT + 1),
    ]
    async with listening() as heard:
        heard.listen_to(first, second, ranked)
        for number, (server, told) in enumerate(zip(servers, (first, second, ranked), strict=True)):
            await until(
                lambda told=told: heard.index.entries(told.key) == 1,  # type: ignore[misc]
                lambda server=server, number=number: server.tell(block(number, number, 7)),  # type: ignore[misc]
            )
        for number, told in enumerate((first, second, ranked)):
            assert heard.index.matches("", whole(number, 7), SIZE, 0.0) == {told.key: 1}
        await servers[0].tell(["BlockRemoved", [0], "GPU"])
        await until(lambda: heard.index.entries(first.key) == 0)


def test_the_event_loop_of_the_picker() -> None:
    """The picker runs on uvloop, which pyzmq knows nothing of."""

    async def hear() -> None:
        context = zmq.asyncio.Context()
        try:
            told = endpoint("127.0.0.7")
            server = Server(context, "127.0.0.7")
            async with listening() as heard:
                heard.listen_to(told)
                await until(lambda: heard.index.entries(told.key) == 1, lambda: server.tell(block(1, 1, 2)))
        finally:
            context.destroy(linger=0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(hear())


async def test_nonsense_is_counted_and_outlived(context: zmq.asyncio.Context) -> None:
    told = endpoint("127.0.0.4")
    server = Server(context, "127.0.0.4")
    async with listening() as heard:
        heard.listen_to(told)
        await until(lambda: heard.bad > 0, lambda: server.send(b"\xc1nonsense"))
        await until(lambda: heard.index.entries(told.key) == 1, lambda: server.tell(block(1, 1, 2)))


async def test_a_message_that_is_too_long_does_not_end_the_subscription(context: zmq.asyncio.Context) -> None:
    told = endpoint("127.0.0.10")
    server = Server(context, "127.0.0.10")
    async with listening() as heard:
        heard.listen_to(told)
        for number in range(2):
            await until(
                lambda number=number: heard.index.entries(told.key) == 1,  # type: ignore[misc]
                lambda number=number: server.tell(block(number, number, 2)),  # type: ignore[misc]
            )
            # ZeroMQ breaks the connection, and does not make it anew by itself.
            await server.send(b"x" * (2 * MAX_MESSAGE_BYTES))
            await until(lambda: heard.index.entries(told.key) == 0)
        await until(lambda: heard.index.entries(told.key) == 1, lambda: server.tell(block(9, 9, 2)))


@pytest.mark.parametrize("first_number", [lambda old: 0, lambda old: old.sequence], ids=["from 0", "where the old was"])
async def test_a_server_that_comes_late_and_starts_anew(
    context: zmq.asyncio.Context, first_number: Callable[[Server], int]
) -> None:
    told = endpoint("127.0.0.5")
    async with listening() as heard:
        heard.listen_to(told)
        await asyncio.sleep(0.2)
        server = Server(context, "127.0.0.5")
        await until(lambda: heard.index.entries(told.key) == 1, lambda: server.tell(block(1, 1, 2)))
        server.stop()
        again = await started_again(context, "127.0.0.5")
        # Wherever its numbers are by the time it is heard: what the old one had is gone.
        again.sequence = first_number(server)
        await until(
            lambda: heard.index.matches("", whole(3, 4), SIZE, 0.0) == {told.key: 1}, lambda: again.tell(block(2, 3, 4))
        )
        assert heard.index.matches("", whole(1, 2), SIZE, 0.0) == {}


async def test_who_left_is_not_listened_to(context: zmq.asyncio.Context) -> None:
    told = endpoint("127.0.0.6")
    server = Server(context, "127.0.0.6")
    left = server.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    async with listening() as heard:
        heard.listen_to(told)
        await until(lambda: heard.index.entries(told.key) == 1, lambda: server.tell(block(1, 1, 2)))
        heard.subscriber.adjust(())
        # The server has nobody to tell anything any more.
        await asyncio.wait_for(left.recv_multipart(), HANG_SECONDS)
        await server.tell(block(2, 3, 4))
        assert heard.index.entries(told.key) == 1
        assert heard.index.matches("", [3, 4], 2, 0.0) == {}


async def test_a_fast_sender_leaves_others_their_turn(context: zmq.asyncio.Context) -> None:
    told = endpoint("127.0.0.8")
    server = Server(context, "127.0.0.8")
    turns: list[int] = []
    async with listening() as heard, counted_turns() as turn:
        heard.subscriber.on_batch = lambda key, batch: turns.append(turn.count)
        heard.listen_to(told)
        await until(lambda: bool(turns), lambda: server.tell(block(1, 1, 2)))
        turns.clear()
        for number in range(500):
            await server.tell(block(number, number))
        await until(lambda: len(turns) >= 500)
    assert len(set(turns)) == len(turns)
