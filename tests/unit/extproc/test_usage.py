"""Token counts out of responses, in every form servers report them, split anywhere."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config.limits import ByteBudget, Held
from headrace.extproc.usage import Usage, UsageMeter

from .test_model_name import CUTS, cut


def held(most: int = 1 << 20) -> Held:
    return Held(ByteBudget(most, small=most))


def read(content: bytes, *, events: bool, cuts: list[int] | None = None) -> Usage | None:
    meter = UsageMeter(held(), events=events)
    for piece in cut(content, cuts or []):
        meter.feed(piece)
    return meter.usage()


OPENAI = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13, "prompt_tokens_details": {"cached_tokens": 8}}
RESPONSES = {"input_tokens": 9, "output_tokens": 4, "input_tokens_details": {"cached_tokens": 8}}
ANTHROPIC = {"input_tokens": 1, "output_tokens": 4, "cache_read_input_tokens": 8, "cache_creation_input_tokens": 0}
SGLANG = {"prompt_tokens": 9, "completion_tokens": 4, "cached_tokens": 8}
FULL = Usage(9, 4, 8)

BODIES = [
    {"id": "1", "choices": [{"text": 'says "usage": {}'}], "usage": OPENAI},
    {"usage": RESPONSES, "output": []},
    {"type": "message", "content": [], "usage": ANTHROPIC},
    {"text": "x", "meta_info": SGLANG},
    [{"text": "x", "meta_info": SGLANG}],
]
STREAMS: list[list[Any]] = [
    [{"choices": [{"text": "a"}], "usage": None}, {"choices": [], "usage": OPENAI}],
    [
        {"type": "response.created", "response": {"usage": None}},
        {"type": "response.completed", "response": {"usage": RESPONSES}},
    ],
    [
        {"type": "message_start", "message": {"usage": {**ANTHROPIC, "output_tokens": 1}}},
        {"type": "message_delta", "usage": {"output_tokens": 4}},
    ],
    [{"text": "x", "meta_info": {**SGLANG, "completion_tokens": n}} for n in range(5)],
    # vLLM's continuous_usage_stats.
    [{"choices": [{"text": "a"}], "usage": {**OPENAI, "completion_tokens": n}} for n in range(5)],
]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("indent", [None, 2])
@given(cuts=CUTS)
def test_json_bodies(body: Any, indent: int | None, cuts: list[int]) -> None:
    assert read(json.dumps(body, indent=indent).encode(), events=False, cuts=cuts) == FULL


@pytest.mark.parametrize("events", STREAMS)
@pytest.mark.parametrize("line", ["\n", "\r\n"])
@pytest.mark.parametrize("space", ["", " "])
@given(cuts=CUTS)
def test_event_streams(events: list[Any], line: str, space: str, cuts: list[int]) -> None:
    content = "".join(f"data:{space}{json.dumps(event)}{line}{line}" for event in events) + f"data: [DONE]{line}{line}"
    assert read(content.encode(), events=True, cuts=cuts) == FULL


def test_a_last_event_without_its_line_break() -> None:
    assert read(b"data: " + json.dumps({"usage": OPENAI}).encode(), events=True) == FULL


@pytest.mark.parametrize("size", [(256 << 10) - 200, 256 << 10, 3 << 20])
def test_of_a_long_body_the_end_is_enough(size: int) -> None:
    body = {"data": "x" * size, "usage": OPENAI, "kv_transfer_params": None}
    assert read(json.dumps(body).encode(), events=False, cuts=[1 << 17, 1 << 18, 1 << 20]) == FULL


@pytest.mark.parametrize(("size", "usage"), [((256 << 10) - 300, FULL), (256 << 10, None)])
def test_a_body_of_up_to_256_kib_is_kept_whole(size: int, usage: Usage | None) -> None:
    body = {"usage": OPENAI, "data": "x" * size}
    assert read(json.dumps(body).encode(), events=False, cuts=[1 << 17, 1 << 18]) == usage


@pytest.mark.parametrize(
    "reported",
    [None, 7, [], {}, {"prompt_tokens": "9"}, {"prompt_tokens": -1}, {"prompt_tokens": True}, {"prompt_tokens": 1e9}],
)
def test_what_is_no_count_counts_nothing(reported: Any) -> None:
    assert read(json.dumps({"usage": reported}).encode(), events=False) in (None, Usage())


def test_embeddings_have_no_output() -> None:
    assert read(b'{"usage":{"prompt_tokens":8,"total_tokens":8}}', events=False) == Usage(8, 0, 0)


@given(content=st.binary(max_size=300) | st.text(max_size=100).map(str.encode), events=st.booleans(), cuts=CUTS)
def test_anything_is_read_without_complaint(content: bytes, events: bool, cuts: list[int]) -> None:
    read(content, events=events, cuts=cuts)
    read(b'"usage":{' + content, events=events, cuts=cuts)
    read(b'data: {"usage":' + content + b"}\n", events=True, cuts=cuts)


def test_a_line_without_end_is_not_kept_forever() -> None:
    meter = UsageMeter(held(), events=True)
    for _ in range(40):
        meter.feed(b"x" * (1 << 16))
    assert len(meter._kept) <= 256 << 10


@pytest.mark.parametrize("events", [True, False])
def test_without_room_a_response_is_passed_over(events: bool) -> None:
    text = json.dumps({"text": "x" * 500, "usage": OPENAI})
    content = f"data: {text}".encode() if events else text.encode()
    for most, wanted in ((len(content), FULL), (len(content) - 1, None)):
        budget = ByteBudget(most, small=most)
        meter = UsageMeter(Held(budget), events=events)
        meter.feed(content[:300])
        assert budget.held == 300
        meter.feed(content[300:])
        assert budget.held == (len(content) if wanted else 0)
        meter.feed(b"")
        assert meter.usage() == wanted
        assert budget.held == 0


def test_what_is_kept_of_events_is_a_line_that_has_not_ended() -> None:
    budget = ByteBudget(1000, small=1000)
    meter = UsageMeter(Held(budget), events=True)
    for _ in range(100):
        meter.feed(b"data: {}\n" * 10 + b"data:")
        assert budget.held == 5
    meter.close()
    meter.close()
    assert budget.held == 0
