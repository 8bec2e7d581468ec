"""gRPC over HTTP/2: message framing, status, deadlines.

Source: grpc/doc/PROTOCOL-HTTP2.md, grpc/doc/statuscodes.md."""

from __future__ import annotations

from struct import Struct

from headrace.protocol import http, rpc

OK, CANCELLED, UNKNOWN, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND = range(6)
RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 8, 12, 13, 14

PREFIX_BYTES = 5
PREFIX = Struct(">BI")

_SECONDS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_MAX_MESSAGE_CHARACTERS = 1024


class RpcFault(ValueError):  # noqa: N818
    """The peer broke gRPC on one stream, which ends with this status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def timeout_seconds(text: str) -> float:
    """A `grpc-timeout`. Raises ValueError."""
    digits, unit = text[:-1], text[-1:]
    if unit not in _SECONDS or not digits.isascii() or not digits.isdigit() or len(digits) > 8:
        raise ValueError(f"not a {rpc.TIMEOUT}")
    return int(digits) * _SECONDS[unit]


class MessageReader:
    """The messages in a stream's data, which may be cut anywhere. `held` bytes of one that is not whole are kept."""

    __slots__ = ("_max_bytes", "_pieces", "_wanted", "held")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._pieces: list[bytes] = []
        # The size of the message that has begun, with its prefix; 0 as long as the prefix is not whole.
        self._wanted = 0
        self.held = 0

    def feed(self, data: bytes, start: int, end: int) -> list[bytes]:
        """The messages that are whole with these bytes. Raises RpcFault; the messages before the fault are lost."""
        if self.held:
            self._pieces.append(data[start:end])
            self.held += end - start
            if self.held < (self._wanted or PREFIX_BYTES):
                return []
            data = b"".join(self._pieces)
            start, end = 0, len(data)
            self._pieces.clear()
            self._wanted = self.held = 0
        found: list[bytes] = []
        while end - start >= PREFIX_BYTES:
            compressed, size = PREFIX.unpack_from(data, start)
            self._check(compressed, size)
            stop = start + PREFIX_BYTES + size
            if stop > end:
                self._wanted = PREFIX_BYTES + size
                break
            found.append(data[start + PREFIX_BYTES : stop])
            start = stop
        if start < end:
            self._pieces.append(data[start:end])
            self.held = end - start
        return found

    def _check(self, compressed: int, size: int) -> None:
        if compressed == 1:
            raise RpcFault(UNIMPLEMENTED, "messages must not be compressed")
        if compressed:
            raise RpcFault(INTERNAL, f"a message with flags {compressed}")
        if size > self._max_bytes:
            raise RpcFault(RESOURCE_EXHAUSTED, f"a message of {size} bytes, over the limit of {self._max_bytes}")


def literal(name: bytes, value: bytes) -> bytes:
    """A header that no table keeps, its name and value as they are (RFC 7541, 6.2.2)."""
    return b"\x00" + _string(name) + _string(value)


def _string(text: bytes) -> bytes:
    size = len(text)
    if size < 127:
        return bytes((size,)) + text
    size -= 127
    out = bytearray(b"\x7f")
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    out.append(size)
    return bytes(out) + text


_STATUS_200 = b"\x88"
_CONTENT_TYPE = literal(http.CONTENT_TYPE.encode(), rpc.CONTENT_TYPE.encode())
_ACCEPT_ENCODING = literal(rpc.ACCEPT_ENCODING.encode(), b"identity")

RESPONSE_HEADERS = _STATUS_200 + _CONTENT_TYPE


def trailers(status: int, message: str = "") -> bytes:
    """The header block that ends a stream which has been answered."""
    block = literal(rpc.STATUS.encode(), str(status).encode())
    if message:
        block += literal(rpc.MESSAGE.encode(), _percent_encoded(message))
    if status == UNIMPLEMENTED:
        block += _ACCEPT_ENCODING
    return block


def trailers_only(status: int, message: str = "") -> bytes:
    """The header block that is the whole of an answer."""
    return RESPONSE_HEADERS + trailers(status, message)


def http_error(status: int) -> bytes:
    """The header block of an answer to a request that is not gRPC."""
    return literal(http.STATUS.encode(), str(status).encode()) + literal(http.CONTENT_TYPE.encode(), b"text/plain")


def _percent_encoded(message: str) -> bytes:
    out = bytearray()
    for byte in message[:_MAX_MESSAGE_CHARACTERS].encode("utf-8", "replace"):
        if 0x20 <= byte <= 0x7E and byte != 0x25:
            out.append(byte)
        else:
            out += b"%%%02X" % byte
    return bytes(out)
