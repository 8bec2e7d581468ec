"""Where fuzzing starts from: real pages, real configuration files, requests as gateways and servers write them, and
what fuzzing has found of use before."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from headrace.datalayer.engines import ENGINES, Series
from headrace.extproc import BodyMode

from ..unit.extproc import messages as m
from ..unit.extproc.http2.peer import GREETING
from ..unit.extproc.http2.test_connection import FAULTS, SCRIPT, STREAM_FAULTS
from ..unit.extproc.test_usage import BODIES, STREAMS

TESTS = Path(__file__).parents[1]
PAGES = (TESTS / "unit/datalayer/data/vllm-0.32.0-under-load.txt", TESTS / "data/vllm-0.32.0-metrics.txt")
CONFIGS = TESTS / "unit/epp/configs"
CORPORA = Path(__file__).parent / "corpora"


def ext_proc() -> Iterator[bytes]:
    """Serialized messages, a stream of them, and requests through a proxy in each mode."""
    config = m.config(BodyMode.FULL_DUPLEX_STREAMED, BodyMode.FULL_DUPLEX_STREAMED)
    hint = m.metadata("envoy.lb.subset_hint", {"x-gateway-destination-endpoint-subset": ["10.0.0.7:8000"]})
    served = m.metadata("envoy.lb", {"x-gateway-destination-endpoint-served": m.PICK})
    stream = [
        m.request_headers(protocol_config=config, metadata_context=hint),
        m.body("request_body", b'{"model":"m","prompt":"hello","stream":true}', True),
        m.response_headers({":status": "200", "content-type": "text/event-stream"}, metadata_context=served),
        m.body("response_body", b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n', False),
        m.trailers("response_trailers"),
    ]
    for message in stream:
        yield b"\0" + message.SerializeToString()
        yield b"\0" + m.oneof_last(message)
    raws = [message.SerializeToString() for message in stream]
    yield b"\1\0\0" + b"".join(b"\6" + bytes([len(raw)]) + raw for raw in raws if len(raw) < 255)
    for request in range(5):
        for response in range(5):
            for bits in (0, 1, 2, 5, 16):
                yield (
                    bytes([2, request, response, bits, 0, 99]) + b"\0\1\5model\3abc\1\1\5asked\0\4\0\0\0\1\0\2\0\3" * 2
                )


def responses() -> Iterator[bytes]:
    """JSON bodies and event streams with usage, of every server."""
    for bits in (0, 2, 8):
        for body in BODIES:
            yield bytes([bits, 2, 3, 9]) + json.dumps(body).encode()
        for stream in STREAMS:
            text = "".join(f"event: message\ndata: {json.dumps({'model': 'm', **event})}\n\n" for event in stream)
            yield bytes([bits | 1, 2, 3, 9]) + text.encode() + b"data: [DONE]\n\n"


def metrics_page() -> Iterator[bytes]:
    """A real server's whole pages, their lines that matter, and a small page of each engine."""
    for path in PAGES:
        page = path.read_bytes()
        yield b"\0" + page[:60_000]
        lines = [
            line
            for line in page.splitlines(keepends=True)
            if b"lora" in line or b"num_req" in line or b"cache_c" in line
        ]
        yield b"\0" + b"".join(lines)[:16_000]
    for number, engine in enumerate(ENGINES.values()):
        text = "".join(f"{_series(series)} {value}\n" for value, series in enumerate(engine.series))
        for name in (engine.adapters, engine.cache_config):
            labels = (
                'running_lora_adapters="a, b",waiting_lora_adapters="",max_lora="2",block_size="16",num_gpu_blocks="9"'
            )
            text += f"{name}{{{labels}}} 1.7e9\n" if name else ""
        for bits in (0, 0x81):
            yield bytes([number << 2 | bits]) + text.encode()
        yield bytes([number << 2 | 2, 20]) + b'queue{kind="waiting"}' + text.encode()


def _series(series: Series) -> str:
    labels = ",".join(f'{name}="{value}"' for name, value in series.labels)
    return f"{series.name}{{{labels}}}"


