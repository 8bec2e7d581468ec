"""Header blocks of requests: HPACK, and what HTTP/2 and gRPC ask of the headers.

A gateway writes the same few blocks again and again. We allow it no table (SETTINGS_HEADER_TABLE_SIZE 0), so that equal
bytes mean equal headers: what a block says is kept by its bytes. Not before the peer has acknowledged that, and given
its table up: until then it may write blocks that refer to earlier ones. A peer that never does is served all the same.
Source: RFC 7541; RFC 9113, section 8; grpc/doc/PROTOCOL-HTTP2.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hpack import Decoder, HPACKError, OversizedHeaderListError

from headrace.extproc.http2.frames import (
    COMPRESSION_ERROR,
    ENHANCE_YOUR_CALM,
    PROTOCOL_ERROR,
    ConnectionFault,
    StreamFault,
)
from headrace.extproc.http2.grpc import timeout_seconds
from headrace.protocol import http, rpc

_MOST_KEPT = 256
_MOST_KEPT_BYTES = 1024

# Of HTTP/1.
_CONNECTION_SPECIFIC = frozenset(("connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade"))
_REQUIRED = frozenset((http.METHOD, http.SCHEME, http.PATH))
_PSEUDO = _REQUIRED | {http.HOST_NAMED}
_TYPES = (f"{rpc.CONTENT_TYPE}+", f"{rpc.CONTENT_TYPE};")


class RequestHeaders(NamedTuple):
    """What a request's headers say. Of a name that comes several times `metadata` has the last value.

    `refusal` is the HTTP status for what is not gRPC, 0 for what is. `timeout` is in seconds; `content_length` is -1
    where it is not said."""

    path: str
    metadata: Mapping[str, str]
    timeout: float | None = None
    content_length: int = -1
    refusal: int = 0


class HeaderReader:
    """Decodes the header blocks of one connection, in their order. `max_bytes` bounds a block's decoded size."""

    __slots__ = ("_acknowledged", "_decoder", "_kept", "_without_table")

    def __init__(self, max_bytes: int) -> None:
        self._decoder = Decoder(max_header_list_size=max_bytes)
        # None for trailers, which nobody reads.
        self._kept: dict[bytes, RequestHeaders] = {}
        self._acknowledged = self._without_table = False

    def acknowledge(self) -> None:
        """The peer has acknowledged that it is allowed no table."""
        self._acknowledged = True

    def request(self, block: bytes) -> RequestHeaders:
        """The headers of a request. Raises ConnectionFault for what HPACK forbids, StreamFault for what HTTP does."""
        found = self._kept.get(block)
        if found is None:
            found = _request(self._decode(block))
            if self._without_table and len(block) <= _MOST_KEPT_BYTES:
                if len(self._kept) >= _MOST_KEPT:
                    self._kept.clear()
                self._kept[block] = found
        return found

    def trailers(self, block: bytes) -> None:
        """Trailers of a request, of which nothing is used. Raises as `request`."""
        for name, _ in self._decode(block):
            if name.startswith(":"):
                raise StreamFault(PROTOCOL_ERROR, "a pseudo-header among trailers")
            _check_name(name)

    def skip(self, block: bytes) -> None:
        """A block of a stream that is over. Raises ConnectionFault."""
        self._decode(block)

    def _decode(self, block: bytes) -> Sequence[tuple[str, str]]:
        try:
            decoded = self._decoder.decode(block, raw=True)
        except OversizedHeaderListError as error:
            raise ConnectionFault(ENHANCE_YOUR_CALM, str(error)) from None
        except HPACKError as error:
            raise ConnectionFault(COMPRESSION_ERROR, f"a header block that cannot be read: {error}") from None
        if self._acknowledged and not self._without_table and self._decoder.header_table_size == 0:
            # For good: it may not have one again.
            self._without_table = True
            self._decoder.max_allowed_table_size = 0
        # What is not ASCII means nothing to us, and must not be an error of HPACK.
        return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in decoded]


def _request(fields: Sequence[tuple[str, str]]) -> RequestHeaders:
    """Raises StreamFault."""
    metadata: dict[str, str] = {}
    regular = False
    for name, value in fields:
        if name.startswith(":"):
            if regular or name not in _PSEUDO or name in metadata:
                raise StreamFault(PROTOCOL_ERROR, f"pseudo-header {name[:50]!r} out of place")
        else:
            regular = True
            _check_name(name)
            if name == http.TE and value != "trailers":
                raise StreamFault(PROTOCOL_ERROR, f"header {http.TE!r} must be 'trailers'")
        metadata[name] = value
    if not metadata.keys() >= _REQUIRED or not metadata[http.PATH]:
        raise StreamFault(PROTOCOL_ERROR, "a request without method, scheme or path")
    refusal = 0
    if metadata[http.METHOD] != "POST":
        refusal = 405
    elif not _is_grpc(metadata.get(http.CONTENT_TYPE, "")):
        refusal = 415
    return RequestHeaders(metadata[http.PATH], metadata, _timeout(metadata), _content_length(metadata), refusal)


def _check_name(name: str) -> None:
    if not name or name != name.lower() or name in _CONNECTION_SPECIFIC:
        raise StreamFault(PROTOCOL_ERROR, f"header {name[:50]!r} is not allowed")


def _is_grpc(content_type: str) -> bool:
    return content_type == rpc.CONTENT_TYPE or content_type.startswith(_TYPES)


def _timeout(metadata: Mapping[str, str]) -> float | None:
    text = metadata.get(rpc.TIMEOUT)
    if text is None:
        return None
    try:
        return timeout_seconds(text)
    except ValueError:
        raise StreamFault(PROTOCOL_ERROR, f"{rpc.TIMEOUT}: {text[:50]!r} is no time") from None


def _content_length(metadata: Mapping[str, str]) -> int:
    text = metadata.get(http.CONTENT_LENGTH, "-1")
    if text == "-1":
        return -1
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise StreamFault(PROTOCOL_ERROR, f"{http.CONTENT_LENGTH} is no number")
    return int(text)
