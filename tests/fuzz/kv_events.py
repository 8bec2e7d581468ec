"""Messages of KV cache events, and what the index makes of them.

Only MalformedEvents may come out; the index never has more blocks than it may have."""

from __future__ import annotations

from headrace.prefixes.kv_events import MalformedEvents, read_batch
from headrace.prefixes.precise import PreciseIndex

from .reader import Reader

# No endpoint has fewer places.
MOST_BLOCKS = 512
KEYS = ("10.0.0.1:8000", "10.0.0.2:8000")


def target(data: bytes) -> None:
    """One input: some messages of two servers."""
    reader = Reader(data)
    index = PreciseIndex(max_blocks=2 * MOST_BLOCKS)
    for key in KEYS:
        index.add(key)
    bits = reader.byte()
    sequence = 0
    while not reader.done and sequence < 8:
        payload = reader.rest() if bits & 1 else reader.piece()
        if bits & 2:
            payload = payload * 16
        frames = [b"topic", sequence.to_bytes(8, "big"), payload] if not bits & 4 else [payload] * (bits >> 3 & 3)
        sequence += 1
        try:
            batch = read_batch(frames)
        except MalformedEvents as error:
            assert str(error)
            assert len(str(error)) < 1000
            continue
        index.apply(KEYS[sequence % 2], batch)
    assert all(index.entries(key) <= MOST_BLOCKS for key in KEYS)
    for key in KEYS:
        index.remove(key)
    assert len(index) == 0
