"""What a request's body says that matters to a pick: model, prompt, streaming. Bodies themselves are never logged.

Covers OpenAI completions, chat completions, responses and embeddings, Anthropic messages, vLLM and SGLang generate.
Anything else passes through unread and is still routed."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator
from typing import Any

from msgspec import Struct

from headrace.core.bounded_json import MAX_BYTES, TooComplex, TooLong, load
from headrace.extproc.body_scan import BEFORE, INSTEAD, BodyScan
from headrace.extproc.json_text import compact
from headrace.extproc.model_name import named_model

# Paths, by their end, whose bodies must be JSON objects: what else is sent there, no model server could answer.
_JSON_PATHS = (
    "/chat/completions",
    "/completions",
    "/responses",
    "/embeddings",
    "/v1/messages",
    "/messages/count_tokens",
    # vLLM's /inference/v1/generate and SGLang's /generate.
    "/generate",
)
_MAX_MODEL_LENGTH = 1024
# A body up to this size is read at once: for one that small nothing is faster.
WHOLE_BYTES = 256 << 10
# White space, and byte order marks and zeros of the encodings that model servers read.
_OBJECT = re.compile(rb"[\s\x00\xef\xbb\xbf\xfe\xff]*+\{")
# How UTF-16 and UTF-32 begin.
_WIDE = re.compile(rb"\xff\xfe|\xfe\xff|[\x01-\x7f]{0,3}\x00")


class UnreadableBody(ValueError):  # noqa: N818
    """A body that no model server could answer; the message is for the client."""


class BodyFacts(Struct, frozen=True):
    """What the pick needs of a body. `model` "" and `prompt` empty where it does not say.

    `unread` says why a body that may name a model was not read; "" where it was."""

    model: str = ""
    prompt: bytes = b""
    streaming: bool = False
    max_tokens: int | None = None
    unread: str = ""


_NOTHING = BodyFacts()


def is_json_path(path: str) -> bool:
    """Whether requests to this path (query included) must have a JSON body."""
    return path.partition("?")[0].rstrip("/").endswith(_JSON_PATHS)


def read_body(
    body: bytes, *, path: str, content_encoding: str = "", whole: bool = True, max_bytes: int = MAX_BYTES
) -> BodyFacts:
    """The facts of a request body. `whole` is false where only its beginning is at hand. A body over `max_bytes` is
    not read.

    Raises UnreadableBody, and only for paths that must carry JSON; elsewhere an unreadable body has no facts."""
    if content_encoding and content_encoding != "identity":
        return _NOTHING
    if not whole:
        return _facts_of_beginning(body[:max_bytes])
    strict = is_json_path(path)
    if not strict and not _is_object(body):
        return _NOTHING
    return _taken(lambda: _facts(load(body, max_bytes)), strict=strict)


def long_facts(
    scan: BodyScan | None,
    beginning: bytes,
    *,
    path: str,
    content_encoding: str = "",
    whole: bool = True,
    size: int,
    max_bytes: int = MAX_BYTES,
) -> BodyFacts:
    """The facts of a body that was scanned; None: it is over `max_bytes`. Some of its `beginning` is enough, but where
    only that has come. Raises as `read_body` does."""
    if content_encoding and content_encoding != "identity":
        return _NOTHING
    if scan is not None and not whole:
        return _beginning_of(scan, beginning)
    strict = is_json_path(path)
    if not strict and not _is_object(beginning):
        return _NOTHING

    def facts() -> BodyFacts:
        if scan is None:
            raise TooLong(f"it has {size} bytes; at most {max_bytes} are read")
        if _WIDE.match(beginning):
            raise TooLong(f"it has {size} bytes and is not in UTF-8")
        scan.end()
        if scan.failed is not None:
            raise scan.failed
        return _facts(scan.fields, scan.prompt)

    return _taken(facts, strict=strict)


def _taken(read: Callable[[], BodyFacts], *, strict: bool) -> BodyFacts:
    """The facts; a body that has none is refused where it must have some."""
    try:
        return read()
    except TooLong as error:
        return BodyFacts(unread=str(error))
    except UnreadableBody:
        if strict:
            raise
    except TooComplex as error:
        if strict:
            raise UnreadableBody(f"the body is too complex: {error}") from None
        return BodyFacts(unread=str(error))
    except ValueError as error:
        if strict:
            raise UnreadableBody(f"the body is not JSON: {error}") from None
    return _NOTHING


def model_steps(body: bytes, *, content_encoding: str = "") -> Generator[None, None, str]:
    """The model that a JSON body names; "" where it names none, or is no JSON. A long body is read in bounded steps:
    others can have their turn after each. Raises TooLong, TooComplex."""
    if (content_encoding and content_encoding != "identity") or not _is_object(body):
        return ""
    if len(body) > MAX_BYTES:
        raise TooLong(f"it has {len(body)} bytes; at most {MAX_BYTES} are read")
    if _WIDE.match(body):
        if len(body) > WHOLE_BYTES:
            raise TooLong(f"it has {len(body)} bytes and is not in UTF-8")
        model = _model_of_whole(body)
    else:
        scan = BodyScan(only_model=True)
        try:
            scan.feed(body)
            while scan.step():
                yield
            scan.end()
        finally:
            scan.close()
        if isinstance(scan.failed, TooComplex):
            raise scan.failed
        model = scan.fields.get("model") if scan.failed is None else None
    return _printable(model) if isinstance(model, str) and len(model) <= _MAX_MODEL_LENGTH else ""


def _model_of_whole(body: bytes) -> object:
    try:
        value = load(body)
    except TooComplex:
        raise
    except ValueError:
        return None
    return value.get("model") if isinstance(value, dict) else None


def _is_object(body: bytes) -> bool:
    """Whether a body looks like a JSON object, in whatever encoding."""
    return _OBJECT.match(body) is not None


def _facts(value: Any, prompt: bytes | None = None) -> BodyFacts:
    if not isinstance(value, dict):
        raise UnreadableBody("the body must be a JSON object")
    model = value.get("model")
    if model is None:
        model = ""
    if not isinstance(model, str):
        raise UnreadableBody("field 'model' must be text")
    if len(model) > _MAX_MODEL_LENGTH:
        raise UnreadableBody(f"field 'model' must be at most {_MAX_MODEL_LENGTH} characters")
    return BodyFacts(
        model=_printable(model),
        prompt=b"\x1f".join(_prompt_parts(value)) if prompt is None else prompt,
        streaming=value.get("stream") is True,
        max_tokens=_limit(value),
    )


def _limit(value: dict[str, Any]) -> int | None:
    """The most tokens the client will take: OpenAI's and Anthropic's names, else those of generate's parameters."""
    limit = value.get("max_completion_tokens") or value.get("max_tokens") or value.get("max_output_tokens")
    if limit is None and isinstance(parameters := value.get("sampling_params"), dict):
        limit = parameters.get("max_tokens") or parameters.get("max_new_tokens")
    return limit if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0 else None


