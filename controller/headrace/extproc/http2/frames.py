"""Frames of HTTP/2: their numbers, how they are written, and the two kinds of error they can be.

Source: RFC 9113, sections 4, 6 and 7."""

from __future__ import annotations

from struct import Struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY_FIELDS = 0x20

HEADER_BYTES = 9
# The size that every peer must take, and the one that we do.
MAX_FRAME_BYTES = 16_384
DEFAULT_WINDOW = 65_535
MAX_WINDOW = MAX_STREAM_ID = (1 << 31) - 1

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = (
    range(1, 7)
)

ERRORS = (
    *("NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED"),
    *("FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM"),
)
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, SETTINGS_TIMEOUT, STREAM_CLOSED = range(6)
FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, CONNECT_ERROR, ENHANCE_YOUR_CALM = range(6, 12)

# Length in two parts, type, flags, stream.
HEADER = Struct(">BHBBI")
NUMBER = Struct(">I")
SETTING = Struct(">HI")
_GOAWAY = Struct(">II")


class ConnectionFault(ValueError):  # noqa: N818
    """The peer broke the protocol: the connection ends with GOAWAY and this code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class StreamFault(ValueError):  # noqa: N818
    """The peer broke the protocol on one stream, which ends with RST_STREAM and this code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """A frame of less than 16 MiB."""
    size = len(payload)
    return HEADER.pack(size >> 16, size & 0xFFFF, kind, flags, stream_id) + payload


def settings(*values: tuple[int, int]) -> bytes:
    """A SETTINGS frame of (identifier, value)."""
    return frame(SETTINGS, 0, 0, b"".join(SETTING.pack(*value) for value in values))


def window_update(stream_id: int, increment: int) -> bytes:
    """Allow so many more bytes; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream_id, NUMBER.pack(increment))


def rst_stream(stream_id: int, code: int) -> bytes:
    """End a stream at once."""
    return frame(RST_STREAM, 0, stream_id, NUMBER.pack(code))


def goaway(last_stream_id: int, code: int, reason: str = "") -> bytes:
    """Say that streams above this one are not served."""
    return frame(GOAWAY, 0, 0, _GOAWAY.pack(last_stream_id, code) + reason.encode())


def padded(flags: int, data: bytes, start: int, end: int) -> tuple[int, int]:
    """Where the content of a DATA or HEADERS frame is, without its padding. Raises ConnectionFault."""
    if flags & PADDED:
        if start == end:
            raise ConnectionFault(FRAME_SIZE_ERROR, "a padded frame without the length of its padding")
        end -= data[start]
        start += 1
        if end < start:
            raise ConnectionFault(PROTOCOL_ERROR, "padding longer than its frame")
    return start, end
