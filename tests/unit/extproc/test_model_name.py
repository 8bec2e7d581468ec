"""The model's name in passing JSON: replaced where it stands, in pieces of any size, and nothing else touched."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.extproc.model_name import ModelNames, with_model

KEYS = st.sampled_from(["model", "response", "message", "choices", "mode", 'mo"del', "\\", "model\\"]) | st.text(
    max_size=4
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(max_size=10)
    | st.sampled_from(['"model":"x"', "\\"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(KEYS, JSON, max_size=5)
NAMES = st.text(max_size=12)
CUTS = st.lists(st.integers(0, 1 << 12), max_size=8)
SPACES = st.sampled_from([None, 0, 2])


def cut(content: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(c % (len(content) + 1) for c in cuts), len(content)]
    return [content[a:b] for a, b in itertools.pairwise(edges)]


def expected(value: Any, model: str) -> Any:
    """What the document should be afterwards, by a parse: texts called `model` in the places that are watched."""
    if not isinstance(value, dict):
        return value

    def renamed(found: dict[str, Any]) -> dict[str, Any]:
        return {k: model if k == "model" and isinstance(v, str) else v for k, v in found.items()}

    nested = {k: renamed(v) if k in ("response", "message") and isinstance(v, dict) else v for k, v in value.items()}
    return renamed(nested)


@given(document=OBJECTS | JSON, model=NAMES, cuts=CUTS, indent=SPACES)
def test_json_in_any_pieces(document: Any, model: str, cuts: list[int], indent: int | None) -> None:
    content = json.dumps(document, indent=indent).encode()
    scanner = ModelNames(model, nested=True)
    out = b"".join(scanner.feed(piece) for piece in cut(content, cuts))
    assert json.loads(out) == expected(document, model)
    if not scanner.replaced:
        assert out == content


@given(
    documents=st.lists(OBJECTS, max_size=4),
    model=NAMES,
    cuts=CUTS,
    ends=st.sampled_from(["\n\n", "\r\n\r\n", "\n\nid: 1\n"]),
)
def test_events_in_any_pieces(documents: list[Any], model: str, cuts: list[int], ends: str) -> None:
    content = "".join(f"event: x\ndata: {json.dumps(d)}{ends}" for d in documents) + "data: [DONE]\n\n"
    scanner = ModelNames(model, events=True, nested=True)
    out = b"".join(scanner.feed(piece) for piece in cut(content.encode(), cuts)).decode()
    data = [line[5:] for line in out.splitlines() if line.startswith("data:")]
    assert data.pop() == " [DONE]"
    assert [json.loads(line) for line in data] == [expected(d, model) for d in documents]


@given(content=st.binary(max_size=200), model=NAMES, cuts=CUTS, events=st.booleans())
def test_any_bytes_are_the_same_in_one_piece_or_many(content: bytes, model: str, cuts: list[int], events: bool) -> None:
    whole = ModelNames(model, events=events, nested=True).feed(content)
    scanner = ModelNames(model, events=events, nested=True)
    assert b"".join(scanner.feed(piece) for piece in cut(content, cuts)) == whole
    if b'"model"' not in content:
        assert whole == content


def test_every_split_of_one_event() -> None:
    content = (
        b'data: {"id":"1","model": "old\\" name","choices":[{"message":{"model":"kept"}}]}\n\ndata: {"model":"x"}\n\n'
    )
    wanted = content.replace(b'old\\" name', b"new").replace(b'"x"', b'"new"')
    for at in range(len(content) + 1):
        scanner = ModelNames("new", events=True, nested=True)
        assert scanner.feed(content[:at]) + scanner.feed(content[at:]) == wanted
        assert scanner.replaced == 2


@given(
    before=st.dictionaries(
        st.sampled_from(["id", "object", "created"]), st.none() | st.integers() | st.text(max_size=5)
    ),
    after=OBJECTS,
    cuts=CUTS,
    compact=st.booleans(),
)
def test_usual_events_are_the_same_by_search_and_by_scan(
    before: dict[str, Any], after: dict[str, Any], cuts: list[int], compact: bool
) -> None:
    document = {**before, "model": "old", **{k: v for k, v in after.items() if k != "model"}}
    text = json.dumps(document, separators=(",", ":") if compact else None)
    content = f"data: {text}\n\ndata:{text}\n\n".encode()
    whole = ModelNames("new", events=True, nested=True)
    changed = whole.feed(content)
    scanner = ModelNames("new", events=True, nested=True)
    assert b"".join(scanner.feed(piece) for piece in cut(content, cuts)) == changed
    assert scanner.replaced == whole.replaced >= 2
    lines = [line[5:] for line in changed.split(b"\n") if line]
    assert [json.loads(line) for line in lines] == [expected(document, "new")] * 2


def test_the_usual_event_needs_no_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    scanner = ModelNames("new", events=True, nested=True)
    monkeypatch.setattr(scanner, "_scan", None)
    event = b'data: {"id":"1","created":7,"model":"old","choices":[{"text":"\\"model\\""}],"usage":null}\n\n'
    assert scanner.feed(event * 2 + b"data: [DONE]\n\n") == event.replace(b"old", b"new") * 2 + b"data: [DONE]\n\n"


def test_a_cut_event_does_not_spoil_the_next() -> None:
    scanner = ModelNames("new", events=True)
    assert (
        scanner.feed(b'data: {"model":"ol\n\ndata: {"model":"old"}\n')
        == b'data: {"model":"new\n\ndata: {"model":"new"}\n'
    )


@pytest.mark.parametrize(
    ("content", "changed"),
    [
        (b'{"model":"a","temperature":NaN}', b'{"model":"b","temperature":NaN}'),
        (b'{"model":"a","prompt":"never end', b'{"model":"b","prompt":"never end'),
        (b'{"metadata":{"model":"x"},"model":"a"}', b'{"metadata":{"model":"x"},"model":"b"}'),
        (b'{"response":{"model":"x"},"model":"a"}', b'{"response":{"model":"x"},"model":"b"}'),
        (b'{"mod\\u0065l":"a"}', b'{"model":"b"}'),
        (b'{"model":null}', b'{"model":"b"}'),
        (b"{}", b'{"model":"b"}'),
    ],
)
def test_request_bodies(content: bytes, changed: bytes) -> None:
    assert with_model(content, "b") == changed


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"\x00"])
def test_what_has_no_place_for_a_model(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        with_model(content, "b")


def test_a_body_that_is_written_anew_keeps_what_orjson_cannot_write() -> None:
    nested = b"[" * 300 + b"]" * 300
    content = b'{"mod\\u0065l":"asked","prompt":%s,"x":NaN,"y":"\\ud800"}' % nested
    assert with_model(content, "target") == b'{"model":"target","prompt":%s,"x":NaN,"y":"\\ud800"}' % nested


def test_a_body_over_the_limit_is_not_written_anew() -> None:
    with pytest.raises(ValueError, match="at most 10 are read"):
        with_model(b'{"mod\\u0065l":"asked"}', "target", 10)
    assert with_model(b'{"model":"asked"}', "target", 10) == b'{"model":"target"}'
