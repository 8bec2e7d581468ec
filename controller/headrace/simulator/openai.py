"""Requests of the OpenAI API, as far as a vLLM server takes them: from JSON to values, or a clear refusal.

Unknown fields are ignored, as vLLM does; a field that is used is checked, and the error names it.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from headrace.simulator.tokens import MAX_TOKEN_ID, encode_chat, encode_prompt

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's, and vLLM's, for /v1/completions
MAX_CHOICES = 128
_FIRST_FORM = "ChatCompletionDeveloperMessageParam"


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


def bad_field(field: str, value: object, fix: str, *, named: bool = True) -> ApiError:
    """A 400 that names field, value (cut) and fix. `named` False: as vLLM for some fields, `param` is null."""
    return ApiError(400, _text(field, value, fix), field=field if named else None)


def wrong_type(field: str, value: object, fix: str) -> ApiError:
    """A 400 for a value of another type than the API has: vLLM's own validation says so in another form."""
    return ApiError(400, _text(field, value, fix), kind="Bad Request", field=f"body.{field}")


def _text(field: str, value: object, fix: str) -> str:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return f"{field}: {shown} is not valid; {fix}"


def model_not_found(model: str, aliases: Sequence[str]) -> ApiError:
    """vLLM's answer to a model that it does not serve."""
    text = f"The model `{model}` does not exist. Valid aliases: {', '.join(aliases)}."
    return ApiError(404, text, kind="NotFoundError", field="model")


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
        text, field = (
            f"the body is not valid JSON: {error}; send a JSON object",
            f"body.{error.pos}" if body else "body",
        )
        raise ApiError(400, text, kind="Bad Request", field=field) from None
    if not isinstance(parsed, dict):
        text = f"the body is a JSON {type(parsed).__name__}; send an object"
        raise ApiError(400, text, kind="Bad Request", field="body")
    return parsed


def require_json(content_type: str) -> None:
    """Refuse a body of another kind. Raises ApiError (400)."""
    if content_type != "application/json":
        text = "Unsupported Media Type: Only 'application/json' is allowed"
        raise ApiError(400, text, kind="Bad Request")


def parse_completion(body: Mapping[str, Any]) -> GenerationRequest:
    """A /v1/completions body. Raises ApiError (400)."""
    max_tokens = _integer(body, "max_tokens", 1)
    return _generation(
        body,
        prompts=_prompts(body, "prompt"),
        chat=False,
        max_tokens=DEFAULT_COMPLETION_TOKENS if max_tokens is None else max_tokens,
    )


def parse_chat(body: Mapping[str, Any], *, tools: bool = False) -> GenerationRequest:
    """A /v1/chat/completions body; with `tools`, one that has tools is taken. Raises ApiError (400)."""
    max_tokens = _integer(body, "max_completion_tokens", 1)
    if max_tokens is None:
        max_tokens = _integer(body, "max_tokens", 1)
    if body.get("tools") and body.get("tool_choice", "auto") != "none" and not tools:
        text = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
        raise ApiError(400, text)
    prompt = Prompt(tokens=encode_chat(parse_messages(body)))
    return _generation(body, prompts=(prompt,), chat=True, max_tokens=max_tokens)


def parse_embedding(body: Mapping[str, Any]) -> EmbeddingRequest:
    """A /v1/embeddings body. Raises ApiError (400)."""
    encoding = body.get("encoding_format", "float")
    if encoding not in ("float", "base64"):
        raise wrong_type("encoding_format", encoding, "give 'float' or 'base64'")
    return EmbeddingRequest(model=_model(body), prompts=_prompts(body, "input"), base64=encoding == "base64")


