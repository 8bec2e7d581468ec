"""Answers in the OpenAI API's form: whole, and as server-sent events."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

SYSTEM_FINGERPRINT = "headrace-simulator"
DONE = b"data: [DONE]\n\n"

# What vLLM's answers have and nothing here fills.
_MARKED = {"system_fingerprint": SYSTEM_FINGERPRINT}
_OF_ANSWERS = {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None}
_OF_CHATS = {"prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None, **_OF_ANSWERS}
_OF_MESSAGES = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))


@dataclass(frozen=True)
class Usage:
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    def json(self) -> dict[str, Any]:
        """As in an answer's `usage`."""
        details = {"cached_tokens": self.cached_tokens, "created_cache_tokens": None, "multimodal_tokens": None}
        return {**self.counts(), "prompt_tokens_details": details, "completion_tokens_details": None}

    def counts(self) -> dict[str, Any]:
        """As in the events of a stream."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


class StopScanner:
    """Passes an answer's text on until one of the stop strings is complete in it.

    What might be the beginning of a stop string is held back, so that no part of one is ever sent.
    """

    __slots__ = ("_held", "_include", "_longest", "_stops", "found")

    def __init__(self, stops: Sequence[str], include: bool) -> None:
        self._stops = stops
        self._include = include
        self._longest = max((len(stop) for stop in stops), default=0)
        self._held = ""
        self.found: str | None = None

    def feed(self, text: str, *, armed: bool = True) -> str:
        """More text; returns what can be sent. With `armed` False (before min_tokens) nothing stops the answer."""
        if not self._stops:
            return text
        if self.found is not None:
            return ""
        self._held += text
        if armed:
            hits = [(self._held.index(stop), stop) for stop in self._stops if stop in self._held]
            if hits:
                # The one that is complete first, as a reader of single tokens would meet it.
                at, self.found = min(hits, key=lambda hit: (hit[0] + len(hit[1]), hit[0]))
                end = at + len(self.found) if self._include else at
                return self._held[:end]
        keep = self._longest - 1
        if keep == 0:
            sent, self._held = self._held, ""
        else:
            sent, self._held = self._held[:-keep], self._held[-keep:]
        return sent

    def flush(self) -> str:
        """What was held back, at the end of the answer."""
        held, self._held = ("" if self.found is not None else self._held), ""
        return held


class AnswerForm:
    """Builds the JSON of one request's answer; `chat` chooses between the two endpoints' forms."""

    # What ends a stream.
    done = DONE

    def __init__(
        self,
        *,
        request_id: str,
        model: str,
        created: int,
        chat: bool,
        continuous_usage: bool,
        usage_follows: bool = False,
    ) -> None:
        self.id = request_id
        self.usage_follows = usage_follows
        self._chat = chat
        self._continuous_usage = continuous_usage
        self._base: dict[str, Any] = {
            "id": request_id,
            "object": "chat.completion" if chat else "text_completion",
            "created": created,
            "model": model,
        }
        self._chunk_base = {**self._base, "object": "chat.completion.chunk" if chat else "text_completion"}

    def whole(self, choices: Sequence[dict[str, Any]], usage: Usage) -> bytes:
        """The answer to a request without `stream`."""
        more = _OF_CHATS if self._chat else _OF_ANSWERS
        return orjson.dumps(
            {**self._base, **_MARKED, "choices": list(choices), "service_tier": None, "usage": usage.json(), **more}
        )

    def choice(self, index: int, text: str, finish_reason: str, stop_reason: str | int | None) -> dict[str, Any]:
        """One choice of a whole answer."""
        message = {"role": "assistant", "content": text, **_OF_MESSAGES}
        content: dict[str, Any] = {"message": message} if self._chat else {"text": text}
        return {
            "index": index,
            **content,
            "logprobs": None,
            "finish_reason": finish_reason,
            "stop_reason": stop_reason,
            "token_ids": None,
            "routed_experts": None,
            **({} if self._chat else {"prompt_logprobs": None, "prompt_token_ids": None}),
        }

    def role_event(self, index: int, usage: Usage) -> bytes:
        """A chat's first event: the role, no text yet."""
        choice = {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None}
        chunk = {"choices": [{**choice, "finish_reason": None}], "prompt_token_ids": None, "prompt_text": None}
        return self._chunk(chunk, usage)

    def text_event(
        self, index: int, text: str, finish_reason: str | None, stop_reason: str | int | None, usage: Usage
    ) -> bytes:
        """An event with a piece of a choice; the last one has the finish reason."""
        piece: dict[str, Any] = {"delta": {"content": text}} if self._chat else {"text": text}
        choice = {"index": index, **piece, "logprobs": None, "finish_reason": finish_reason, "token_ids": None}
        if not self._chat:
            choice["prompt_token_ids"] = None
        last = finish_reason is not None
        if last or not self._chat:
            choice["stop_reason"] = stop_reason
        # The last event has the mark; where a usage event follows, that one has it.
        return self._chunk({"choices": [choice], **(_MARKED if last and not self.usage_follows else {})}, usage)

    def usage_event(self, usage: Usage) -> bytes:
        """The event with the usage alone, before the end."""
        details = {"cached_tokens": usage.cached_tokens, **({"created_cache_tokens": 0} if self._chat else {})}
        counts = {**usage.counts(), "prompt_tokens_details": details}
        return b"data: %b\n\n" % orjson.dumps({**self._chunk_base, "choices": [], "usage": counts, **_MARKED})

    def _chunk(self, more: dict[str, Any], usage: Usage) -> bytes:
        chunk = {**self._chunk_base, **more}
        if self._continuous_usage:
            chunk["usage"] = usage.counts()
        return b"data: %b\n\n" % orjson.dumps(chunk)


def embedding(tokens_digest: int, dimensions: int, as_base64: bool) -> list[float] | str:
    """A unit vector that depends on the digest alone: equal inputs have equal embeddings, and nothing else is meant."""
    state = tokens_digest
    values = []
    for _ in range(dimensions):
        state = (state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        values.append((state >> 11) / 2**52 - 1.0)
    length = sum(value * value for value in values) ** 0.5 or 1.0
    values = [value / length for value in values]
    if not as_base64:
        return values
    return base64.b64encode(struct.pack(f"<{dimensions}f", *values)).decode()
