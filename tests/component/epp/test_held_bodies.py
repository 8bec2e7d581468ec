"""A picker with a Pod's memory, and uploads that stop short of their end: others are served, and memory is bounded."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc.aio

from headrace.xds.envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from tests.hang import HANG_SECONDS
from tests.memory import memory_group

from ..ext_proc import DESTINATION, METHOD, ask, begin, channel
from .picker import start_picker

MIB = 1 << 20
LIMIT = 1024 * MIB
PIECE = b"x" * 60_000
REFUSED = 'headrace_epp_refused_total{reason="rejected-body-memory"}'


async def upload(connection: grpc.aio.Channel, size: int) -> tuple[Any, asyncio.Task[bytes]]:
    """A request whose body stops after `size` bytes, or when it is answered: its stream, and the answer to come."""
    call: Any = connection.stream_stream(METHOD)()
    answered = asyncio.create_task(call.read())
    await call.write(begin("/v1/completions"))
    piece = pb.ProcessingRequest(request_body=pb.HttpBody(body=PIECE)).SerializeToString()
    for _ in range(size // len(PIECE)):
        if answered.done():
            break
        await call.write(piece)
    return call, answered


def status(raw: bytes) -> int:
    return int(pb.ProcessingResponse.FromString(raw).immediate_response.status.code)


async def test_uploads_that_stop_do_not_take_the_memory_of_others(tmp_path: Path) -> None:
    with memory_group(LIMIT) as group:
        async with (
            start_picker(["127.0.0.1:1"], tmp_path, prefix=group.prefix) as picker,
            asyncio.timeout(HANG_SECONDS),
            channel(picker.grpc_port) as strangers,
            channel(picker.grpc_port) as users,
        ):
            assert await picker.metric("headrace_epp_held_body_bytes_limit") == LIMIT // 4
            uploads = [await upload(strangers, 20 * MIB) for _ in range(20)]
            while not await picker.metric(REFUSED):  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.05)
            held = await picker.metric("headrace_epp_held_body_bytes")
            assert held <= LIMIT // 4 * 3 // 4
            for _ in range(10):
                picked, headers = await ask(users, "/v1/completions", b'{"model":"m","prompt":"hello"}')
                assert picked == 200
                assert DESTINATION in headers
            for call, answered in uploads:
                assert not answered.done() or status(await answered) == 503
                call.cancel()
            await asyncio.gather(*(answered for _, answered in uploads), return_exceptions=True)
            while await picker.metric("headrace_epp_held_body_bytes"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            assert (await ask(users, "/v1/completions", b'{"prompt":"%b"}' % (b"x" * 20 * MIB)))[0] == 200
            print(f"peak {group.peak() >> 20} MiB")


async def test_a_body_that_does_not_come_to_its_end_is_answered_408(tmp_path: Path) -> None:
    async with (
        start_picker(["127.0.0.1:1"], tmp_path, "--request-body-timeout=100ms") as picker,
        asyncio.timeout(HANG_SECONDS),
        channel(picker.grpc_port) as strangers,
    ):
        call, answered = await upload(strangers, len(PIECE))
        assert status(await answered) == 408
        assert await call.read() is grpc.aio.EOF
        assert await picker.metric("headrace_epp_held_body_bytes") == 0
        assert await picker.metric('headrace_epp_refused_total{reason="body-timeout"}') == 1