def config_file() -> Iterator[bytes]:
    """The reference pickers' own files, and choices for documents that are put together."""
    for path in sorted(CONFIGS.iterdir()):
        yield b"\0" + path.read_bytes()
    for number in range(64):
        yield b"\2" + bytes((number * 37 + at * at * 11) % 256 for at in range(64))


def body_scan() -> Iterator[bytes]:
    """Requests of every API, and what is hard to follow: escapes, surrogates, depth, numbers, other encodings."""
    turn = {"role": "user", "content": [{"type": "text", "text": 'é"\\\n😀'}], "tool_calls": [{"id": "1"}]}
    documents: list[dict[str, Any]] = [
        {"model": "m", "prompt": "hello", "stream": True, "max_tokens": 5},
        {"messages": [turn, {"role": "assistant", "content": None}, 7], "model": "m", "tools": [{"a": {"b": [{}]}}]},
        {"input": [1, -2.5, 1e300, 10**20], "sampling_params": {"max_new_tokens": 3}, "x": [[[[[[]]]]]]},
        {"system": "s", "cache_salt": "", "text": ["a", None, True], "metadata": {"k": "v" * 70}},
    ]
    for document in documents:
        for text in (json.dumps(document), json.dumps(document, ensure_ascii=False, indent=1)):
            for bits in (0, 1, 0x14):
                yield bytes([bits, 6, 3, 4, 2, 9, 40, 99]) + text.encode()
    for text in ('{"prompt":"\\ud83d\\ude00\\ud800x\\u00e9"}', '{"\\u006dodel":"m"}', '{"prompt":[NaN,-Infinity,01]}'):
        yield b"\0\7\2\0" + text.encode()
    yield b"\0\7\2\0" + '{"model":"m"}'.encode("utf-16")
    yield b"\0\7\2\0" + b'{"x":' + b"[" * 600


def kv_events() -> Iterator[bytes]:
    """A real server's messages, and small ones of each form."""
    for line in (TESTS / "unit/prefixes/data/vllm-0.32.0-kv-events.jsonl").read_text().splitlines()[:20]:
        yield b"\1" + bytes.fromhex(json.loads(line)["frames_hex"][2])
    stored = ["BlockStored", [1, 2], None, list(range(16)), 8, None, "GPU"]
    for event in (
        *(stored, ["BlockStored", [b"x"], 2, list(range(8)), 8], ["BlockRemoved", [1]], ["AllBlocksCleared"]),
        *({"type": "BlockStored", "block_hashes": [3], "token_ids": list(range(8)), "block_size": 8}, ["New", 1]),
    ):
        packed = msgspec.msgpack.encode([1.5, [event, stored], 0])
        for bits in (0, 1, 2, 4, 24):
            yield bytes([bits]) + (b"" if bits & 1 else bytes([len(packed)])) + packed


def http2() -> Iterator[bytes]:
    """A conversation with everything in it, its parts, what ends a connection or a stream, and messages."""
    yield b"\0" + SCRIPT
    yield b"\1" + SCRIPT[len(GREETING) :]
    for raw, _ in (*FAULTS.values(), *STREAM_FAULTS.values()):
        yield b"\0" + raw
        yield b"\1" + raw.removeprefix(GREETING)
    for kind in range(11):
        yield b"\2\1\0\1\0\0" + bytes([kind, 4, 1, 1, 9, 9, 9, 9, 9]) * 3
    for sizes in ((0,), (5, 3), (200,), (1, 1, 1)):
        yield b"\3\xc7" + b"".join(bytes(4) + bytes([size]) + bytes(size) for size in sizes)


SEEDS = {
    "ext_proc": ext_proc,
    "responses": responses,
    "metrics_page": metrics_page,
    "config_file": config_file,
    "body_scan": body_scan,
    "kv_events": kv_events,
    "http2": http2,
}


def kept(target: str) -> list[bytes]:
    """Inputs of earlier runs that reach code which the seeds do not, and inputs that once failed."""
    path = CORPORA / f"{target}.txt"
    return [base64.b64decode(line) for line in path.read_text().splitlines()] if path.exists() else []
