"""CPU per decision of the endpoint picker, without a transport: a request's messages in, its answers out.

Run it with `make bench`. The whole decision is in it: reading the messages, the body's JSON, prefix hashing, scoring by
the default profile, the account of what is in flight, metrics, the decision log, the answers. gRPC, TLS and Envoy are
not. Sizes are interleaved, so that a busy machine spoils all rows alike; the median of the rounds is printed."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from random import Random

import orjson

from headrace.core import Endpoint, FailureMode
from headrace.epp.composition import Components
from headrace.epp.metrics import Metrics
from headrace.epp.service import StreamSession
from headrace.extproc import ConversationSettings
from headrace.flowcontrol import FlowControlConfig
from headrace.scheduling import SchedulingConfig
from headrace.xds.envoy.service.ext_proc.v3 import external_processor_pb2 as pb

SIZES = {"1 KiB": 1 << 10, "32 KiB": 32 << 10, "256 KiB": 256 << 10}
ENDPOINT_COUNTS = (10, 100, 1000)
ROUNDS = 5
SECONDS_A_CELL = 0.5
CHUNK = 60_000
PREFIXES = 20


def director(endpoints: int) -> Components:
    """A picker over so many endpoints, without servers."""
    made = Components(
        config=SchedulingConfig(),
        flow_control=FlowControlConfig(),
        metrics=Metrics("bench"),
        clock=time.monotonic,
        rng=Random(1),
        pick_deadline=1.0,
        decisions_kept=256,
    )
    known = tuple(
        Endpoint(namespace="default", pod_name=f"pod-{n}", address=f"10.0.{n // 250}.{n % 250 + 1}", port=8000)
        for n in range(endpoints)
    )
    made.pool.endpoints_changed(known, FailureMode.CLOSE)
    return made


def messages(size: int, rng: Random) -> list[bytes]:
    """One request as Envoy sends it in full duplex: headers, then the body in chunks."""
    prefix = f"System prompt number {rng.randrange(PREFIXES)}. " * 400
    prompt = (prefix[: size // 2] + f"{rng.getrandbits(size * 4):x}")[: size - 100]
    body = orjson.dumps({"model": "meta-llama/Meta-Llama-3-8B-Instruct", "prompt": prompt, "max_tokens": 16})
    first = pb.ProcessingRequest()
    first.protocol_config.request_body_mode = 4
    first.protocol_config.response_body_mode = 0
    headers = {
        ":method": "POST",
        ":path": "/v1/completions",
        "content-type": "application/json",
        "x-request-id": f"{rng.getrandbits(128):032x}",
    }
    for key, value in headers.items():
        first.request_headers.headers.headers.add(key=key, raw_value=value.encode())
    sent = [first.SerializeToString()]
    for offset in range(0, len(body), CHUNK):
        piece = pb.ProcessingRequest()
        piece.request_body.body = body[offset : offset + CHUNK]
        piece.request_body.end_of_stream = offset + CHUNK >= len(body)
        sent.append(piece.SerializeToString())
    return sent


async def microseconds(made: Components, prepared: list[list[bytes]]) -> float:
    """CPU microseconds per decision, over about SECONDS_A_CELL of them."""
    settings = ConversationSettings(new_request_id=lambda: "generated")
    count = 0
    started = time.process_time()
    while (spent := time.process_time() - started) < SECONDS_A_CELL:
        for sent in prepared:
            session = StreamSession(made.director, made.pool, settings, observed=True)
            for raw in sent:
                await session.finish(session.feed(raw))
            session.end()
            entry = made.pool.observed(session.request_id, "")
            assert entry is not None, "the request was not picked"
            made.pool.finished(entry)
            count += 1
    return spent / count * 1e6


async def main() -> None:
    """Measure and print."""
    rng = Random(7)
    prepared = {name: [messages(size, rng) for _ in range(64)] for name, size in SIZES.items()}
    made = {count: director(count) for count in ENDPOINT_COUNTS}
    cells: dict[tuple[str, int], list[float]] = {}
    for _ in range(ROUNDS):
        for name in SIZES:
            for count in ENDPOINT_COUNTS:
                cells.setdefault((name, count), []).append(await microseconds(made[count], prepared[name]))
    print(f"CPU per decision, microseconds, median of {ROUNDS} rounds; load average {os.getloadavg()[0]:.1f}\n")
    print("| body | " + " | ".join(f"{count} endpoints" for count in ENDPOINT_COUNTS) + " |")
    print("|---|" + "---|" * len(ENDPOINT_COUNTS))
    for name in SIZES:
        row = [f"{statistics.median(cells[name, count]):.0f}" for count in ENDPOINT_COUNTS]
        print(f"| {name} | " + " | ".join(row) + " |")


if __name__ == "__main__":
    asyncio.run(main())
