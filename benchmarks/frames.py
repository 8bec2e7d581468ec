"""CPU per pick without sockets: recorded HTTP/2 frames into a connection, its answers out.

    python -m benchmarks.frames [--size BYTES] [--endpoints N] [--chunks N] [--profile]

All of a pick is in it but sockets and TLS: frames, header blocks, the conversation, the decision with its account,
metrics and log, the answers. Eight streams come in one read. `--profile` shows what costs what, by CPU time. Run it in
turn with another checkout to compare two versions: times of one run alone say little on a busy machine."""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import pstats
import time
from collections.abc import Iterator
from random import Random

from headrace.datalayer.metrics_page import ServerMetrics
from headrace.epp.http2_calls import Calls
from headrace.epp.service import ExtProcService
from headrace.extproc import ConversationSettings
from headrace.extproc.http2 import BufferBudget, Connection, Limits, frames, grpc
from headrace.serving.health import Health
from headrace.xds.envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from .decision import director, messages
from .transport import response

_STREAMS_A_READ = 8
_FRAME_BYTES = 16_384
_METHOD = b"/envoy.service.ext_proc.v3.ExternalProcessor/Process"
# The first block gives up the table of headers: from then on equal bytes mean equal headers.
_NO_TABLE = b"\x20"
_HEADERS = b"\x83\x86" + b"".join(
    grpc.literal(name, value)
    for name, value in ((b":path", _METHOD), (b"content-type", b"application/grpc"), (b"te", b"trailers"))
)


def stream(stream_id: int, sent: list[bytes]) -> bytes:
    """All frames of a stream."""
    block = _HEADERS if stream_id > 1 else _NO_TABLE + _HEADERS
    out = [frames.frame(frames.HEADERS, frames.END_HEADERS, stream_id, block)]
    for message in sent:
        data = grpc.PREFIX.pack(0, len(message)) + message
        out += [
            frames.frame(frames.DATA, 0, stream_id, data[at : at + _FRAME_BYTES])
            for at in range(0, len(data), _FRAME_BYTES)
        ]
    out.append(frames.frame(frames.DATA, frames.END_STREAM, stream_id))
    return b"".join(out)


def reads(size: int, chunks: int) -> Iterator[bytes]:
    """What a gateway writes, without end."""
    rng, requests = Random(7), []
    for _ in range(max(20, min(4000, (8 << 20) // size))):
        first, *rest = messages(size, rng)
        headers = pb.ProcessingRequest.FromString(first)
        # The stream's end is the request's end: nothing is left in the account.
        headers.protocol_config.response_body_mode = 4  # type: ignore[assignment]
        requests.append([headers.SerializeToString(), *rest, *response(chunks)])
    number = 0
    while True:
        ids = range(number, number + _STREAMS_A_READ)
        # The peer takes all that it is sent.
        taken = frames.window_update(0, _STREAMS_A_READ * (size + (chunks + 8) * 512))
        yield taken + b"".join(stream(2 * at + 1, requests[at % len(requests)]) for at in ids)
        number += _STREAMS_A_READ


def microseconds(connection: Connection, source: Iterator[bytes], seconds: float) -> float:
    """CPU microseconds a pick, over so many seconds of them."""
    spent, count = 0.0, 0
    while spent < seconds:
        data = next(source)
        began = time.thread_time()
        connection.receive(data, float(count))
        connection.take_output()
        while connection.more:
            connection.receive(b"", float(count))
            connection.take_output()
        spent += time.thread_time() - began
        count += _STREAMS_A_READ
        if connection.fault is not None:
            raise connection.fault
    return spent / count * 1e6


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1 << 10)
    parser.add_argument("--endpoints", type=int, default=10)
    parser.add_argument("--chunks", type=int, default=0, help="pieces of a response that passes by")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    made = director(args.endpoints)
    for record in made.pool.store.records():
        record.scraped(ServerMetrics(running=1, waiting=0, kv_usage=0.1), time.monotonic())
    service = ExtProcService(made.director, made.pool, made.metrics, ConversationSettings())
    connection = Connection(Calls(service, Health({})), Limits(), BufferBudget(1 << 30), now=0.0)
    window = frames.settings((frames.INITIAL_WINDOW_SIZE, 1 << 30))
    connection.receive(frames.PREFACE + window + frames.frame(frames.SETTINGS, frames.ACK, 0), 0.0)
    source = reads(args.size, args.chunks)
    microseconds(connection, source, args.seconds / 3)
    gc.collect()
    gc.freeze()
    if args.profile:
        profile = cProfile.Profile(time.thread_time_ns, 1e-9)
        profile.runcall(microseconds, connection, source, args.seconds)
        pstats.Stats(profile).sort_stats("tottime").print_stats(60)
    else:
        print(f"{microseconds(connection, source, args.seconds):.1f} us a pick")


if __name__ == "__main__":
    asyncio.run(main())
