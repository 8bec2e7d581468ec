"""Messages that are taken apart by hand, against protobuf's own reading of the same bytes."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.extproc.metadata import read_headers
from headrace.extproc.modes import HttpBody, http_body
from headrace.extproc.wire import MalformedMessage
from headrace.protocol import http
from headrace.xds.envoy.service.ext_proc.v3 import external_processor_pb2 as pb

NAMES = st.one_of(
    st.sampled_from([http.PATH, http.REQUEST_ID, "X-Request-Id", "accept", "Accept", "x-é", "", http.DESTINATION]),
    st.text("ab-Z", max_size=200),
)
HEADERS = st.lists(st.tuples(NAMES, st.binary(max_size=200), st.sampled_from(["", "", "text", "é" * 70])), max_size=8)


def by_protobuf(content: bytes) -> tuple[dict[str, str], bool] | None:
    try:
        message = pb.HttpHeaders.FromString(content)
    except DecodeError:
        return None
    found: dict[str, str] = {}
    for header in message.headers.headers:
        name, value = header.key.lower(), header.raw_value.decode("utf-8", "replace") or header.value
        found[name] = f"{found[name]},{value}" if name in found else value
    return found, message.end_of_stream


def by_hand(content: bytes) -> tuple[dict[str, str], bool] | None:
    try:
        headers, ended = read_headers(content)
    except MalformedMessage:
        return None
    return dict(headers), ended


def written(headers: list[tuple[str, bytes, str]], ended: bool) -> bytes:
    message = pb.HttpHeaders(end_of_stream=ended)
    for name, raw, text in headers:
        message.headers.headers.add(key=name, raw_value=raw, value=text)
    return message.SerializeToString()


@given(HEADERS, st.booleans())
def test_headers_are_read_as_protobuf_reads_them(headers: list[tuple[str, bytes, str]], ended: bool) -> None:
    content = written(headers, ended)
    assert by_hand(content) == by_protobuf(content)
    found, _ = read_headers(content)
    expected = by_protobuf(content)
    assert expected is not None
    for name in (http.PATH, http.REQUEST_ID, "accept", "missing", "x-é"):
        assert found.get(name) == expected[0].get(name)
        assert (name in found) == (name in expected[0])


@given(
    HEADERS, st.booleans(), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3), st.integers(0, 9)
)
@example([("accept", b"x", "")], False, [(12, 0xFF)], 0)
@example([("accept", b"x", "")], False, [(13, 2)], 0)
def test_broken_headers_are_refused_where_protobuf_does(
    headers: list[tuple[str, bytes, str]], ended: bool, changes: list[tuple[int, int]], cut: int
) -> None:
    content = bytearray(written(headers, ended))
    for at, byte in changes:
        if at < len(content):
            content[at] = byte
    broken = bytes(content[: len(content) - cut])
    assert by_hand(broken) == by_protobuf(broken)


def test_hidden_headers_are_not_there() -> None:
    found, _ = read_headers(written([(http.DESTINATION, b"a", ""), ("Accept", b"b", ""), (http.PATH, b"/", "")], False))
    shown = found.without(frozenset((http.DESTINATION,)))
    assert dict(shown) == {"accept": "b", http.PATH: "/"}
    assert (shown.get(http.DESTINATION), len(shown), http.DESTINATION in shown) == (None, 2, False)
    assert found.any_of(frozenset((http.DESTINATION,)))
    assert not shown.any_of(frozenset((http.DESTINATION,)))


@given(
    st.one_of(
        st.binary(max_size=12),
        st.builds(
            lambda body, ended, without: pb.HttpBody(
                body=body, end_of_stream=ended, end_of_stream_without_message=without
            ).SerializeToString(),
            st.binary(max_size=300),
            st.booleans(),
            st.booleans(),
        ),
        st.builds(lambda body, rest: pb.HttpBody(body=body).SerializeToString() + rest, st.binary(), st.binary()),
    )
)
@example(b"\x0a")
@example(b"\x0a\x80")
@example(b"\x0a" + b"\xff" * 11)
@example(b"\x0a\x02a\x10\x01")
@example(b"\x10\x02")
def test_bodies_are_read_as_protobuf_reads_them(content: bytes) -> None:
    try:
        read = pb.HttpBody.FromString(content)
        expected = HttpBody(read.body, read.end_of_stream, read.end_of_stream_without_message)
    except DecodeError:
        expected = None  # type: ignore[assignment]
    try:
        found = http_body(content)
    except MalformedMessage:
        found = None  # type: ignore[assignment]
    assert found == expected
