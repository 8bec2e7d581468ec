"""Requests: what is taken, and what is refused by field, value and fix."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.simulator import openai
from headrace.simulator.tokens import BEGIN_OF_TEXT, encode_chat

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def test_defaults_of_a_completion() -> None:
    request = openai.parse_completion({"prompt": "four"})
    assert (request.model, request.max_tokens, request.n, request.stream, request.chat) == (None, 16, 1, False, False)
    assert request.prompts[0].tokens[0] == BEGIN_OF_TEXT
    assert request.prompts[0].text == "four"


def test_a_chat_has_no_limit_of_its_own_and_prefers_the_newer_field() -> None:
    assert openai.parse_chat(CHAT).max_tokens is None
    assert openai.parse_chat({**CHAT, "max_tokens": 5}).max_tokens == 5
    assert openai.parse_chat({**CHAT, "max_tokens": 5, "max_completion_tokens": 7}).max_tokens == 7


@pytest.mark.parametrize(
    ("prompt", "lengths"),
    [
        ("a", [2]),
        (["a", "bcdefghi"], [2, 3]),
        ([1, 2, 3], [3]),
        ([[1, 2], [3]], [2, 1]),
        ([[7], "a"], [1, 2]),
    ],
)
def test_the_forms_of_a_prompt(prompt: object, lengths: list[int]) -> None:
    assert [len(one.tokens) for one in openai.parse_completion({"prompt": prompt}).prompts] == lengths


def test_content_may_come_in_parts_and_be_absent_beside_tool_calls() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]},
    ]
    assert openai.parse_messages({"messages": messages}) == [("user", "a\nb"), ("assistant", '[{"id":1}]')]
    assert openai.parse_chat({"messages": messages}).prompts[0].tokens == encode_chat(
        [("user", "a\nb"), ("assistant", '[{"id":1}]')]
    )


def test_stop_in_all_its_forms() -> None:
    assert openai.parse_chat({**CHAT, "stop": "x"}).stop == ("x",)
    assert openai.parse_chat({**CHAT, "stop": ["x", "yy"]}).stop == ("x", "yy")
    assert openai.parse_chat({**CHAT, "stop": None}).stop == ()
    assert openai.parse_chat({**CHAT, "stop_token_ids": [5]}).stop_token_ids == {5}


def test_unknown_fields_and_nulls_are_ignored() -> None:
    request = openai.parse_chat(
        {**CHAT, "tools": [], "response_format": {}, "n": None, "stream": None, "max_tokens": None}
    )
    assert (request.n, request.stream) == (1, False)


COMPLETION: dict[str, Any] = {"prompt": "x"}


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("prompt", {}),
        ("prompt", {"prompt": ""}),
        ("body.prompt", {"prompt": 5}),
        (None, {"prompt": []}),
        ("body.prompt.1", {"prompt": ["a", 5]}),
        ("body.prompt.1", {"prompt": [1, "a"]}),
        ("body.prompt.1", {"prompt": [1, True]}),
        (None, {"prompt": [-1]}),
        ("body.prompt.0", {"prompt": [[]]}),
        (None, {"prompt": [[2**32]]}),
        ("body.model", {**COMPLETION, "model": 5}),
        ("max_tokens", {**COMPLETION, "max_tokens": 0}),
        ("body.max_tokens", {**COMPLETION, "max_tokens": "5"}),
        ("body.max_tokens", {**COMPLETION, "max_tokens": True}),
        ("body.max_tokens", {**COMPLETION, "max_tokens": 1.5}),
        ("min_tokens", {**COMPLETION, "max_tokens": 2, "min_tokens": 3}),
        (None, {**COMPLETION, "n": 0}),
        (None, {**COMPLETION, "n": 129}),
        ("body.seed", {**COMPLETION, "seed": "x"}),
        ("body.stream", {**COMPLETION, "stream": "yes"}),
        ("body.stream_options", {**COMPLETION, "stream": True, "stream_options": 1}),
        ("stream_options", {**COMPLETION, "stream_options": {"include_usage": True}}),
        ("body.stream_options.include_usage", {**COMPLETION, "stream": True, "stream_options": {"include_usage": 1}}),
        ("temperature", {**COMPLETION, "temperature": -0.1}),
        ("body.temperature", {**COMPLETION, "temperature": "hot"}),
        ("top_p", {**COMPLETION, "top_p": 2}),
        ("body.stop", {**COMPLETION, "stop": [1]}),
        ("body.stop", {**COMPLETION, "stop": ""}),
        ("body.stop_token_ids", {**COMPLETION, "stop_token_ids": 3}),
        ("body.ignore_eos", {**COMPLETION, "ignore_eos": 1}),
    ],
)
def test_a_wrong_completion_is_refused_as_vllm_refuses_it(param: str | None, body: dict[str, Any]) -> None:
    with pytest.raises(openai.ApiError) as refused:
        openai.parse_completion(body)
    error = refused.value.body()["error"]
    assert (refused.value.status, error["param"], error["code"]) == (400, param, 400)
    validated = param is not None and param.startswith("body.")
    assert error["type"] == ("Bad Request" if validated else "BadRequestError")
    if param is not None:
        assert error["message"].startswith(f"{param.removeprefix('body.')}: ")


@pytest.mark.parametrize(
    ("field", "messages"),
    [
        ("body.messages", None),
        (None, []),
        ("body.messages", "hi"),
        ("body.messages.0", ["hi"]),
        ("body.messages.0.ChatCompletionDeveloperMessageParam.role", [{"content": "x"}]),
        ("body.messages.0.content", [{"role": "user", "content": 5}]),
        (None, [{"role": "user", "content": [{"type": "image_url"}]}]),
    ],
)
def test_wrong_messages_are_refused_by_field(field: str | None, messages: object) -> None:
    with pytest.raises(openai.ApiError) as refused:
        openai.parse_chat({"messages": messages})
    assert (refused.value.status, refused.value.field) == (400, field)


def test_tools_need_a_flag() -> None:
    body = {**CHAT, "tools": [{"type": "function"}]}
    with pytest.raises(openai.ApiError) as refused:
        openai.parse_chat(body)
    assert (refused.value.status, refused.value.kind, refused.value.field) == (400, "BadRequestError", None)
    assert openai.parse_chat({**body, "tool_choice": "none"}).chat
    assert openai.parse_chat(body, tools=True).chat


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**64) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    *("prompt", "messages", "input", "model", "max_tokens", "max_completion_tokens", "min_tokens", "n", "seed", "stop"),
    *("stop_token_ids", "stream", "stream_options", "temperature", "top_p", "echo", "ignore_eos", "encoding_format"),
]


@given(st.dictionaries(st.sampled_from(FIELDS), json_values), st.booleans())
def test_any_body_is_a_request_or_a_refusal(body: dict[str, Any], valid: bool) -> None:
    if valid:
        body = {**body, "prompt": "x", "input": "x", **CHAT}
    for parse in (openai.parse_completion, openai.parse_chat, openai.parse_embedding):
        try:
            parse(body)  # type: ignore[operator]
        except openai.ApiError as error:
            assert error.status == 400
            assert len(error.message) < 400


@given(st.binary(max_size=30))
def test_any_bytes_are_an_object_or_a_refusal(body: bytes) -> None:
    try:
        assert isinstance(openai.parse_json(body), dict)
    except openai.ApiError as error:
        assert error.status == 400
