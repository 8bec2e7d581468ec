"""The tokens of text prompts, from a server that has the model's tokenizer.

Servers tell of their caches in blocks of tokens; of a prompt that is text only its tokenizer can say which those are.
What cannot be had in time is done without: the estimated index knows text.
Source: vLLM 0.32.0, `POST /tokenize`; llm-d-router, parameters of token-producer."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import orjson
from msgspec import Struct, structs

from headrace.config.decode import Duration, Refused
from headrace.core import Request
from headrace.core.bounded_json import MAX_BYTES, load
from headrace.prefixes.precise import PreciseIndex
from headrace.protocol import http
from headrace.serving.http_client import HttpClient, HttpError

logger = logging.getLogger(__name__)

# Fields of a chat that decide how it becomes tokens, under the names that completions and /tokenize share.
_CHAT_FIELDS = (
    "messages",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "chat_template",
    "chat_template_kwargs",
)
# Longer bodies are not read a second time for this: it would hold up others, and no server answers in time.
_MOST_BODY_BYTES = 1 << 20
_MOST_ANSWER_BYTES = MAX_BYTES
_MOST_AT_ONCE = 64
# So many failures in a row, and nobody is asked for a while: each would have cost a request the whole time-out.
_FAILURES = 5
_PAUSE_SECONDS = 5.0


@dataclass(frozen=True)
class TokenizerSettings:
    """`url` is that of a server with the model's tokenizer; "": the pool's own servers. `timeout_seconds` is how long
    a request may be held up for its tokens."""

    url: str = ""
    timeout_seconds: float = 0.2


class _Server(Struct, frozen=True):
    url: str = ""

    def __post_init__(self) -> None:
        if self.url and not self.url.startswith(("http://", "https://")):
            raise Refused("url", "give an address such as http://localhost:8000, or leave it out")


class TokenizerParameters(Struct, frozen=True):
    """A token-producer's parameters. Models are named by requests; how prompts are rendered is the server's own affair:
    other fields are not looked at."""

    vllm: _Server = _Server()
    timeout: Duration = Duration(TokenizerSettings.timeout_seconds)

    def __post_init__(self) -> None:
        if not 0 < self.timeout <= 10:
            raise Refused("timeout", "give a time over 0s and up to 10s")

    def settings(self) -> TokenizerSettings:
        """The settings that they come to."""
        return TokenizerSettings(self.vllm.url.rstrip("/"), float(self.timeout))


@dataclass(eq=False)
class TokenProducer:
    """Has the tokens of text prompts, while some server reports its cache in blocks of tokens."""

    tokens: Callable[[Request], Awaitable[tuple[int, ...] | None]]
    index: PreciseIndex

    async def prepare_request(self, request: Request) -> Request:
        """The request with its tokens, if they are to be had in time, and without the body that they are of."""
        if not self.index.block_sizes():
            return request
        return structs.replace(request, tokens=await self.tokens(request), body=b"")


def question(request: Request) -> bytes | None:
    """The body of a /tokenize request for a completion or chat; None where its tokens cannot be asked for.

    That is so of prompts that are tokens already, of several prompts in one request, of images, and of salted ones:
    equal tokens are other blocks there."""
    body = request.body
    path = request.path.partition("?")[0].rstrip("/")
    if not path.endswith("/completions") or len(body) > _MOST_BODY_BYTES:
        return None
    try:
        value = load(body)
    except ValueError:
        return None
    if not isinstance(value, dict) or value.get("cache_salt"):
        return None
    asked: dict[str, Any] = {"model": request.model}
    if path.endswith("/chat/completions"):
        if not _is_text(value.get("messages")):
            return None
        asked |= {name: value[name] for name in _CHAT_FIELDS if value.get(name) is not None}
    else:
        if not isinstance(value.get("prompt"), str):
            return None
        asked["prompt"] = value["prompt"]
        if isinstance(value.get("add_special_tokens"), bool):
            asked["add_special_tokens"] = value["add_special_tokens"]
    try:
        return orjson.dumps(asked)
    except TypeError:  # nested too deeply
        return None


def _is_text(messages: object) -> bool:
    """Whether a chat's messages are text alone."""
    if not isinstance(messages, list) or not messages:
        return False
    for message in messages:
        if not isinstance(message, dict):
            return False
        content = message.get("content")
        if isinstance(content, list):
            if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
                return False
        elif content is not None and not isinstance(content, str):
            return False
    return True


def read_answer(content: bytes) -> tuple[int, ...]:
    """The tokens of a /tokenize answer. Raises ValueError."""
    value = load(content)
    tokens = value.get("tokens") if isinstance(value, dict) else None
    if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < 1 << 32 for token in tokens):
        raise ValueError("the answer has no list 'tokens'")
    return tuple(tokens)


@dataclass(eq=False)
class Tokenizer:
    """Asks for tokens, within bounds of time and number. `server` names the base URL to ask, None for no one; `clock`
    gives seconds that only go forward; `on_answer` is told of each question whether it was answered."""

    settings: TokenizerSettings
    _: KW_ONLY
    server: Callable[[], str | None]
    clock: Callable[[], float]
    on_answer: Callable[[bool], None] = lambda ok: None

    def __post_init__(self) -> None:
        self._client = HttpClient(connections=_MOST_AT_ONCE)
        self._under_way = 0
        self._failures = 0
        self._paused_until = float("-inf")

    async def tokens(self, request: Request) -> tuple[int, ...] | None:
        """The prompt's tokens; None where they are not to be had in time. Raises nothing."""
        if self._under_way >= _MOST_AT_ONCE or self.clock() < self._paused_until:
            return None
        server = self.settings.url or self.server()
        asked = question(request) if server is not None else None
        if server is None or asked is None:
            return None
        self._under_way += 1
        try:
            found = read_answer(await self._ask(server, asked))
        except (HttpError, ValueError) as error:
            self._failed(server, error)
            return None
        finally:
            self._under_way -= 1
        if self._failures >= _FAILURES:
            logger.info("prompts are tokenized again")
        self._failures = 0
        self.on_answer(True)
        return found

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _ask(self, server: str, asked: bytes) -> bytes:
        status, content = await self._client.read(
            "POST",
            f"{server}/tokenize",
            max_bytes=_MOST_ANSWER_BYTES,
            seconds=self.settings.timeout_seconds,
            verify=False,
            headers={http.CONTENT_TYPE: "application/json"},
            data=asked,
        )
        if status != 200:
            raise HttpError(f"status {status}")
        return content

    def _failed(self, server: str, error: Exception) -> None:
        self.on_answer(False)
        self._failures += 1
        if self._failures >= _FAILURES:
            self._paused_until = self.clock() + _PAUSE_SECONDS
        if self._failures == _FAILURES:
            text = str(error)[:200]
            logger.warning("prompts are not tokenized, prefixes are estimated: %s/tokenize: %s", server, text)
