"""Headers and metadata of a ProcessingRequest as Python values."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import DecodeError

from headrace.extproc.wire import MalformedMessage
from headrace.protocol import http, rpc
from headrace.xds.envoy.config.core.v3 import base_pb2
from headrace.xds.envoy.service.ext_proc.v3 import external_processor_pb2 as pb


def read_headers(content: bytes) -> tuple[dict[str, str], bool]:
    """The headers of a serialized HttpHeaders, names in lower case, and whether the stream ends with them.

    A header that comes several times is joined with commas. Bytes that are not UTF-8 are replaced: nothing that is
    decided here depends on them, and the headers themselves travel on untouched. Raises MalformedMessage."""
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
