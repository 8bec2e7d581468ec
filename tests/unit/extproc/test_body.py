"""Bodies: what the pick is told of them, and which are refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from headrace.core.bounded_json import MAX_NODES
from headrace.extproc.body import BodyFacts, UnreadableBody, is_json_path, model_steps, read_body
from headrace.extproc.model_name import with_model

from . import messages as m

COMPLETIONS = "/v1/completions"


@pytest.mark.parametrize(
    ("document", "prompt"),
    [
        ({"prompt": "abc"}, b"abc"),
        ({"prompt": ["a", "b"]}, b'["a","b"]'),
        ({"prompt": [1, 2]}, b"[1,2]"),
        ({"input": "abc"}, b"abc"),
        ({"text": "abc"}, b"abc"),
        ({"token_ids": [1]}, b"[1]"),
        (
            {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]},
            b"system\x1fs\x1fuser\x1fu",
        ),
        ({"system": "s", "messages": [{"role": "user", "content": [{"text": "u"}]}]}, b's\x1fuser\x1f[{"text":"u"}]'),
        ({"cache_salt": "z", "prompt": "abc"}, b"z\x1fabc"),
        ({"tools": [1], "messages": []}, b"[1]"),
        ({"messages": "odd"}, b""),
        ({"messages": [1, {"role": None, "content": None}]}, b"\x1f"),
        ({}, b""),
    ],
)
def test_prompts(document: dict[str, object], prompt: bytes) -> None:
    assert read_body(json.dumps({"model": "m", **document}).encode(), path=COMPLETIONS) == BodyFacts("m", prompt)


TURN = [{"role": "user", "content": "hi"}]
APIS: list[tuple[str, dict[str, object], BodyFacts]] = [
    ("/v1/completions", {"prompt": "p", "max_tokens": 5, "stream": True}, BodyFacts("m", b"p", True, 5)),
    ("/v1/chat/completions", {"messages": TURN, "max_completion_tokens": 5}, BodyFacts("m", b"user\x1fhi", False, 5)),
    ("/v1/responses", {"instructions": "i", "input": "p", "max_output_tokens": 5}, BodyFacts("m", b"i\x1fp", False, 5)),
    (
        "/v1/responses",
        {"input": [{"role": "user", "content": "hi"}]},
        BodyFacts("m", b'[{"role":"user","content":"hi"}]'),
    ),
    ("/v1/embeddings", {"input": ["a", "b"]}, BodyFacts("m", b'["a","b"]')),
    (
        "/v1/messages?beta=true",
        {"system": "s", "messages": TURN, "max_tokens": 5, "stream": True},
        BodyFacts("m", b"s\x1fuser\x1fhi", True, 5),
    ),
    ("/v1/messages/count_tokens", {"messages": TURN}, BodyFacts("m", b"user\x1fhi")),
    (
        "/inference/v1/generate",
        {"token_ids": [1, 2], "sampling_params": {"max_tokens": 5}},
        BodyFacts("m", b"[1,2]", False, 5),
    ),
    (
        "/generate",
        {"text": "p", "sampling_params": {"max_new_tokens": 5}, "stream": True},
        BodyFacts("m", b"p", True, 5),
    ),
    ("/generate", {"input_ids": [1, 2], "sampling_params": [{"max_new_tokens": 5}]}, BodyFacts("m", b"[1,2]")),
    # Not named, and still read as far as it looks like the others.
    ("/v1/images/generations", {"prompt": "p"}, BodyFacts("m", b"p")),
    ("/v1/rerank", {"query": "q"}, BodyFacts("m", b"")),
]


@pytest.mark.parametrize(("path", "document", "facts"), APIS)
def test_every_api(path: str, document: dict[str, object], facts: BodyFacts) -> None:
    assert read_body(json.dumps({"model": "m", **document}).encode(), path=path) == facts
    nameless = read_body(json.dumps(document).encode(), path=path)
    assert nameless == replace(facts, model="")


def test_a_longer_conversation_begins_with_the_shorter_one() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    short, long = (
        read_body(json.dumps({"messages": turns[:count]}).encode(), path="/v1/chat/completions").prompt
        for count in (1, 3)
    )
    assert long.startswith(short)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/completions",
        "/v1/chat/completions?x=1",
        "/base/v1/embeddings/",
        "/v1/responses",
        "/v1/messages",
        "/generate",
    ],
)
def test_paths_that_carry_json(path: str) -> None:
    assert is_json_path(path)
    for content in (b"", b"  ", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"model": 7}', b'{"model": []}'):
        with pytest.raises(UnreadableBody):
            read_body(content, path=path)


@pytest.mark.parametrize("path", ["/", "/v1/audio/transcriptions", "/tokenize", "/completionsx", ""])
@given(content=st.binary(max_size=100))
def test_other_paths_take_anything(path: str, content: bytes) -> None:
    read_body(content, path=path)
    assert read_body(b'{"model":"m","prompt":"p"}', path=path) == BodyFacts("m", b"p")


@pytest.mark.parametrize(
    "content",
    [b'{"model":"m","temperature":NaN}', b'{"model":"m","x":Infinity}', b'{"model":"m","prompt":"\\ud800"}'],
)
def test_what_model_servers_read_is_read(content: bytes) -> None:
    assert read_body(content, path=COMPLETIONS).model == "m"


def test_compressed_bodies_pass_unread() -> None:
    assert read_body(b"\x1f\x8b", path=COMPLETIONS, content_encoding="gzip") == BodyFacts()


def test_deep_nesting_is_refused_not_a_crash() -> None:
    with pytest.raises(UnreadableBody):
        read_body(b'{"a":' * 100_000, path=COMPLETIONS)


def test_a_cut_body_still_names_its_model() -> None:
    facts = read_body(b'{"model":"m\\u00e9","stream": true,"prompt":"abc', path=COMPLETIONS, whole=False)
    assert (facts.model, facts.streaming) == ("m\u00e9", True)
    assert read_body(b"abc", path=COMPLETIONS, whole=False) == BodyFacts()


def test_limits_of_the_answer() -> None:
    def limit(**fields: object) -> int | None:
        return read_body(json.dumps(fields).encode(), path=COMPLETIONS).max_tokens

    assert limit(max_tokens=5) == 5
    assert limit(max_completion_tokens=6, max_tokens=5) == 6
    assert limit(max_tokens="5") is None
    assert limit(max_tokens=True) is None
    assert limit(max_tokens=-1) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.just("model"), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["model", "prompt", "messages", "x", '"model": "y"']), JSON), st.text(max_size=20)
)
def test_rewriting_changes_the_model_and_nothing_else(document: dict[str, object], model: str) -> None:
    content = json.dumps(document).encode()
    assert json.loads(with_model(content, model)) == {**document, "model": model}


@given(st.dictionaries(st.text(max_size=8), JSON, max_size=4))
def test_any_object_has_facts(document: dict[str, object]) -> None:
    try:
        read_body(json.dumps(document).encode(), path=COMPLETIONS)
    except UnreadableBody as error:
        assert "model" in str(error)


@pytest.mark.parametrize("depth", [300, 500])
def test_a_prompt_nested_deeper_than_orjson_writes_is_read(depth: int) -> None:
    nested = b"[" * depth + b"]" * depth
    for body in (b'{"model":"m","prompt":%s}' % nested, b'{"model":"m","messages":[{"content":%s}]}' % nested):
        assert read_body(body, path="/v1/completions").model == "m"


def test_a_body_over_the_limit_passes_unread() -> None:
    content = b'{"model":"m","prompt":"abc"}'
    for path in (COMPLETIONS, "/other"):
        assert read_body(content, path=path, max_bytes=len(content)) == BodyFacts("m", b"abc")
        facts = read_body(content, path=path, max_bytes=len(content) - 1)
        assert facts.unread
        assert facts == BodyFacts(unread=facts.unread)
    # What is no JSON object names no model, however long it is.
    assert read_body(b"binary", path="/other", max_bytes=1) == BodyFacts()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("path", [COMPLETIONS, "/other"])
def test_a_model_is_read_and_replaced_in_whatever_encoding(encoding: str, path: str) -> None:
    content = (" " * 100 + '{"model":"m","prompt":"abc"}').encode(encoding)
    assert read_body(content, path=path).model == "m"
    assert m.result(model_steps(content)) == "m"
    assert json.loads(with_model(content, "new"))["model"] == "new"


def test_of_a_cut_body_only_the_beginning_is_read() -> None:
    content = b'{"prompt":"abc","model":"m"'
    assert read_body(content, path=COMPLETIONS, whole=False).model == "m"
    facts = read_body(content, path=COMPLETIONS, whole=False, max_bytes=12)
    assert (facts.model, facts.prompt) == ("", content[:12])
    assert facts.unread


def test_a_body_with_too_many_values_is_refused_or_passes_unread() -> None:
    content = b'{"model":"m","messages":[' + b"[]," * MAX_NODES + b"[]]}"
    with pytest.raises(UnreadableBody, match=str(MAX_NODES)):
        read_body(content, path="/v1/chat/completions")
    facts = read_body(content, path="/other")
    assert str(MAX_NODES) in facts.unread
    assert facts == BodyFacts(unread=facts.unread)
