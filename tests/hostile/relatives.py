"""What strangers can send: relatives of attacks that worked once, made anew from a seed.

The rows are those of a list of attacks on the picker and the gateway controller, tried on real processes: 2 and 3
request bodies, 6 model names, 7 metrics pages, 8 KV cache events, 9 uploads that stop, 10 objects of the API server,
11 lines of its watches, 19 watches that say nothing. Nothing large is made before it is wanted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

import msgspec

from tests.malformed import DIGITS, pod

MIB = 1 << 20
COUNT = 32
ROWS = (2, 3, 6, 7, 8, 9, 10, 11, 19)
CHAT, COMPLETIONS, OTHER = "/v1/chat/completions", "/v1/completions", "/anything"


@dataclass(frozen=True)
class Body:
    """A request. `piece`: bytes of its body a message, 0 for all in one."""

    name: str
    make: Callable[[], bytes]
    path: str = COMPLETIONS
    piece: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Names:
    """Requests for models of invented names."""

    name: str
    models: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """A server's metrics page. `pause`: seconds before each piece."""

    name: str
    pieces: Callable[[], Iterator[bytes]]
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200
    pause: float = 0.0


@dataclass(frozen=True)
class Messages:
    """What a server publishes of its KV cache: frames, so many times."""

    name: str
    frames: Callable[[], list[bytes]]
    times: int = 1


@dataclass(frozen=True)
class Uploads:
    """Bodies that stop short of their end: so many, of `size` bytes in pieces of `piece`."""

    name: str
    count: int
    size: int
    piece: int


@dataclass(frozen=True)
class Thing:
    """An object of a watched kind."""

    name: str
    kind: str
    found: Any


@dataclass(frozen=True)
class Lines:
    """Lines of a watch."""

    name: str
    lines: tuple[bytes, ...]


@dataclass(frozen=True)
class Watch:
    """How the API server answers the next watches: see `ListWatchServer.manners`."""

    name: str
    manner: str


Relative = Body | Names | Page | Messages | Uploads | Thing | Lines | Watch


def relatives(row: int, seed: int = 0, count: int = COUNT) -> list[Relative]:
    """So many different relatives of a row. The same seed makes the same ones."""
    rng = Random(f"{row} {seed}")
    made: dict[str, Relative] = {}
    while len(made) < count:
        one = _MAKERS[row](rng)
        made.setdefault(one.name, one)
    return list(made.values())


# ---- 2 and 3: bodies ----

_ATOMS = (
    b"[]",
    b"{}",
    b'""',
    b'{"":0}',
    b"[[],[]]",
    b"0",
    b"1e9",
    b"-0.5",
    b"null",
    b'"\\u00e9"',
    b'"\\ud83d\\ude00"',
    b"[[[[]]]]",
)
_PLACES: Mapping[str, tuple[bytes, bytes]] = {
    "x": (b'{"x":[', b"]}"),
    "prompt": (b'{"model":"m","prompt":[', b"]}"),
    "messages": (b'{"messages":[', b'],"model":"m"}'),
    "content": (b'{"model":"m","messages":[{"role":"user","content":[', b"]}]}"),
    "tools": (b'{"model":"m","tools":[', b'],"prompt":"p"}'),
    "sampling_params": (b'{"sampling_params":{"stop":[', b']},"model":"m"}'),
    "after the model": (b'{"model":"m","model":"n","metadata":{"k":[', b"]}}"),
}
_SIZES = (1000, 100_000, 255 << 10, 300 << 10, MIB, 4 * MIB, 8 * MIB - 100, 8 * MIB + 1, 20 * MIB, 60 * MIB)


