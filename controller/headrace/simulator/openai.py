"""Requests of the OpenAI API, as far as a vLLM server takes them: from JSON to values, or a clear refusal.

Unknown fields are ignored, as vLLM does; a field that is used is checked, and the error names it.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from headrace.simulator.tokens import MAX_TOKEN_ID, encode_chat, encode_prompt

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's, and vLLM's, for /v1/completions
MAX_CHOICES = 128


class ApiError(Exception):
    """A request that is refused, in OpenAI's error form."""

    def __init__(self, status: int, message: str, *, kind: str = "BadRequestError", field: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.field = field

    def body(self) -> dict[str, Any]:
        """The error as JSON."""
        return {
            "error": {"message": self.message, "type": self.kind, "param": self.field, "code": self.status},
        }


def bad_field(field: str, value: object, fix: str) -> ApiError:
    """A 400 that names field, value (cut) and fix."""
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return ApiError(400, f"{field}: {shown} is not valid; {fix}", field=field)


def model_not_found(model: str) -> ApiError:
    """vLLM's answer to a model that it does not serve."""
    return ApiError(404, f"The model `{model}` does not exist.", kind="NotFoundError", field="model")


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt: its tokens, and its text where it came as text and `echo` wants it back."""

    tokens: array[int]
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """A completion or chat completion, checked."""

    model: str | None
    """None: the server's base model."""
    prompts: tuple[Prompt, ...]
    chat: bool
    n: int
    max_tokens: int | None
    """None: no limit but the context's."""
    min_tokens: int
    ignore_eos: bool
    stop: tuple[str, ...]
    include_stop_text: bool
    stop_token_ids: frozenset[int]
    seed: int
    stream: bool
    include_usage: bool
    continuous_usage: bool
    echo: bool


@dataclass(frozen=True, kw_only=True)
class EmbeddingRequest:
    """An embedding request, checked."""

    model: str | None
    prompts: tuple[Prompt, ...]
    base64: bool


def parse_json(body: bytes) -> dict[str, Any]:
    """The body as a JSON object. Raises ApiError (400)."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}; send a JSON object") from None
    if not isinstance(parsed, dict):
        raise ApiError(400, f"the body is a JSON {type(parsed).__name__}; send an object")
    return parsed


def parse_completion(body: Mapping[str, Any]) -> GenerationRequest:
    """A /v1/completions body. Raises ApiError (400)."""
    max_tokens = _integer(body, "max_tokens", 1)
    return _generation(
        body,
        prompts=_prompts(body, "prompt"),
        chat=False,
        max_tokens=DEFAULT_COMPLETION_TOKENS if max_tokens is None else max_tokens,
    )


def parse_chat(body: Mapping[str, Any]) -> GenerationRequest:
    """A /v1/chat/completions body. Raises ApiError (400)."""
    max_tokens = _integer(body, "max_completion_tokens", 1)
    if max_tokens is None:
        max_tokens = _integer(body, "max_tokens", 1)
    prompt = Prompt(tokens=encode_chat(parse_messages(body)))
    return _generation(body, prompts=(prompt,), chat=True, max_tokens=max_tokens)


def parse_embedding(body: Mapping[str, Any]) -> EmbeddingRequest:
    """A /v1/embeddings body. Raises ApiError (400)."""
    encoding = body.get("encoding_format", "float")
    if encoding not in ("float", "base64"):
        raise bad_field("encoding_format", encoding, "give 'float' or 'base64'")
    return EmbeddingRequest(model=_model(body), prompts=_prompts(body, "input"), base64=encoding == "base64")


def parse_messages(body: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The messages of a chat as (role, text) pairs. Raises ApiError (400)."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad_field("messages", messages, "give a list of at least one message")
    pairs = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise bad_field(f"messages[{index}]", message, "give an object with 'role' and 'content'")
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise bad_field(f"messages[{index}].role", role, "give a role such as 'system', 'user' or 'assistant'")
        text = _content(message.get("content"), f"messages[{index}].content")
        if message.get("tool_calls"):  # a model reads them as text, so they are part of the prompt
            text += orjson.dumps(message["tool_calls"]).decode()
        pairs.append((role, text))
    return pairs


def _content(content: object, field: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_field(field, content, "give a string or a list of parts")
    texts = []
    for index, part in enumerate(content):
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise bad_field(
                f"{field}[{index}]", part, "give {'type': 'text', 'text': ...}: the simulated model reads text"
            )
        texts.append(text)
    return "\n".join(texts)


def _generation(
    body: Mapping[str, Any], *, prompts: tuple[Prompt, ...], chat: bool, max_tokens: int | None
) -> GenerationRequest:
    stream = _boolean(body, "stream")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise bad_field("stream_options", options, "give an object")
    if options is not None and not stream:
        raise bad_field("stream_options", options, 'it can only be given with "stream": true')
    _number(body, "temperature", 0.0, 2.0)
    _number(body, "top_p", 0.0, 1.0)
    n = _integer(body, "n", 1, MAX_CHOICES)
    min_tokens = _integer(body, "min_tokens", 0) or 0
    if max_tokens is not None and min_tokens > max_tokens:
        raise bad_field("min_tokens", min_tokens, f"it is more than max_tokens, {max_tokens}")
    return GenerationRequest(
        model=_model(body),
        prompts=prompts,
        chat=chat,
        n=1 if n is None else n,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        ignore_eos=_boolean(body, "ignore_eos"),
        stop=_stop(body),
        include_stop_text=_boolean(body, "include_stop_str_in_output"),
        stop_token_ids=_stop_token_ids(body),
        seed=_integer(body, "seed") or 0,
        stream=stream,
        include_usage=bool(options) and _boolean(options or {}, "include_usage", "stream_options."),
        continuous_usage=bool(options) and _boolean(options or {}, "continuous_usage_stats", "stream_options."),
        echo=_boolean(body, "echo") and not chat,
    )


def _model(body: Mapping[str, Any]) -> str | None:
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise bad_field("model", model, "give a model's name")
    return model or None


def _prompts(body: Mapping[str, Any], field: str) -> tuple[Prompt, ...]:
    """A string, token ids, or a list of either."""
    value = body.get(field)
    if isinstance(value, str):
        return (Prompt(tokens=encode_prompt(value), text=value),)
    fix = "give a string, a list of strings, a list of token ids, or a list of such lists"
    if not isinstance(value, list) or not value:
        raise bad_field(field, value, fix)
    if isinstance(value[0], int):
        return (Prompt(tokens=_token_ids(value, field)),)
    prompts = []
    for index, item in enumerate(value):
        if isinstance(item, str):
            prompts.append(Prompt(tokens=encode_prompt(item), text=item))
        elif isinstance(item, list) and item:
            prompts.append(Prompt(tokens=_token_ids(item, f"{field}[{index}]")))
        else:
            raise bad_field(f"{field}[{index}]", item, fix)
    return tuple(prompts)


def _token_ids(value: list[object], field: str) -> array[int]:
    for index, token in enumerate(value):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token <= MAX_TOKEN_ID:
            raise bad_field(f"{field}[{index}]", token, "give a token id, a whole number from 0")
    return array("I", value)  # type: ignore[arg-type]  # all are int: checked above


def _stop(body: Mapping[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop")
    if stop is None:
        return ()
    found = [stop] if isinstance(stop, str) else stop
    if not isinstance(found, list) or not all(isinstance(text, str) and text for text in found):
        raise bad_field("stop", stop, "give a string or a list of strings, none empty")
    return tuple(found)


def _stop_token_ids(body: Mapping[str, Any]) -> frozenset[int]:
    ids = body.get("stop_token_ids")
    if ids is None:
        return frozenset()
    if not isinstance(ids, list):
        raise bad_field("stop_token_ids", ids, "give a list of token ids")
    return frozenset(_token_ids(ids, "stop_token_ids"))


def _boolean(body: Mapping[str, Any], field: str, prefix: str = "") -> bool:
    value = body.get(field)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise bad_field(prefix + field, value, "give true or false")
    return value


def _integer(body: Mapping[str, Any], field: str, least: int | None = None, most: int | None = None) -> int | None:
    value = body.get(field)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise bad_field(field, value, "give a whole number")
    if least is not None and value < least:
        raise bad_field(field, value, f"give {least} or more")
    if most is not None and value > most:
        raise bad_field(field, value, f"give {most} or less")
    return value


def _number(body: Mapping[str, Any], field: str, least: float, most: float) -> None:
    value = body.get(field)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise bad_field(field, value, f"give a number from {least:g} to {most:g}")
