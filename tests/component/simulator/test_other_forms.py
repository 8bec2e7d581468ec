"""The same answers by OpenAI's /v1/responses and Anthropic's /v1/messages."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .client import Client
from .process import MODEL

USER = {"role": "user", "content": "Count."}
SYSTEM = {"role": "system", "content": "Be brief."}
CASES = {
    "/v1/responses": ({"instructions": "Be brief.", "input": "Count."}, "max_output_tokens"),
    "/v1/messages": ({"system": "Be brief.", "messages": [USER]}, "max_tokens"),
}


def text_of(path: str, body: Any) -> str:
    content = body["output"][0]["content"] if path == "/v1/responses" else body["content"]
    return "".join(part["text"] for part in content)


@pytest.mark.parametrize("path", CASES)
async def test_they_say_what_a_chat_says(client: Client, path: str) -> None:
    asked, limit = CASES[path]
    chat = (await client.post("/v1/chat/completions", {"messages": [SYSTEM, USER], "max_tokens": 12})).json()
    expected = chat["choices"][0]["message"]["content"]
    whole = (await client.post(path, {**asked, limit: 12})).json()
    assert text_of(path, whole) == expected
    assert whole["model"] == MODEL
    assert whole["usage"]["output_tokens"] == 12
    reply = await client.post(path, {**asked, limit: 12, "stream": True})
    events = [json.loads(block.split("data: ", 1)[1]) for block in reply.body.decode().strip().split("\n\n")]
    deltas = [event["delta"] for event in events if event["type"].endswith("delta") and "delta" in event]
    pieces = [delta if isinstance(delta, str) else delta.get("text", "") for delta in deltas]
    assert "".join(pieces) == expected
    assert events[-1]["type"] in ("response.completed", "message_stop")


async def test_how_they_end(client: Client) -> None:
    cut = {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}], "max_output_tokens": 2}
    response = (await client.post("/v1/responses", cut)).json()
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    response = (await client.post("/v1/responses", {"input": "x"})).json()
    assert (response["status"], response["incomplete_details"]) == ("completed", None)
    message = (await client.post("/v1/messages", {"messages": [USER], "max_tokens": 2})).json()
    assert message["stop_reason"] == "max_tokens"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {}),
        ("/v1/responses", {"input": 5}),
        ("/v1/responses", {"input": [5]}),
        ("/v1/responses", {"input": "x", "instructions": 5}),
        ("/v1/responses", {"input": "x", "max_output_tokens": 0}),
        ("/v1/messages", {"max_tokens": 5}),
        ("/v1/messages", {"messages": [USER]}),
        ("/v1/messages", {"messages": [], "max_tokens": 5}),
        ("/v1/messages/count_tokens", {"messages": 5}),
    ],
)
async def test_what_is_wrong_is_refused(client: Client, path: str, body: Any) -> None:
    assert (await client.post(path, body)).status == 400


async def test_tokens_are_counted_without_an_answer(client: Client) -> None:
    counted = (await client.post("/v1/messages/count_tokens", {"messages": [USER]})).json()["input_tokens"]
    message = (await client.post("/v1/messages", {"messages": [USER], "max_tokens": 1})).json()
    usage = message["usage"]
    assert counted == usage["input_tokens"] + usage["cache_read_input_tokens"]