def _printable(text: str) -> str:
    """Text that can be encoded: a lone surrogate becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def _prompt_parts(value: dict[str, Any]) -> Iterator[bytes]:
    """What the server's prefix cache will see, in order: the salt that separates caches, tools, system, messages."""
    for name in BEFORE:
        if value.get(name):
            yield _bytes(value[name])
    messages = value.get("messages")
    if isinstance(messages, list):
        for message in messages:
            if isinstance(message, dict):
                yield _bytes(message.get("role"))
                yield _bytes(message.get("content"))
                if message.get("tool_calls"):
                    yield _bytes(message["tool_calls"])
        return
    for name in INSTEAD:
        if value.get(name):
            yield _bytes(value[name])
            return


def _bytes(value: Any) -> bytes:
    return b"" if value is None else compact(value)


def _facts_of_beginning(body: bytes) -> BodyFacts:
    """The best of a cut body: a model named near its start, and its bytes as the prompt."""
    if not _is_object(body):
        return _NOTHING
    try:
        model = named_model(body)
    except TooComplex as error:
        return BodyFacts(unread=str(error))
    return _of_beginning(model, body, streaming=re.search(rb'"stream"\s*:\s*true', body) is not None)


def _beginning_of(scan: BodyScan, body: bytes) -> BodyFacts:
    """The same of a cut body that was scanned."""
    if not _is_object(body):
        return _NOTHING
    if isinstance(scan.failed, TooComplex):
        return BodyFacts(unread=str(scan.failed))
    model = scan.fields.get("model")
    return _of_beginning(model if isinstance(model, str) else "", body, streaming=scan.fields.get("stream") is True)


def _of_beginning(model: str, body: bytes, *, streaming: bool) -> BodyFacts:
    if len(model) > _MAX_MODEL_LENGTH:
        return BodyFacts(unread=f"its model has over {_MAX_MODEL_LENGTH} characters")
    model = _printable(model)
    unread = "" if model else "its beginning, all that the gateway sent, names no model"
    return BodyFacts(model=model, prompt=body, streaming=streaming, unread=unread)