def parse_messages(body: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The messages of a chat as (role, text) pairs. Raises ApiError (400)."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise wrong_type("messages", messages, "give a list of at least one message")
    if not messages:
        raise bad_field("messages", messages, "give a list of at least one message", named=False)
    pairs = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise wrong_type(f"messages.{index}", message, "give an object with 'role' and 'content'")
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise wrong_type(
                f"messages.{index}.ChatCompletionDeveloperMessageParam.role",
                role,
                "give a role such as 'system', 'user' or 'assistant'",
            )
        text = _content(message.get("content"), f"messages.{index}.content")
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
        raise wrong_type(field, content, "give a string or a list of parts")
    texts = []
    for index, part in enumerate(content):
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            fix = "give {'type': 'text', 'text': ...}: the simulated model reads text"
            raise bad_field(f"{field}.{index}", part, fix, named=False)
        texts.append(text)
    return "\n".join(texts)


def _generation(
    body: Mapping[str, Any], *, prompts: tuple[Prompt, ...], chat: bool, max_tokens: int | None
) -> GenerationRequest:
    stream = _boolean(body, "stream")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise wrong_type("stream_options", options, "give an object")
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
        raise wrong_type("model", model, "give a model's name")
    return model or None


def _prompts(body: Mapping[str, Any], field: str) -> tuple[Prompt, ...]:
    """A string, token ids, or a list of either."""
    value = body.get(field)
    fix = "give a string, a list of strings, a list of token ids, or a list of such lists"
    if value is None or value == "":
        raise bad_field(field, value, fix)
    if isinstance(value, str):
        return (Prompt(tokens=encode_prompt(value), text=value),)
    if not isinstance(value, list):
        raise wrong_type(field, value, fix)
    if not value:
        raise bad_field(field, value, fix, named=False)
    if isinstance(value[0], int):
        return (Prompt(tokens=_token_ids(value, field)),)
    prompts = []
    for index, item in enumerate(value):
        if isinstance(item, str):
            prompts.append(Prompt(tokens=encode_prompt(item), text=item))
        elif isinstance(item, list) and item:
            prompts.append(Prompt(tokens=_token_ids(item, f"{field}.{index}")))
        else:
            raise wrong_type(f"{field}.{index}", item, fix)
    return tuple(prompts)


def _token_ids(value: list[object], field: str) -> array[int]:
    for index, token in enumerate(value):
        if isinstance(token, bool) or not isinstance(token, int):
            raise wrong_type(f"{field}.{index}", token, "give a token id, a whole number from 0")
        if not 0 <= token <= MAX_TOKEN_ID:
            raise out_of_vocabulary(token)
    return array("I", value)  # type: ignore[arg-type]  # all are int: checked above


def out_of_vocabulary(token: int) -> ApiError:
    """vLLM's answer to a token id that its model does not have."""
    return ApiError(400, f"Token id {token} is out of vocabulary")


def _stop(body: Mapping[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop")
    if stop is None:
        return ()
    found = [stop] if isinstance(stop, str) else stop
    if not isinstance(found, list) or not all(isinstance(text, str) and text for text in found):
        raise wrong_type("stop", stop, "give a string or a list of strings, none empty")
    return tuple(found)


def _stop_token_ids(body: Mapping[str, Any]) -> frozenset[int]:
    ids = body.get("stop_token_ids")
    if ids is None:
        return frozenset()
    if not isinstance(ids, list):
        raise wrong_type("stop_token_ids", ids, "give a list of token ids")
    return frozenset(_token_ids(ids, "stop_token_ids"))


def _boolean(body: Mapping[str, Any], field: str, prefix: str = "") -> bool:
    value = body.get(field)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise wrong_type(prefix + field, value, "give true or false")
    return value


def _integer(body: Mapping[str, Any], field: str, least: int | None = None, most: int | None = None) -> int | None:
    value = body.get(field)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_type(field, value, "give a whole number")
    # Of `n` vLLM does not say that it means it.
    if least is not None and value < least:
        raise bad_field(field, value, f"give {least} or more", named=field != "n")
    if most is not None and value > most:
        raise bad_field(field, value, f"give {most} or less", named=field != "n")
    return value


def _number(body: Mapping[str, Any], field: str, least: float, most: float) -> None:
    value = body.get(field)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_type(field, value, "give a number")
    if not least <= value <= most:
        raise bad_field(field, value, f"give a number from {least:g} to {most:g}")
