"""The tokens of text prompts: what is asked for, what is done without, and that nobody waits long."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from headrace.config.decode import InvalidConfig, decode
from headrace.core import Request
from headrace.prefixes.tokenizer import Tokenizer, TokenizerParameters, TokenizerSettings, question, read_answer

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions?x=1"
MESSAGES = [{"role": "system", "content": "be kind"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}]


def request(body: Any, path: str = COMPLETIONS) -> Request:
    return Request("r", path=path, model="target", body=json.dumps(body).encode())


def asked(body: Any, path: str = COMPLETIONS) -> Any:
    found = question(request(body, path))
    return None if found is None else json.loads(found)


def test_what_is_asked() -> None:
    # By the name that the server will see.
    assert asked({"model": "m", "prompt": "hi", "max_tokens": 3}) == {"model": "target", "prompt": "hi"}
    assert asked({"prompt": "hi", "add_special_tokens": False})["add_special_tokens"] is False
    tools = [{"type": "function"}]
    chat = {"model": "m", "messages": MESSAGES, "tools": tools, "stream": True, "chat_template_kwargs": {"a": 1}}
    wanted = {"model": "target", "messages": MESSAGES, "tools": tools, "chat_template_kwargs": {"a": 1}}
    assert asked(chat, CHAT) == wanted


IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"prompt": [1, 2, 3]}, COMPLETIONS),
        ({"prompt": ["a", "b"]}, COMPLETIONS),
        ({"prompt": "a", "cache_salt": "s"}, COMPLETIONS),
        ({"messages": IMAGE}, CHAT),
        ({"messages": []}, CHAT),
        ({"messages": ["x"]}, CHAT),
        ({"messages": [{"role": "user", "content": 5}]}, CHAT),
        ({"input": "a"}, "/v1/embeddings"),
        ({"prompt": "a"}, "/v1/models"),
        ([], COMPLETIONS),
    ],
)
def test_what_is_not_asked(body: Any, path: str) -> None:
    assert asked(body, path) is None


def test_bodies_that_cannot_be_read_are_not_asked_for() -> None:
    deep = b'{"messages":[{"content":"x"}],"tools":%s}' % (b"[" * 400 + b"]" * 400)
    for body in (b"", b"{", b"\xff", deep):
        assert question(Request("r", path=CHAT, body=body)) is None


@given(
    content=st.binary(max_size=200)
    | st.lists(st.integers(-5, 1 << 40)).map(lambda t: json.dumps({"tokens": t}).encode())
)
def test_answers_are_tokens_or_refused(content: bytes) -> None:
    try:
        tokens = read_answer(content)
    except ValueError:
        return
    assert json.loads(content)["tokens"] == list(tokens)


def test_settings() -> None:
    def read(values: dict[str, Any]) -> TokenizerSettings:
        return decode(values, TokenizerParameters, "parameters").settings()

    assert read({}) == TokenizerSettings("", 0.2)
    llm_d = {"modelName": "m", "vllm": {"url": "http://localhost:8000/", "x": 1}, "timeout": "1s"}
    assert read(llm_d) == TokenizerSettings("http://localhost:8000", 1.0)
    for wrong in ({"vllm": {"url": "localhost"}}, {"vllm": 3}, {"timeout": "0s"}, {"timeout": "1h"}, {"timeout": "x"}):
        with pytest.raises(InvalidConfig):
            read(wrong)


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def tokenizing(handler: Any, seconds: float = 20.0) -> AsyncIterator[tuple[Tokenizer, Clock, list[bool]]]:
    app = web.Application()
    app.router.add_post("/tokenize", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    clock, told = Clock(), list[bool]()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    tokenizer = Tokenizer(TokenizerSettings("", seconds), server=lambda: url, clock=clock, on_answer=told.append)
    try:
        yield tokenizer, clock, told
    finally:
        await tokenizer.close()
        await runner.cleanup()


async def test_tokens_of_a_server() -> None:
    async def handler(asked: web.Request) -> web.Response:
        assert await asked.json() == {"model": "target", "prompt": "hi"}
        return web.json_response({"count": 2, "tokens": [7, 8]})

    async with tokenizing(handler) as (tokenizer, _, told):
        assert await tokenizer.tokens(request({"prompt": "hi"})) == (7, 8)
        assert await tokenizer.tokens(request({"prompt": [1]})) is None
        assert told == [True]


async def test_a_slow_server_holds_nobody_up_for_long_and_is_left_alone_for_a_while() -> None:
    held, questions = asyncio.Event(), 0

    async def handler(_: web.Request) -> web.Response:
        nonlocal questions
        questions += 1
        await held.wait()
        return web.json_response({"tokens": [1]})

    async with tokenizing(handler, seconds=0.05) as (tokenizer, clock, told):
        for _ in range(8):
            assert await tokenizer.tokens(request({"prompt": "hi"})) is None
        assert told == [False] * 5
        assert questions <= 5
        clock.now = 6.0
        assert await tokenizer.tokens(request({"prompt": "hi"})) is None
        assert told == [False] * 6
        held.set()


@pytest.mark.parametrize(
    "answer", [web.Response(status=404), web.Response(text="no"), web.Response(text='{"tokens":[-1]}')]
)
async def test_a_server_that_cannot(answer: web.Response) -> None:
    async def handler(_: web.Request) -> web.Response:
        return answer

    async with tokenizing(handler) as (tokenizer, _, told):
        assert await tokenizer.tokens(request({"prompt": "hi"})) is None
        assert told == [False]


async def test_nobody_to_ask_and_nobody_there() -> None:
    nobody = Tokenizer(TokenizerSettings(), server=lambda: None, clock=Clock())
    assert await nobody.tokens(request({"prompt": "hi"})) is None
    gone = Tokenizer(TokenizerSettings("http://127.0.0.1:1"), server=lambda: None, clock=Clock())
    assert await gone.tokens(request({"prompt": "hi"})) is None
    await gone.close()
