"""Header blocks put together of HEADERS and CONTINUATION frames."""

from __future__ import annotations

from typing import NamedTuple

from headrace.extproc.http2.frames import (
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FRAME_SIZE_ERROR,
    NUMBER,
    PADDED,
    PRIORITY_FIELDS,
    PROTOCOL_ERROR,
    ConnectionFault,
    padded,
)

_PRIORITY_BYTES = 5
# A block of the greatest size needs no more than this, unless it is sent in crumbs.
_MOST_CONTINUATIONS = 8


class Block(NamedTuple):
    """A whole header block. `depends_on` is the stream that the priority names, -1 for none."""

    stream_id: int
    content: bytes
    end_stream: bool
    depends_on: int


class BlockReader:
    """`open` as long as a block is not whole: then only its CONTINUATION may follow. `max_bytes` bounds a block."""

    __slots__ = ("_begun", "_continuations", "_max_bytes", "open")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._begun = Block(0, b"", False, -1)
        self._continuations = 0
        self.open = False

    def headers(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> Block | None:
        """The block that a HEADERS frame has, or None where it only begins there. Raises ConnectionFault."""
        if flags & END_HEADERS and not flags & (PADDED | PRIORITY_FIELDS) and end - start <= self._max_bytes:
            return Block(stream_id, data[start:end], bool(flags & END_STREAM), -1)
        start, end = padded(flags, data, start, end)
        depends_on = -1
        if flags & PRIORITY_FIELDS:
            if end - start < _PRIORITY_BYTES:
                raise ConnectionFault(FRAME_SIZE_ERROR, "HEADERS too short for its priority")
            depends_on = NUMBER.unpack_from(data, start)[0] & 0x7FFFFFFF
            start += _PRIORITY_BYTES
        block = Block(stream_id, data[start:end], bool(flags & END_STREAM), depends_on)
        if flags & END_HEADERS:
            return self._whole(block)
        self._begun = block
        self._continuations = 0
        self.open = True
        return None

    def continuation(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> Block | None:
        """The block, where it is whole now. Raises ConnectionFault."""
        begun = self._begun
        if not self.open or stream_id != begun.stream_id:
            raise ConnectionFault(PROTOCOL_ERROR, "CONTINUATION of no header block")
        self._continuations += 1
        begun = begun._replace(content=begun.content + data[start:end])
        if self._continuations > _MOST_CONTINUATIONS:
            raise ConnectionFault(ENHANCE_YOUR_CALM, "a header block in too many frames")
        if flags & END_HEADERS:
            self.open = False
            return self._whole(begun)
        self._begun = self._whole(begun)
        return None

    def expect(self, kind: int) -> None:
        """A frame of this type comes while a block is open. Raises ConnectionFault."""
        if kind != CONTINUATION:
            raise ConnectionFault(PROTOCOL_ERROR, "another frame within a header block")

    def _whole(self, block: Block) -> Block:
        if len(block.content) > self._max_bytes:
            raise ConnectionFault(ENHANCE_YOUR_CALM, f"a header block of more than {self._max_bytes} bytes")
        return block
