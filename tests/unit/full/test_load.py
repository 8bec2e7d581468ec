"""The load client of test-full tells whole answers from those that were cut."""

from __future__ import annotations

import json

import pytest

from ...full.load import Load


def answer(reason: str, *, stream: bool, end: bool = True) -> bytes:
    choice = {"text": "x", "finish_reason": reason}
    if not stream:
        return json.dumps({"choices": [choice], "usage": {"completion_tokens": 8}}).encode()
    part = f"data: {json.dumps({'choices': [choice]})}\n\n"
    return (part * 20 + ("data: [DONE]\n\n" if end else "")).encode()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("reason", "whole"), [("length", True), ("stop", True), ("abort", False)])
def test_an_aborted_answer_is_a_cut_one(stream: bool, reason: str, whole: bool) -> None:
    _, fault = Load("127.0.0.1:1", "m", stream_tokens=20)._verdict(stream, 200, answer(reason, stream=stream))
    assert (fault == "") is whole


def test_a_stream_without_its_end_is_a_cut_one() -> None:
    load = Load("127.0.0.1:1", "m", stream_tokens=20)
    assert load._verdict(True, 200, answer("length", stream=True, end=False))[1]
