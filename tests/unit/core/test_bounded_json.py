"""JSON within bounds: what is counted, and what passes."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import bounded_json
from headrace.core.bounded_json import MAX_DEPTH, MAX_NODES, MAX_VALUES, Bounds, TooComplex, TooLong, check_bounds, load

TEXT = st.text(alphabet='a,[]{}"\\:\n', max_size=8)
JSON = st.recursive(
    st.none() | st.integers(0, 9) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=30,
)


def measured(value: Any) -> tuple[int, int, int]:
    """Depth, values and nodes; an empty list or object has room for a value, and counts as two."""
    if isinstance(value, str):
        return 0, 1, 1
    if not isinstance(value, list | dict):
        return 0, 1, 0
    keys = len(value) if isinstance(value, dict) else 0
    inner = [measured(entry) for entry in (value.values() if isinstance(value, dict) else value)]
    depth = 1 + max((found[0] for found in inner), default=0)
    return depth, 1 + (sum(found[1] for found in inner) or 1), 1 + keys + sum(found[2] for found in inner)


@given(JSON, st.integers(1, 5), st.integers(0, 9), st.integers(0, 25), st.sampled_from([None, 2]), st.integers(1, 9))
def test_the_count_is_that_of_what_is_outside_strings(
    value: Any, depth: int, more: int, nodes: int, indent: int | None, piece: int
) -> None:
    values = nodes + more
    within = all(a <= b for a, b in zip(measured(value), (depth, values, nodes), strict=True))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bounded_json, "MAX_DEPTH", depth)
        patched.setattr(bounded_json, "MAX_VALUES", values)
        patched.setattr(bounded_json, "MAX_NODES", nodes)
        patched.setattr(bounded_json, "_SLICE_BYTES", piece)
        try:
            check_bounds(json.dumps(value, indent=indent, ensure_ascii=False).encode())
        except TooComplex:
            assert not within
        else:
            assert within


@given(JSON, st.lists(st.integers(0, 200)), st.integers(1, 5), st.integers(1, 25))
def test_wherever_a_text_is_cut_the_count_is_the_same(value: Any, cuts: list[int], depth: int, nodes: int) -> None:
    text = json.dumps(value).encode()
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bounded_json, "MAX_DEPTH", depth)
        patched.setattr(bounded_json, "MAX_NODES", nodes)
        refused = []
        for pieces in ([text], [text[a:b] for a, b in itertools.pairwise(edges)]):
            bounds = Bounds()
            try:
                for piece in pieces:
                    bounds.feed(piece)
            except TooComplex:
                refused.append(True)
            else:
                refused.append(False)
    assert refused[0] == refused[1]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"prompt": ', [{"x\\' * 800_000}).encode(),
        b'{"prompt":[' + b"123456," * 1_000_000 + b"1]}",
        b'{"image_url":"data:image/png;base64,' + b"QUJD" * (2 * 1_000_000) + b'"}',
        json.dumps({"messages": [{"role": "user", "content": '"hello", he said'}] * 20_000}).encode(),
        b'{"x":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}",
    ],
    ids=["prose", "token ids", "a picture", "a long chat", "deep"],
)
def test_what_people_send_passes(text: bytes) -> None:
    assert len(text) <= 8 << 20
    check_bounds(text)


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        (b'{"messages":[' + b"[]," * (2 << 20) + b"[]]}", MAX_NODES),
        (b"[" + b'{"":0},' * (1 << 20) + b"0]", MAX_NODES),
        (b"[" + b"0," * MAX_VALUES + b"0]", MAX_VALUES),
        (b"[" + b'"",' * MAX_NODES + b"0]", MAX_NODES),
        (b"{" + b",".join(b'"%x":0' % n for n in range(MAX_NODES)) + b"}", MAX_NODES),
        (b'{"x":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", MAX_DEPTH),
        (b"[" * (1 << 20), MAX_DEPTH),
        (b'"' * (1 << 20), MAX_NODES),
        # A string of closing brackets takes back nothing.
        (b'{"x":' + b'["]]]]",' * MAX_DEPTH + b"0" + b"]" * MAX_DEPTH + b"}", MAX_DEPTH),
    ],
)
def test_what_costs_too_much_is_refused_naming_the_bound(text: bytes, bound: int) -> None:
    with pytest.raises(TooComplex, match=str(bound)):
        load(text)


def test_long_texts_are_not_read() -> None:
    with pytest.raises(TooLong, match="11 bytes; at most 10"):
        load(b'"123456789"', 10)
    assert load(b'"12345678"', 10) == "12345678"


def test_what_is_not_strict_json_is_read_up_to_a_size() -> None:
    assert load(b'{"x": "\\ud800"}') == {"x": "\ud800"}
    with pytest.raises(TooLong):
        load(b'{"x": "\\ud800", "y": "%s"}' % (b"y" * (1 << 20)))
    for text in (b"", b"{", b'{"x": %s}' % (b"1" * 5000)):
        with pytest.raises(ValueError, match=r".") as caught:
            load(text)
        assert not isinstance(caught.value, TooLong | TooComplex)
