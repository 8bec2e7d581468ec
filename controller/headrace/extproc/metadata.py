"""Headers and metadata of a ProcessingRequest as Python values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

from google.protobuf.message import DecodeError

from headrace.extproc.wire import MalformedMessage, read_varint
from headrace.protocol import http, rpc
from headrace.xds.envoy.config.core.v3 import base_pb2
from headrace.xds.envoy.service.ext_proc.v3 import external_processor_pb2 as pb

# What every conversation asks for. Their names are compared as bytes, as gateways write them.
_USUAL = {
    name.encode(): name
    for name in (
        *(http.METHOD, http.PATH, http.STATUS, http.CONTENT_ENCODING, http.CONTENT_TYPE, http.FORWARDED_FOR),
        *(http.REQUEST_ID, *http.UNTRUSTED_OR_CONTROL),
    )
}
_USUAL_NAMES = frozenset(_USUAL.values())


class Headers(Mapping[str, str]):
    """Received headers, names in lower case, without those that are `hidden`. Those of usual names are `known`, also
    hidden ones, the others are read when somebody asks for one."""

    __slots__ = ("_content", "_hidden", "_whole", "known")

    def __init__(self, known: dict[str, str], content: bytes, hidden: Set[str] = frozenset()) -> None:
        self.known = known
        self._content = content
        self._hidden = hidden
        self._whole: dict[str, str] | None = None

    def get(self, name: str, default: Any = None) -> Any:
        found = self.known if name in _USUAL_NAMES else self._all()
        return default if name in self._hidden else found.get(name, default)

    def __getitem__(self, name: str) -> str:
        found = self.known if name in _USUAL_NAMES else self._all()
        if name in self._hidden:
            raise KeyError(name)
        return found[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._all() if name not in self._hidden)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def without(self, names: Set[str]) -> Headers:
        """The same headers but for those."""
        return Headers(self.known, self._content, names) if not self.known.keys().isdisjoint(names) else self

    def any_of(self, names: Set[str]) -> bool:
        """Whether one of some usual names is there."""
        return not self.known.keys().isdisjoint(names - self._hidden if self._hidden else names)

    def _all(self) -> dict[str, str]:
        if self._whole is None:
            self._whole = _read_all(self._content)[0]
        return self._whole


NO_HEADERS = Headers({}, b"")


def read_headers(content: bytes) -> tuple[Headers, bool]:
    """The headers of a serialized HttpHeaders, and whether the stream ends with them.

    A header that comes several times is joined with commas. Bytes that are not UTF-8 are replaced: nothing that is
    decided here depends on them, and the headers themselves travel on untouched. Raises MalformedMessage."""
    try:
        known, ended = _read_usual(content)
    except (IndexError, ValueError):
        whole, ended = _read_all(content)
        known = {name: value for name, value in whole.items() if name in _USUAL_NAMES}
    return Headers(known, content), ended


def _read_usual(content: bytes) -> tuple[dict[str, str], bool]:
    """Those of usual names, where all is written as gateways do: the field of headers, in each of them the name before
    the value, and the end of the stream at last. Raises IndexError and ValueError for what is not: protobuf reads
    that."""
    found: dict[str, str] = {}
    if not content:
        return found, False
    size, at = read_varint(content, 1)
    end = at + size
    ended = content[end:] == b"\x18\x01"
    if content[0] != 10 or (end != len(content) and not ended):
        raise MalformedMessage("not as usual")
    while at < end:
        # A HeaderValue in its length: 1 is the name, 2 the value as text, 3 as bytes.
        size, begin = content[at + 1], at + 2
        if size > 127:
            size, begin = read_varint(content, at + 1)
        after = begin + size
        name_size = content[begin + 1]
        middle = begin + 2 + name_size
        if content[at] != 10 or content[begin] != 10 or name_size > 127 or middle > after or after > end:
            raise MalformedMessage("not as usual")
        raw_name = content[begin + 2 : middle]
        name = _USUAL.get(raw_name)
        if name is not None:
            value = _value(content, middle, after)
            found[name] = f"{found[name]},{value}" if name in found else value
        elif not raw_name.isascii() or raw_name != raw_name.lower():
            raise MalformedMessage("not as usual")
        elif middle != after and (content[middle] != 26 or content[middle + 1] != after - middle - 2):
            _value(content, middle, after)
        at = after
    return found, ended


def _value(content: bytes, at: int, end: int) -> str:
    """The value behind a header's name. Raises IndexError and ValueError."""
    if at == end:
        return ""
    size, begin = content[at + 1], at + 2
    if size > 127:
        size, begin = read_varint(content, at + 1)
    if content[at] not in b"\x12\x1a" or begin + size != end:
        raise MalformedMessage("not as usual")
    # A text that is no UTF-8 is protobuf's to refuse.
    return content[begin:end].decode("utf-8", "replace" if content[at] == 26 else "strict")


def _read_all(content: bytes) -> tuple[dict[str, str], bool]:
    """All of them. Raises MalformedMessage."""
    try:
        message = pb.HttpHeaders.FromString(content)
    except DecodeError as error:
        raise MalformedMessage(f"HttpHeaders: {error}") from None
    headers: dict[str, str] = {}
    for header in message.headers.headers:
        value = header.raw_value.decode("utf-8", "replace") or header.value
        name = header.key.lower()
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    return headers, bool(message.end_of_stream)


def last_forwarded(headers: Mapping[str, str]) -> str:
    """The address from which the gateway itself was reached, as it has added it; "" where it has not."""
    return headers.get(http.FORWARDED_FOR, "").rpartition(",")[2].strip()


def subset_hint(metadata_context: bytes) -> tuple[str, ...] | None:
    """The endpoints the gateway allows, from filter metadata: a list, or one text with commas. None: no hint.

    A hint that is there but names nothing usable allows nothing. Raises MalformedMessage."""
    try:
        fields = base_pb2.Metadata.FromString(metadata_context).filter_metadata
    except DecodeError as error:
        raise MalformedMessage(f"Metadata: {error}") from None
    if rpc.SUBSET_NAMESPACE not in fields:
        return None
    hint = fields[rpc.SUBSET_NAMESPACE].fields
    if http.SUBSET not in hint:
        return None
    value = hint[http.SUBSET]
    if value.WhichOneof("kind") == "list_value":
        texts = [entry.string_value for entry in value.list_value.values]
    else:
        texts = [value.string_value]
    return tuple(part.strip() for text in texts for part in text.split(",") if part.strip())


def served_endpoint(metadata_context: bytes) -> str:
    """The endpoint that answered, from filter metadata; "" where the gateway does not say. Raises MalformedMessage."""
    try:
        fields = base_pb2.Metadata.FromString(metadata_context).filter_metadata
    except DecodeError as error:
        raise MalformedMessage(f"Metadata: {error}") from None
    if rpc.LOAD_BALANCER_NAMESPACE not in fields:
        return ""
    lb_fields = fields[rpc.LOAD_BALANCER_NAMESPACE].fields
    return lb_fields[http.SERVED].string_value if http.SERVED in lb_fields else ""


def conformance_report(metadata_context: bytes | None) -> str:
    """What the conformance suite wants to read: the endpoint that answered, or `fail:` and what the gateway left out.

    Raises MalformedMessage."""
    served = served_endpoint(metadata_context) if metadata_context is not None else ""
    return served or f"fail: the gateway sent no metadata {rpc.LOAD_BALANCER_NAMESPACE}/{http.SERVED}"
