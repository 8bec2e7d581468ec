"""KV cache events of vLLM: which blocks a server has stored and dropped, as it says itself.

A message has three frames: topic, sequence number (8 bytes, big endian), and in msgpack `[time, [event, ...], rank]`.
An event is a map with its type's name under `type` (since June 2026), or an array that begins with that name. Fields
that a server does not send are taken as not there; those that are not known here are skipped, as are unknown events.
Source: vLLM 0.32.0, `kv_events.py`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

# A server tells of what one step computed: some 16,000 tokens of up to 5 bytes, or a long prompt loaded at once. What
# is decoded takes up to 16 times as much memory.
MAX_MESSAGE_BYTES = 1 << 20
_MAX_EVENTS = 10_000
# Of all events of a message: half a million tokens in blocks of 16. The index takes about 3 us for each.
_MAX_BLOCKS = 32_768
# Events and blocks that are taken without a turn for others.
_PART = 512
# Smaller ones make a pick hash thousands of blocks; hybrid models have blocks of some thousand tokens.
MIN_BLOCK_SIZE, MAX_BLOCK_SIZE = 8, 65_536
# Tiers that a request can use without loading blocks back first; older servers name none.
_GPU = (None, "GPU", "gpu")

BlockHash = int | bytes


class MalformedEvents(ValueError):  # noqa: N818
    """A message that is not a batch of events, or beyond a limit."""


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
    """A message: its number, counted up by the server, and what it tells. `continued`: the rest of one whose beginning
    was taken already."""

    sequence: int
    events: tuple[Event, ...]
    continued: bool = False


class _Stored(Struct):
    """The fields of BlockStored, in the order of the array."""

    block_hashes: tuple[BlockHash, ...]
    parent_block_hash: BlockHash | None
    token_ids: tuple[Annotated[int, Meta(ge=0, lt=1 << 32)], ...]
    block_size: Annotated[int, Meta(ge=MIN_BLOCK_SIZE, le=MAX_BLOCK_SIZE)]
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None


class _Removed(Struct):
    """The fields of BlockRemoved, in the order of the array."""

    block_hashes: tuple[BlockHash, ...]
    medium: str | None = None


class _StoredMap(_Stored, tag_field="type", tag="BlockStored"):
    # Of a model with several kinds of attention each group of layers has blocks of its own.
    group_idx: int | None = None


class _RemovedMap(_Removed, tag_field="type", tag="BlockRemoved"):
    group_idx: int | None = None


class _ClearedMap(Struct, tag_field="type", tag="AllBlocksCleared"):
    pass


class _StoredArray(_Stored, array_like=True, tag="BlockStored"):
    pass


class _RemovedArray(_Removed, array_like=True, tag="BlockRemoved"):
    pass


class _ClearedArray(Struct, array_like=True, tag="AllBlocksCleared"):
    pass


class _MapHead(Struct):
    type: str


class _ArrayHead(Struct, array_like=True):
    type: str


class _Message(Struct, array_like=True):
    time: Any
    events: Annotated[list[msgspec.Raw], Meta(max_length=_MAX_EVENTS)]


_TYPES = frozenset(("BlockStored", "BlockRemoved", "AllBlocksCleared"))
_message = msgspec.msgpack.Decoder(_Message)
# msgspec has no union of maps and arrays.
_map = msgspec.msgpack.Decoder(_StoredMap | _RemovedMap | _ClearedMap)
_array = msgspec.msgpack.Decoder(_StoredArray | _RemovedArray | _ClearedArray)
_map_head = msgspec.msgpack.Decoder(_MapHead)
_array_head = msgspec.msgpack.Decoder(_ArrayHead)


def read_batch(frames: Sequence[bytes]) -> Batch:
    """The batch of a message's frames. Events of other types, of other tiers than the GPU, and of other groups of
    layers than the first are left out.

    Raises MalformedEvents."""
    sequence, raws = _opened(frames)
    return Batch(sequence, tuple(_events(raws)))


def read_parts(frames: Sequence[bytes]) -> Iterator[Batch]:
    """The same in parts of so many events and blocks that reading and taking one holds up nobody.

    Raises MalformedEvents: parts before it count."""
    sequence, raws = _opened(frames)
    continued, weight = False, 0
    part: list[Event] = []
    for event in _events(raws):
        for piece in _pieces(event):
            part.append(piece)
            weight += 1 + (len(piece.hashes) if not isinstance(piece, AllCleared) else 0)
            if weight >= _PART:
                yield Batch(sequence, tuple(part), continued)
                continued, weight = True, 0
                part = []
    if part or not continued:
        yield Batch(sequence, tuple(part), continued)


def _pieces(event: Event) -> Iterator[Event]:
    """An event as several ones of at most _PART blocks that come to the same."""
    if isinstance(event, AllCleared) or len(event.hashes) <= _PART:
        yield event
        return
    for at in range(0, len(event.hashes), _PART):
        hashes = event.hashes[at : at + _PART]
        if isinstance(event, BlocksRemoved):
            yield BlocksRemoved(hashes)
            continue
        size = event.block_size
        parent = event.hashes[at - 1] if at else event.parent
        yield BlocksStored(hashes, parent, event.tokens[at * size : (at + _PART) * size], size, event.adapter)


def _opened(frames: Sequence[bytes]) -> tuple[int, list[msgspec.Raw]]:
    """A message's number, and its events unread. Raises MalformedEvents."""
    if len(frames) != 3 or len(frames[1]) != 8:
        raise MalformedEvents(f"{len(frames)} frames: a topic, a number of 8 bytes and a batch are wanted")
    if len(frames[2]) > MAX_MESSAGE_BYTES:
        raise MalformedEvents(f"a batch of {len(frames[2])} bytes; at most {MAX_MESSAGE_BYTES} are read")
    try:
        return int.from_bytes(frames[1], "big"), _message.decode(frames[2]).events
    except _UNREADABLE as error:
        raise _malformed(error) from None


