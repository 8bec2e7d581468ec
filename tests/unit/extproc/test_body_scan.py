"""A long body, scanned while it arrives: the same facts as of one that is read whole, wherever it is cut."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config.limits import STEP_BYTES
from headrace.core.bounded_json import MAX_BYTES, MAX_DEPTH, MAX_NODES, TooComplex
from headrace.extproc.body import BodyFacts, UnreadableBody, long_facts, read_body
from headrace.extproc.body_scan import BodyScan
from headrace.extproc.json_text import Malformed
from headrace.extproc.request_body import replaced

CHAT = "/v1/chat/completions"
# Escapes of every kind, pairs of surrogates, text of several bytes a character, and what looks like structure.
TEXT = st.text(alphabet='a"\\/\b\n\té€😀{}[]:, u', max_size=12)
_NAMES = """
model stream messages prompt input text token_ids tools system instructions cache_salt max_tokens
max_completion_tokens sampling_params max_new_tokens role content tool_calls x
"""
NAMES = st.sampled_from(_NAMES.split())
NUMBERS = st.one_of(
    st.integers(-(10**25), 10**25),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0, -0.0, 1e300, 2**63, 2**64 - 1]),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXT)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | TEXT, inner, max_size=4),
    max_leaves=12,
)


class Twice(list[tuple[str, Any]]):
    """Members of an object, in which a name may come twice."""


MEMBERS = st.lists(st.tuples(NAMES, JSON | TEXT), max_size=5).map(Twice)
MESSAGES = st.lists(MEMBERS | JSON, max_size=4)
PROMPT = st.lists(NUMBERS, max_size=6) | TEXT | JSON
DOCUMENTS = st.lists(
    st.one_of(
        st.tuples(NAMES, JSON),
        st.tuples(TEXT, JSON),
        st.tuples(st.just("messages"), MESSAGES),
        st.tuples(st.sampled_from(["prompt", "input_ids", "tools"]), PROMPT),
        st.tuples(st.just("model"), TEXT),
        st.tuples(st.just("sampling_params"), MEMBERS),
        st.tuples(st.sampled_from(["max_tokens", "stream"]), LEAVES),
    ),
    max_size=6,
).map(Twice)
STYLES = st.tuples(st.booleans(), st.sampled_from(["", " ", "\n\t ", "\r\n"]))
CUTS = st.lists(st.integers(0, 1 << 16), max_size=12)
STEPS = st.tuples(st.integers(1, 40) | st.just(STEP_BYTES), st.integers(1, 40))


def written(value: Any, style: tuple[bool, str]) -> str:
    """JSON as somebody might write it: with escapes or without, and with space anywhere."""
    ascii_only, space = style
    if isinstance(value, Twice | dict):
        pairs = value.items() if isinstance(value, dict) else value
        inner = f"{space},{space}".join(f"{json.dumps(k)}{space}:{space}{written(v, style)}" for k, v in pairs)
        return f"{{{space}{inner}{space}}}"
    if isinstance(value, list):
        return f"[{space}{f'{space},{space}'.join(written(entry, style) for entry in value)}{space}]"
    return json.dumps(value, ensure_ascii=ascii_only)


def cut(content: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(content) + 1) for place in cuts), len(content)]
    return [content[a:b] for a, b in itertools.pairwise(edges)]


def scanned(pieces: list[bytes], steps: tuple[int, int] = (STEP_BYTES, 2048)) -> BodyScan:
    scan = BodyScan(step_bytes=steps[0], step_items=steps[1])
    for piece in pieces:
        scan.feed(piece)
        while scan.step():
            pass
    return scan


def facts_of(scan: BodyScan, content: bytes, path: str = CHAT) -> BodyFacts | None:
    """None: it is refused."""
    try:
        return long_facts(scan, content[:64], path=path, size=len(content))
    except UnreadableBody:
        return None


def whole(content: bytes, path: str = CHAT) -> BodyFacts | None:
    try:
        return read_body(content, path=path)
    except UnreadableBody:
        return None


@given(DOCUMENTS, STYLES, CUTS, STEPS, st.sampled_from([CHAT, "/other"]))
def test_the_facts_are_those_of_the_whole_body(
    document: Twice, style: tuple[bool, str], cuts: list[int], steps: tuple[int, int], path: str
) -> None:
    content = f"{style[1]}{written(document, style)}{style[1]}".encode()
    assert facts_of(scanned(cut(content, cuts), steps), content, path) == whole(content, path)


LONE = st.text(alphabet=st.sampled_from("a\ud800\udc00\udbff\ude00\\é"), max_size=8)


@given(
    st.lists(st.tuples(st.sampled_from(["prompt", "system", "model", "x"]), LONE | st.just(float("nan"))), max_size=4),
    st.lists(st.tuples(st.sampled_from(["role", "content"]), LONE | st.lists(LONE, max_size=2)), max_size=3),
    CUTS,
    STEPS,
)
def test_what_is_not_strict_json_and_servers_read_is_read(
    members: list[tuple[str, Any]], message: list[tuple[str, Any]], cuts: list[int], steps: tuple[int, int]
) -> None:
    document = Twice([*members, ("messages", [Twice(message)])])
    content = written(document, (True, "")).encode()
    assert facts_of(scanned(cut(content, cuts), steps), content) == whole(content)


@given(DOCUMENTS, STYLES, st.integers(0, 1 << 16), CUTS, st.booleans())
def test_a_body_that_is_cut_or_goes_on_is_refused(
    document: Twice, style: tuple[bool, str], place: int, cuts: list[int], more: bool
) -> None:
    text = written(document, style).encode()
    content = text + b" ]" if more else text[: place % len(text)]
    assert whole(content) is None
    assert facts_of(scanned(cut(content, cuts), (7, 3)), content) is None


@given(DOCUMENTS, st.integers(0, 1 << 16), CUTS)
def test_what_is_not_utf_8_is_refused(document: Twice, place: int, cuts: list[int]) -> None:
    text = written(document, (False, "")).encode()
    place = 1 + place % (len(text) - 1)
    content = text[:place] + b"\xff" + text[place:]
    assert whole(content) is None
    assert facts_of(scanned(cut(content, cuts), (7, 3)), content) is None


@given(st.binary(max_size=200), CUTS, st.sampled_from([b"", b'{"prompt":', b'{"messages":[{"content":"']), STEPS)
def test_any_bytes_are_read_or_refused(junk: bytes, cuts: list[int], before: bytes, steps: tuple[int, int]) -> None:
    content = before + junk
    pieces = cut(content, cuts)
    scan = scanned(pieces, steps)
    scan.end()
    assert scan.failed is None or isinstance(scan.failed, Malformed | TooComplex)
    again = scanned([content], steps)
    again.end()
    assert (again.failed is None) == (scan.failed is None)
    if whole(content) is not None:
        assert facts_of(scan, content) == whole(content)


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b""])
def test_a_byte_order_mark_is_passed_over(mark: bytes) -> None:
    content = mark + b'{"model":"m"}'
    scan = scanned([bytes([byte]) for byte in content])
    assert facts_of(scan, content) == BodyFacts("m")
    assert scan.model_places == [(len(mark) + 9, len(mark) + 12)]


def test_what_is_in_another_encoding_passes_unread() -> None:
    content = '{"model":"m"}'.encode("utf-16")
    found = facts_of(scanned([content]), content)
    assert found is not None
    assert found == BodyFacts(unread=found.unread)
    assert found.unread


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'{"x":' + b"[" * (MAX_DEPTH + 1), TooComplex),
        (b'{"x":[' + b"[]," * (MAX_NODES + 1), TooComplex),
        (b'{"x":' + b"1" * 10_000, Malformed),
        (b'{"prompt":"\\u12', Malformed),
        (b'{"prompt":"\\u12zz and more text than an escape has', Malformed),
        (b"[]", Malformed),
        (b'{"a" 1}', Malformed),
        (b'{"model":tru}', Malformed),
        (b'{"prompt":[01]}', Malformed),
    ],
)
def test_what_cannot_be_read_says_why(content: bytes, kind: type[ValueError]) -> None:
    scan = scanned([content])
    scan.end()
    assert isinstance(scan.failed, kind)
    assert str(scan.failed)


@pytest.mark.parametrize(
    "content",
    [
        b'{"prompt":"' + b"x" * MAX_BYTES + b'"}',
        b'{"prompt":"' + b"\\n\\u00e9" * (MAX_BYTES // 8) + b'"}',
        b'{"prompt":[' + b"123456," * 500_000 + b"1]}",
        b'{"messages":[' + b'{"role":"user","content":"hello"},' * 20_000 + b"{}]}",
        b'{"x":[' + b"[[[[]]]]," * 20_000 + b"0]}",
        b"{" + b",".join(b'"%x":0' % n for n in range(100_000)) + b"}",
    ],
    ids=["a long string", "escapes", "token ids", "messages", "nested", "members"],
)
def test_a_step_is_bounded_in_bytes(content: bytes) -> None:
    scan = BodyScan()
    # All at once, as a gateway that buffers bodies sends it.
    scan.feed(content)
    before = steps = 0
    while scan.step():
        assert scan.position - before <= STEP_BYTES + 12
        before = scan.position
        steps += 1
    assert steps >= len(content) // STEP_BYTES
    assert scan.position == len(content)


def test_a_step_is_bounded_in_items() -> None:
    content = b'{"x":' + b"[" * 200 + b"]" * 200 + b"}"
    taken = []
    for items in (1, 10, 1000):
        scan = BodyScan(step_items=items)
        scan.feed(content)
        steps = 1
        while scan.step():
            steps += 1
        assert scan.complete
        taken.append(steps)
    # Each bracket is an item, but for the innermost ones.
    assert taken[0] > 350
    assert 35 < taken[1] < 50
    assert taken[2] <= 2


@given(st.binary(max_size=60), CUTS, st.lists(st.integers(0, 60), max_size=6, unique=True), st.binary(max_size=5))
def test_places_are_replaced_wherever_pieces_end(text: bytes, cuts: list[int], edges: list[int], value: bytes) -> None:
    edges = sorted(min(edge, len(text)) for edge in edges)
    places = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=False) if a < b]
    expected, at = b"", 0
    for begin, end in places:
        expected += text[at:begin] + value
        at = end
    expected += text[at:]
    assert b"".join(replaced(cut(text, cuts), places, value)) == expected