def _filled(before: bytes, atom: bytes, after: bytes, size: int) -> bytes:
    return before + (atom + b",") * ((size - len(before)) // (len(atom) + 1)) + b"0" + after


def _body(rng: Random, most: int = 60 * MIB) -> Body:
    size = rng.choice([size for size in _SIZES if size <= most])
    piece = rng.choice([0, 1 << 16, 60_000, 5000]) if size > 100_000 else rng.choice([0, 1 << 16, 7, 100])
    path = rng.choice([CHAT, COMPLETIONS, OTHER])
    shape = rng.choice(["atoms", "atoms", "atoms", "text", "deep", "keys", "cut", "bytes", "wide", "model", "number"])
    headers = {"x-gateway-model-name-rewrite": "other"} if rng.random() < 0.2 else {}
    place = rng.choice(list(_PLACES))
    before, after = _PLACES[place]
    atom = rng.choice(_ATOMS)

    def make() -> bytes:
        if shape == "text":
            return b'{"model":"m","prompt":"' + atom.strip(b'"').replace(b'"', b'\\"') * (size // len(atom)) + b'"}'
        if shape == "deep":
            return before + b"[" * (size // 2) + b"]" * (size // 2) + after
        if shape == "keys":
            return b"{" + b",".join(b'"%x":%b' % (n, atom) for n in range(min(size // 12, 400_000))) + b"}"
        if shape == "cut":
            return _filled(before, atom, after, size)[: -len(after) - 1]
        if shape == "bytes":
            return b"{" + bytes(range(256)) * (size // 256)
        if shape == "wide":
            return _filled(before, atom, after, size // 2).decode().encode("utf-16")
        if shape == "model":
            return b'{"model":"' + b"\\u006d" * (size // 6) + b'","prompt":"p"}'
        if shape == "number":
            return before + b"1" * size + after
        return _filled(before, atom, after, size)

    what = {
        "atoms": f"{atom.decode()} in {place}",
        "text": f"text of {atom.decode()}",
        "keys": f"keys of {atom.decode()}",
    }
    name = f"{what.get(shape, shape)}, {size} bytes by {piece or 'all'} to {path}{', renamed' if headers else ''}"
    return Body(name, make, path, piece, headers)


# ---- 6: names ----


def _names(rng: Random) -> Names:
    length = rng.choice([1, 16, 63, 64, 65, 256, 1000, 1024])
    alphabet = rng.choice(["abc", "a/b-", 'q"\\\n', "\x00\x1f ", "é", "😀", "{}=,"])
    count = rng.choice([1, 50, 200, 1000])
    models = tuple(
        (alphabet * length)[: max(0, length - 6)] + f"{rng.getrandbits(24):06x}"[:length] for _ in range(count)
    )
    return Names(f"{count} names of {length} from {alphabet!r}", models)


# ---- 7: pages ----

_GOOD = b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n"
_METRICS = (
    *(
        b"vllm:num_requests_running",
        b"vllm:num_requests_waiting",
        b"vllm:lora_requests_info",
        b"vllm:cache_config_info",
    ),
    *(b"vllm:kv_cache_usage_perc", b"vllm:num_requests_runnin", b"x"),
)


def _page(rng: Random) -> Page:
    metric = rng.choice(_METRICS)
    label = rng.choice([b"model_name", b"running_lora_adapters", b"waiting_lora_adapters", b"block_size", b"engine"])
    size = rng.choice([100_000, MIB, 8 * MIB, 40 * MIB])
    value = rng.choice([b"1", b"NaN", b"-1", b"1e999", b"9" * 5000, b"0x10", b""])
    filler = rng.choice([b"x", b'\\"', b"a,", b"\\\\", b"{", b"\xff", b"\xc3\xa9"])
    shape = rng.choice(
        ["one label", "series", "no end", "comments", "nothing", "status", "packed", "slow", "labels", "same"]
    )

    def pieces() -> Iterator[bytes]:
        step = filler * (32768 // len(filler))
        if shape in ("one label", "slow"):
            yield metric + b"{" + label + b'="'
            for _ in range(size // len(step) if shape == "one label" else 50):
                yield step
            yield b'"} ' + value + b"\n"
        elif shape == "series":
            for at in range(0, size, 100 * 50):
                yield b"".join(b'%b{%b="%d%b"} %b\n' % (metric, label, at + n, filler, value) for n in range(50))
        elif shape == "no end":
            for _ in range(size // len(step)):
                yield step
        elif shape == "comments":
            for _ in range(size // 30_000):
                yield b"# " + filler * 10 + b"\n" * 30_000
        elif shape == "labels":
            yield metric + b"{" + b'a="",' * (size // 5 % 20_000) + b"} " + value + b"\n"
        elif shape == "same":
            for _ in range(size // 30_000):
                yield (metric + b'{a="b"} ' + value + b"\n") * (30_000 // (len(metric) + len(value) + 10))
        elif shape != "nothing":
            yield _GOOD

    headers = {"content-encoding": rng.choice(["gzip", "br", "deflate"])} if shape == "packed" else {}
    status = rng.choice([204, 301, 404, 500, 503]) if shape == "status" else 200
    name = f"{shape}: {metric.decode()} {label.decode()} {filler!r} {value[:8]!r} {size} {status}{headers or ''}"
    return Page(name, pieces, headers, status, 0.05 if shape == "slow" else 0.0)


# ---- 8: KV cache events ----


def _messages(rng: Random) -> Messages:
    count = rng.choice([1, 100, 9_999, 10_001, 200_000])
    blocks = rng.choice([1, 100, 8_000, 40_000])
    size = rng.choice([-1, 0, 1, 7, 8, 16, 1 << 16, 1 << 40])
    times = rng.choice([1, 20, 300])
    shape = rng.choice(
        ["stored", "stored", "removed", "arrays", "cleared", "deep", "bytes", "frames", "unknown", "parents"]
    )

    def packed() -> bytes:
        tokens = list(range(max(0, min(size, 1 << 16)) * min(blocks, 2000)))[:200_000]
        hashes = list(range(min(blocks, 40_000)))
        event: Any
        if shape == "stored":
            event = {"type": "BlockStored", "block_hashes": hashes, "token_ids": tokens, "block_size": size}
        elif shape == "parents":
            event = ["BlockStored", hashes[:1], 0, list(range(8)), 8, None, "GPU"]
        elif shape == "removed":
            event = ["BlockRemoved", hashes, "GPU"]
        elif shape == "cleared":
            event = ["AllBlocksCleared"]
        elif shape == "unknown":
            event = {"type": "x" * 1000, "more": [[]] * 100}
        else:
            event = []
        if shape == "deep":
            return b"\x91" * min(count * 100, MIB) + b"\xc0"
        if shape == "bytes":
            return rng_bytes
        fitting = max(1, min(count, 16 * MIB // max(1, len(msgspec.msgpack.encode(event)))))
        return msgspec.msgpack.encode([0.0, [event] * fitting, 0])

    rng_bytes = rng.randbytes(1000)

    def frames() -> list[bytes]:
        if shape == "frames":
            return [b"kv@x"] * (count % 7) + [b"x" * 1000]
        return [b"kv@pod@model", (0).to_bytes(8, "big"), packed()]

    return Messages(f"{shape}: {count} events of {blocks} blocks of {size}, {times} times", frames, times)


# ---- 9: uploads ----


def _uploads(rng: Random) -> Uploads:
    count = rng.choice([1, 5, 20, 50])
    size = rng.choice([0, 100, 60_000, MIB, 13 * MIB, 20 * MIB, 63 * MIB])
    piece = rng.choice([60_000, 1 << 16, MIB]) if size > 100 else rng.choice([1, 100])
    # No more than the machine that tests can send in some seconds.
    count = max(1, min(count, 400 * MIB // max(1, size)))
    return Uploads(f"{count} of {size} bytes by {piece}", count, size, piece)


# ---- 10: objects ----

_ODD: tuple[Any, ...] = (
    *(None, True, -1, 1 << 70, 1.5, "", DIGITS, "x" * 100_000, [], {}, [None], {"a": {"b": []}}, "\x00", "a,8000", "é"),
    *([["x"] * 1000], {str(n): n for n in range(2000)}),
)


def _thing(rng: Random) -> Thing:
    kind = rng.choice(["pods", "pods", "inferencepools", "inferenceobjectives", "inferencemodelrewrites"])
    place = rng.choice(_FIELDS[kind])
    value = rng.choice(_ODD)
    found = json.loads(json.dumps(_OBJECTS[kind]))
    found["metadata"]["name"] = f"odd-{rng.getrandbits(16):04x}"
    *path, last = place.split("|")
    holder = found
    for name in path:
        holder = holder.setdefault(name, {})
    holder[last] = value
    return Thing(f"{kind} {place}={json.dumps(value)[:30]}", kind, found)


_FIELDS: Mapping[str, tuple[str, ...]] = {
    "pods": (
        *("metadata|uid", "metadata|labels", "metadata|annotations", "metadata|deletionTimestamp", "spec|nodeName"),
        *(
            "metadata|annotations|inference.networking.k8s.io/active-ports",
            "status|podIP",
            "status|phase",
            "status|conditions",
            "metadata|labels|app",
        ),
        *("status|podIPs", "metadata|creationTimestamp", "spec", "status"),
    ),
    "inferencepools": (
        "spec|selector",
        "spec|targetPorts",
        "spec|endpointPickerRef",
        "spec",
        "status",
        "metadata|labels",
    ),
    "inferenceobjectives": ("spec|priority", "spec|poolRef", "spec", "metadata|creationTimestamp"),
    "inferencemodelrewrites": ("spec|rules", "spec|poolRef", "spec", "metadata|creationTimestamp"),
}
_OBJECTS: Mapping[str, Any] = {
    "pods": pod("odd", "127.0.0.9"),
    "inferencepools": {
        "metadata": {"name": "odd", "namespace": "n", "uid": "odd", "resourceVersion": "1"},
        "spec": {"selector": {"matchLabels": {"app": "m"}}, "targetPorts": [{"number": 8000}]},
    },
    "inferenceobjectives": {
        "metadata": {"name": "odd", "namespace": "n", "uid": "odd", "resourceVersion": "1"},
        "spec": {"poolRef": {"name": "p"}, "priority": 1},
    },
    "inferencemodelrewrites": {
        "metadata": {"name": "odd", "namespace": "n", "uid": "odd", "resourceVersion": "1"},
        # Another pool's: one of ours would rewrite what ordinary requests ask for.
        "spec": {"poolRef": {"name": "other"}, "rules": [{"targets": [{"modelRewrite": "t"}]}]},
    },
}


# ---- 11: lines ----


def _lines(rng: Random) -> Lines:
    kinds = ["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR", "", "odd", "x" * 10_000]
    value: Any = rng.choice(
        [None, [], {}, 7, "x", True, {"metadata": None}, {"metadata": {"name": []}}, {"kind": "Status"}]
    )
    line = rng.choice(
        [
            json.dumps(value).encode(),
            json.dumps({"type": rng.choice(kinds), "object": value}).encode(),
            json.dumps({"type": rng.choice(_ODD[:8]), "object": value}).encode(),
            rng.randbytes(rng.choice([1, 100, 10_000])).replace(b"\n", b" "),
            b"[" * rng.choice([10, 1000, 1_000_000]),
            b'{"type":"ADDED","object":' + b"1" * rng.choice([10, 5000, 1_000_000]),
            b"",
            b'{"type":"ADDED","object":{"metadata":{"name":"%b"}}}' % (b"x" * rng.choice([1, 300, 3_000_000])),
        ]
    )
    times = rng.choice([1, 1, 3, 100])
    return Lines(f"{times} times {line[:60]!r} of {len(line)} bytes", (line,) * times)


# ---- 19: watches ----


def _watch(rng: Random) -> Watch:
    manner = rng.choice(["silent", "half", "end", "headers", "gone", "refused", "garbage", "slow"])
    # The number makes them different: what differs is when in the life of a watch they come.
    return Watch(f"{manner} after {rng.randrange(100) / 10:g} s", manner)


_MAKERS: Mapping[int, Callable[[Random], Relative]] = {
    2: _body,
    3: lambda rng: _body(rng, 20 * MIB),
    6: _names,
    7: _page,
    8: _messages,
    9: _uploads,
    10: _thing,
    11: _lines,
    19: _watch,
}