def _events(raws: Iterable[msgspec.Raw]) -> Iterator[Event]:
    """The events that count. Raises MalformedEvents."""
    blocks = 0
    for raw in raws:
        try:
            event = _event(raw)
        except _UNREADABLE as error:
            raise _malformed(error) from None
        if event is None:
            continue
        blocks += len(event.hashes) if not isinstance(event, AllCleared) else 0
        if blocks > _MAX_BLOCKS:
            raise MalformedEvents(f"a batch of over {_MAX_BLOCKS} blocks")
        yield event


_UNREADABLE = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)


def _malformed(error: Exception) -> MalformedEvents:
    return MalformedEvents(f"the batch is not [time, [event, ...], rank]: {str(error)[:200]}")


def _event(raw: msgspec.Raw) -> Event | None:
    # In msgpack 0x80 to 0x8f, 0xde and 0xdf begin a map.
    first = memoryview(raw)[0]
    is_map = first & 0xF0 == 0x80 or first in (0xDE, 0xDF)
    try:
        found = _map.decode(raw) if is_map else _array.decode(raw)
    except msgspec.ValidationError:
        if (_map_head.decode(raw) if is_map else _array_head.decode(raw)).type in _TYPES:
            raise
        return None
    if isinstance(found, _ClearedMap | _ClearedArray):
        return AllCleared()
    if found.medium not in _GPU or (isinstance(found, _StoredMap | _RemovedMap) and found.group_idx):
        return None
    if isinstance(found, _Removed):
        return BlocksRemoved(found.block_hashes)
    if len(found.token_ids) != len(found.block_hashes) * found.block_size:
        count, size = len(found.block_hashes), found.block_size
        raise MalformedEvents(f"BlockStored: {len(found.token_ids)} tokens for {count} blocks of {size}")
    adapter = found.lora_name or ("" if found.lora_id is None else None)
    return BlocksStored(found.block_hashes, found.parent_block_hash, found.token_ids, found.block_size, adapter)
