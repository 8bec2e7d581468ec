"""The simulated server's HTTP API over real sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from .client import Client
from .process import MODEL, simulator

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Count."}]}
COMPLETION = {"model": MODEL, "prompt": "Once upon a time"}


async def test_every_answer_says_that_it_is_simulated_and_by_whom(client: Client) -> None:
    for reply in (
        await client.get("/health"),
        await client.get("/metrics"),
        await client.get("/nowhere"),
        await client.post("/v1/completions", {"prompt": 5}),
        await client.post("/v1/completions", {**COMPLETION, "max_tokens": 1}),
        await client.post("/v1/completions", {**COMPLETION, "max_tokens": 1, "stream": True}),
    ):
        assert reply.headers["x-headrace-simulator"] == "true"
        assert reply.headers["x-headrace-pod"] == "pod-1"
    version = (await client.get("/version")).json()
    assert version["simulator"] is True
    assert "simulator" in version["version"]


async def test_a_completion(client: Client) -> None:
    reply = await client.post("/v1/completions", {**COMPLETION, "max_tokens": 8}, **{"x-request-id": "abc"})
    body = reply.json()
    assert reply.status == 200
    assert reply.headers["x-request-id"] == "abc"
    assert body["id"] == "cmpl-abc"
    assert body["object"] == "text_completion"
    assert body["model"] == MODEL
    assert body["system_fingerprint"] == "headrace-simulator"
    (choice,) = body["choices"]
    assert len(choice["text"]) == 8 * 4
    assert (choice["index"], choice["finish_reason"]) == (0, "length")
    assert body["usage"]["prompt_tokens"] == 1 + 4
    assert body["usage"]["completion_tokens"] == 8
    assert body["usage"]["total_tokens"] == 13


async def test_the_same_request_gets_the_same_text(client: Client) -> None:
    replies = [await client.post("/v1/completions", {**COMPLETION, "max_tokens": 20}) for _ in range(2)]
    other = await client.post("/v1/completions", {**COMPLETION, "max_tokens": 20, "seed": 1})
    texts = [reply.json()["choices"][0]["text"] for reply in (*replies, other)]
    assert texts[0] == texts[1] != texts[2]


async def test_streamed_and_whole_answers_have_the_same_text(client: Client) -> None:
    whole = (await client.post("/v1/chat/completions", {**CHAT, "max_tokens": 12})).json()
    streamed = await client.post("/v1/chat/completions", {**CHAT, "max_tokens": 12, "stream": True})
    events = streamed.events()
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    pieces = [event["choices"][0]["delta"]["content"] for event in events[1:]]
    assert len(pieces) == 12, "one event a token"
    assert "".join(pieces) == whole["choices"][0]["message"]["content"]
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * 12 + ["length"]
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert all("usage" not in event for event in events)


async def test_usage_comes_last_when_asked_for(client: Client) -> None:
    body = {**COMPLETION, "max_tokens": 3, "stream": True, "stream_options": {"include_usage": True}}
    events = (await client.post("/v1/completions", body)).events()
    assert [len(event["choices"]) for event in events] == [1, 1, 1, 0]
    assert events[-1]["usage"]["completion_tokens"] == 3
    body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    events = (await client.post("/v1/completions", body)).events()
    assert events[0]["usage"]["prompt_tokens"] == 5


async def test_several_answers_and_several_prompts(client: Client) -> None:
    body: dict[str, Any] = {"prompt": ["first", "second"], "n": 2, "max_tokens": 4}
    whole = (await client.post("/v1/completions", body)).json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    assert len({choice["text"] for choice in whole["choices"]}) == 4
    assert whole["usage"]["completion_tokens"] == 16
    assert whole["usage"]["prompt_tokens"] == 3 + 3
    texts = [""] * 4
    for event in (await client.post("/v1/completions", {**body, "stream": True})).events():
        texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert texts == [choice["text"] for choice in whole["choices"]]


async def test_stop_strings_end_an_answer(client: Client) -> None:
    body = {**COMPLETION, "max_tokens": 30}
    full = (await client.post("/v1/completions", body)).json()["choices"][0]["text"]
    word = full[40:44]
    expected = full[: full.index(word)]
    (choice,) = (await client.post("/v1/completions", {**body, "stop": [word]})).json()["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (expected, "stop", word)
    events = (await client.post("/v1/completions", {**body, "stop": word, "stream": True})).events()
    assert "".join(event["choices"][0]["text"] for event in events) == expected
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    await client.wait_metric("num_requests_running", lambda value: value == 0)


async def test_answers_without_a_limit_end_by_themselves_unless_told_not_to(client: Client) -> None:
    body = (await client.post("/v1/chat/completions", CHAT)).json()
    assert body["choices"][0]["finish_reason"] == "stop"
    assert 128 <= body["usage"]["completion_tokens"] <= 384
    ignoring = {**CHAT, "messages": [{"role": "user", "content": "x" * 4 * 7000}], "ignore_eos": True}
    body = (await client.post("/v1/chat/completions", ignoring)).json()
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["total_tokens"] == 8192


async def test_echo_gives_the_prompt_back(client: Client) -> None:
    body = {**COMPLETION, "max_tokens": 2, "echo": True}
    assert (await client.post("/v1/completions", body)).json()["choices"][0]["text"].startswith(COMPLETION["prompt"])
    events = (await client.post("/v1/completions", {**body, "stream": True})).events()
    assert events[0]["choices"][0]["text"] == COMPLETION["prompt"]


async def test_a_repeated_prompt_is_cached(client: Client) -> None:
    body = {"prompt": "A prefix that nobody else sends. " * 40, "max_tokens": 1}
    await client.post("/v1/completions", body)
    hits = await client.metric("prefix_cache_hits_total")
    usage = (await client.post("/v1/completions", body)).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 320  # 331 tokens: 20 whole blocks
    assert await client.metric("prefix_cache_hits_total") == hits + 320
    usage = (await client.post("/v1/completions", {**body, "n": 3})).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 320, "a prompt counts once"


async def test_a_request_id_of_any_bytes_comes_back(client: Client) -> None:
    reply = await client.post("/v1/completions", {"prompt": "x", "max_tokens": 1}, **{"x-request-id": "ä\udcff"})
    assert reply.status == 200
    assert reply.json()["id"].startswith("cmpl-ä")


async def test_models_and_adapters(client: Client) -> None:
    listed = (await client.get("/v1/models")).json()["data"]
    assert {(model["id"], model["parent"]) for model in listed} >= {
        (MODEL, None), ("sql-lora", MODEL), ("chat-lora", MODEL)
    }  # fmt: skip
    assert listed[0]["max_model_len"] == 8192
    answer = (await client.post("/v1/completions", {**COMPLETION, "model": "sql-lora"})).json()
    assert answer["model"] == "sql-lora"


async def test_adapters_are_loaded_and_unloaded(client: Client) -> None:
    load = {"lora_name": "new-lora", "lora_path": "/adapters/new"}
    use = {**COMPLETION, "model": "new-lora", "max_tokens": 1}
    assert (await client.post("/v1/completions", use)).status == 404
    assert (await client.post("/v1/load_lora_adapter", load)).status == 200
    assert (await client.post("/v1/load_lora_adapter", load)).status == 400
    assert (await client.post("/v1/completions", use)).status == 200
    assert (await client.post("/v1/unload_lora_adapter", {"lora_name": "new-lora"})).status == 200
    assert (await client.post("/v1/unload_lora_adapter", {"lora_name": "new-lora"})).status == 404
    assert (await client.post("/v1/completions", use)).status == 404
    for body, field in (({"lora_path": "x"}, "body.lora_name"), ({"lora_name": "x"}, "body.lora_path")):
        assert (await client.post("/v1/load_lora_adapter", body)).json()["error"]["param"] == field


async def test_tokenize_and_detokenize(client: Client) -> None:
    body = (await client.post("/tokenize", {"prompt": "Grüße, world"})).json()
    assert body["count"] == len(body["tokens"]) == 1 + 4
    assert (await client.post("/detokenize", {"tokens": body["tokens"]})).json() == {"prompt": "Grüße, world"}
    chat = (await client.post("/tokenize", CHAT)).json()
    usage = (await client.post("/v1/chat/completions", {**CHAT, "max_tokens": 1})).json()["usage"]
    assert chat["count"] == usage["prompt_tokens"]
    assert (await client.post("/tokenize", {"prompt": 5})).status == 400
    assert (await client.post("/detokenize", {"tokens": [-1]})).status == 400


async def test_embeddings(client: Client, session: aiohttp.ClientSession) -> None:
    # A model that writes makes none.
    assert (await client.post("/v1/embeddings", {"input": "a"})).status == 404
    with simulator("--runner", "pooling", "--max-model-len", "8192") as (_, url):
        await _embeddings(Client(session, url))


async def _embeddings(client: Client) -> None:
    assert (await client.post("/v1/completions", COMPLETION)).status == 404
    refused = await client.post("/v1/embeddings", {"model": "no-such-model", "input": "x"})
    assert (refused.status, refused.json()["error"]["code"]) == (404, 404)
    refused = await client.post("/v1/embeddings", {"input": "word " * 8192})
    assert (refused.status, refused.json()["error"]["param"]) == (400, "input_tokens")
    body = (await client.post("/v1/embeddings", {"input": ["a", "b", "a"]})).json()
    vectors = [entry["embedding"] for entry in body["data"]]
    assert vectors[0] == vectors[2] != vectors[1]
    assert body["usage"] == {
        "prompt_tokens": 6, "completion_tokens": 0, "total_tokens": 6, "completion_tokens_details": None,
        "prompt_tokens_details": {"cached_tokens": 0, "created_cache_tokens": None, "multimodal_tokens": None},
    }  # fmt: skip
    assert isinstance(
        (await client.post("/v1/embeddings", {"input": "a", "encoding_format": "base64"})).json()["data"][0][
            "embedding"
        ],
        str,
    )


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v1/completions", {"model": "no-such-model", "prompt": "x"}, 404, ["no-such-model"]),
        ("/v1/chat/completions", {**CHAT, "model": "no-such-model"}, 404, ["no-such-model"]),
        (
            "/v1/completions",
            {"prompt": "word " * 8192, "max_tokens": 1},
            400,
            ["maximum context length is 8192", "10241"],
        ),
        ("/v1/completions", {"prompt": "x", "max_tokens": 8192}, 400, ["context length", "8192 output tokens"]),
        ("/v1/completions", {"prompt": "x", "max_tokens": 8193}, 400, ["max_tokens=8193", "max_model_len=8192"]),
        ("/v1/completions", b"{", 400, ["not valid JSON"]),
        ("/v1/completions", b"[]", 400, ["list", "object"]),
        ("/v1/chat/completions", b"\xff\xfe", 400, ["not valid JSON"]),
        ("/v1/chat/completions", {}, 400, ["messages"]),
    ],
)
async def test_what_is_wrong_is_said_in_openais_form(
    client: Client, path: str, body: Any, status: int, words: list[str]
) -> None:
    reply = await client.post(path, body)
    error = reply.json()["error"]
    assert (reply.status, error["code"]) == (status, status)
    assert all(word in error["message"] for word in words), error


@pytest.mark.parametrize(
    ("path", "status", "text"), [("/v1/no", 404, "Not Found"), ("/health", 405, "Method Not Allowed")]
)
async def test_a_route_that_is_not_there_has_a_form_of_its_own(
    client: Client, path: str, status: int, text: str
) -> None:
    reply = await client.post(path, {})
    assert (reply.status, reply.json()) == (status, {"detail": text})


async def test_a_body_of_2_mb_is_read_and_one_beyond_the_limit_refused(client: Client) -> None:
    reply = await client.post("/v1/completions", {"prompt": "word " * 400_000})
    assert reply.status == 400
    assert "context" in reply.json()["error"]["message"]
    reply = await client.post("/v1/completions", b'{"prompt": "' + b"x" * (64 * 1024 * 1024) + b'"}')
    assert reply.status == 413


async def test_health_ping_and_load(client: Client) -> None:
    assert (await client.get("/health")).status == 200
    assert (await client.get("/ping")).status == 200
    assert (await client.post("/ping", b"")).status == 200
    assert (await client.get("/load")).json() == {"server_load": 0}


async def test_a_client_that_leaves_frees_the_engine(session: aiohttp.ClientSession) -> None:
    with simulator() as (_, url):
        client = Client(session, url)
        waiting = asyncio.create_task(
            client.post("/v1/completions", {**COMPLETION, "max_tokens": 100_000, "ignore_eos": True})
        )
        async with client.endless():
            await client.wait_metric("num_requests_running", lambda value: value == 2)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        await client.wait_metric("num_requests_running", lambda value: value == 0)
        await client.wait_metric("kv_cache_usage_perc", lambda value: value == 0)
        # As a real server, it counts nobody who leaves.
        assert await client.metric("request_success_total", finished_reason="abort") == 0


async def test_hundreds_of_streams_at_once_all_arrive_whole(client: Client) -> None:
    body = {"prompt": "x", "max_tokens": 20, "stream": True}
    replies = await asyncio.gather(*(client.post("/v1/completions", {**body, "seed": number}) for number in range(600)))
    assert all(len(reply.events()) == 20 for reply in replies)
