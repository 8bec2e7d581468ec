"""KV cache events of vLLM: which blocks a server has stored and dropped, as it says itself.

A message has three frames: topic, sequence number (8 bytes, big endian), and in msgpack `[time, [event, ...], rank]`.
An event is an array that begins with its type's name; fields that a server does not send are taken as not there.
Source: vLLM 0.32.0, `kv_events.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

# A batch of a long prompt's blocks is some hundred kilobytes.
MAX_MESSAGE_BYTES = 16 << 20
# Tiers that a request can use without loading blocks back first; older servers name none.
_GPU = (None, "GPU", "gpu")

BlockHash = int | bytes


class MalformedEvents(ValueError):  # noqa: N818
    """A message that is not a batch of events."""


@dataclass(frozen=True, slots=True)
class BlocksStored:
    """Blocks were filled, one after the other: `hashes` are the server's names for them, `parent` that of the block
    before the first (None: they begin a prompt). `tokens` are those of all the blocks, `block_size` each."""

    hashes: tuple[BlockHash, ...]
    parent: BlockHash | None
    tokens: tuple[int, ...]
    block_size: int
    # The adapter's name, "" for the base model, None where only a number is known.
    adapter: str | None = ""


@dataclass(frozen=True, slots=True)
class BlocksRemoved:
    """Blocks are gone."""

    hashes: tuple[BlockHash, ...]


@dataclass(frozen=True, slots=True)
class AllCleared:
    """All blocks are gone."""


Event = BlocksStored | BlocksRemoved | AllCleared


@dataclass(frozen=True, slots=True)
class Batch:
    """A message: its number, counted up by the server, and what it tells."""

    sequence: int
    events: tuple[Event, ...]


def read_batch(frames: Sequence[bytes]) -> Batch:
    """The batch of a message's frames. Events of other types, and of other tiers than the GPU, are left out.

    Raises MalformedEvents."""
    if len(frames) != 3 or len(frames[1]) != 8:
        raise MalformedEvents(f"{len(frames)} frames: a topic, a number of 8 bytes and a batch are wanted")
    if len(frames[2]) > MAX_MESSAGE_BYTES:
        raise MalformedEvents(f"a batch of {len(frames[2])} bytes; at most {MAX_MESSAGE_BYTES} are read")
    try:
        batch = msgspec.msgpack.decode(frames[2])
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise MalformedEvents(f"the batch is not msgpack: {str(error)[:100]}") from None
    if not isinstance(batch, list) or len(batch) < 2 or not isinstance(batch[1], list):
        raise MalformedEvents("the batch is not [time, [event, ...], rank]")
    events = tuple(event for raw in batch[1] if (event := _event(raw)) is not None)
    return Batch(int.from_bytes(frames[1], "big"), events)


def _event(raw: object) -> Event | None:
    if not isinstance(raw, list) or not raw:
        raise MalformedEvents("an event is not an array")
    fields: list[object] = [*raw, *[None] * 8]
    if fields[0] == "BlockStored":
        return _stored(fields)
    if fields[0] == "BlockRemoved":
        return BlocksRemoved(_hashes(fields[1])) if fields[2] in _GPU else None
    return AllCleared() if fields[0] == "AllBlocksCleared" else None


def _stored(fields: list[object]) -> BlocksStored | None:
    _, hashes, parent, tokens, block_size, lora_id, medium, lora_name, *_ = fields
    if medium not in _GPU:
        return None
    if not isinstance(block_size, int) or block_size <= 0:
        raise MalformedEvents(f"BlockStored: block_size {str(block_size)[:20]} is not a number over 0")
    if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < 1 << 32 for token in tokens):
        raise MalformedEvents("BlockStored: token_ids are not numbers")
    if parent is not None and not isinstance(parent, int | bytes):
        raise MalformedEvents("BlockStored: parent_block_hash is no hash")
    named = _hashes(hashes)
    if len(tokens) != len(named) * block_size:
        raise MalformedEvents(f"BlockStored: {len(tokens)} tokens for {len(named)} blocks of {block_size}")
    adapter = "" if lora_id is None and not lora_name else lora_name if isinstance(lora_name, str) else None
    return BlocksStored(named, parent, tuple(tokens), block_size, adapter)


def _hashes(raw: object) -> tuple[BlockHash, ...]:
    if not isinstance(raw, list) or not all(isinstance(name, int | bytes) for name in raw):
        raise MalformedEvents("block_hashes are no hashes")
    return tuple(raw)
