"""The other APIs of a vLLM server for the same answers: OpenAI's /v1/responses and Anthropic's /v1/messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from headrace.simulator.answers import AnswerForm, Usage
from headrace.simulator.openai import GenerationRequest, bad_field, parse_chat, wrong_type


def parse_responses(body: Mapping[str, Any]) -> GenerationRequest:
    """A /v1/responses body. Raises ApiError (400)."""
    asked = body.get("input")
    if isinstance(asked, str):
        asked = [{"role": "user", "content": asked}]
    if not isinstance(asked, list) or not asked:
        raise wrong_type("input", asked, "give a text or a list of messages")
    instructions = body.get("instructions")
    if instructions is not None and not isinstance(instructions, str):
        raise wrong_type("instructions", instructions, "give a text")
    first = [{"role": "system", "content": instructions}] if instructions else []
    return _chat(body, [*first, *map(_parts_as_text, asked)], body.get("max_output_tokens"))


def parse_anthropic(body: Mapping[str, Any], *, counting: bool = False) -> GenerationRequest:
    """A /v1/messages body; `counting`: one whose tokens are only counted. Raises ApiError (400)."""
    messages, system = body.get("messages"), body.get("system")
    if not isinstance(messages, list):
        raise wrong_type("messages", messages, "give a list of at least one message")
    limit = body.get("max_tokens")
    if limit is None and not counting:
        raise wrong_type("max_tokens", limit, "give the most tokens of the answer")
    return _chat(body, [*([{"role": "system", "content": system}] if system else []), *messages], limit)


def _parts_as_text(message: object) -> object:
    """A message whose parts are of the responses API: their texts are what a chat's are."""
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    parts = [
        {**part, "type": "text"}
        if isinstance(part, dict) and part.get("type") in ("input_text", "output_text")
        else part
        for part in message["content"]
    ]
    return {**message, "content": parts}


def _chat(body: Mapping[str, Any], messages: list[Any], limit: object) -> GenerationRequest:
    asked = {
        name: body[name] for name in ("model", "stream", "temperature", "top_p", "ignore_eos", "seed") if name in body
    }
    if limit is not None and limit == 0:
        raise bad_field("max_tokens", limit, "give 1 or more")
    return parse_chat({**asked, "messages": messages, "max_tokens": limit})


class _EventForm(AnswerForm):
    """An answer whose events have names. There is one choice, and no mark of the end but the last event."""

    done = b""

    def __init__(self, *, request_id: str, model: str, created: int, limit: int | None) -> None:
        super().__init__(request_id=request_id, model=model, created=created, chat=True, continuous_usage=False)
        self._model, self._created, self._limit = model, created, limit
        self._text = ""

    def _named(self, name: str, content: Mapping[str, Any]) -> bytes:
        return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps({"type": name, **content}))


_STOPS = {"length": "max_tokens", "stop": "end_turn"}


class MessagesForm(_EventForm):
    """Anthropic's."""

    def whole(self, choices: Sequence[dict[str, Any]], usage: Usage) -> bytes:
        """The answer to a request without `stream`."""
        (choice,) = choices
        reason = _stop_reason(choice["finish_reason"])
        content = [{"type": "text", "text": choice["message"]["content"]}]
        return orjson.dumps({**self._message(content), "stop_reason": reason, "usage": _anthropic_usage(usage)})

    def role_event(self, index: int, usage: Usage) -> bytes:
        """The first two events."""
        counts = {"input_tokens": usage.prompt_tokens, "output_tokens": 0}
        message = {**self._message([]), "stop_reason": None, "stop_sequence": None, "usage": counts}
        block = {"content_block": {"type": "text", "text": ""}, "index": 0}
        return self._named("message_start", {"message": message}) + self._named("content_block_start", block)

    def text_event(
        self, index: int, text: str, finish_reason: str | None, stop_reason: str | int | None, usage: Usage
    ) -> bytes:
        """A piece of the text; the last one has the events of the end behind it."""
        delta = {"delta": {"type": "text_delta", "text": text}, "index": 0}
        event = self._named("content_block_delta", delta)
        if finish_reason is None:
            return event
        stopped = {"stop_reason": _stop_reason(finish_reason), "stop_sequence": None}
        ends = {"delta": stopped, "usage": _anthropic_usage(usage)}
        return b"".join(
            (event, self._named("content_block_stop", {"index": 0}), self._named("message_delta", ends),
             self._named("message_stop", {}))
        )  # fmt: skip

    def _message(self, content: list[Any]) -> dict[str, Any]:
        return {"id": self.id, "type": "message", "role": "assistant", "content": content, "model": self._model}


def _stop_reason(finish_reason: str) -> str:
    return _STOPS.get(finish_reason, finish_reason)


def _anthropic_usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
    }


# What a response has and nothing here fills.
_FIXED: dict[str, Any] = {
    **dict.fromkeys(
        (
            *("instructions", "metadata", "max_tool_calls", "previous_response_id", "prompt", "reasoning", "text"),
            *("top_logprobs", "user", "kv_transfer_params", "ec_transfer_params", "input_messages", "output_messages"),
        )
    ),
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "tool_choice": "none",
    "tools": [],
    "top_p": 1.0,
    "background": False,
    "service_tier": "auto",
    "truncation": "disabled",
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


class ResponsesForm(_EventForm):
    """OpenAI's."""

    def __init__(self, *, request_id: str, model: str, created: int, limit: int | None) -> None:
        super().__init__(request_id=request_id, model=model, created=created, limit=limit)
        self._number = 0
        self._item = f"msg_{request_id.removeprefix('resp_')}"

    def whole(self, choices: Sequence[dict[str, Any]], usage: Usage) -> bytes:
        """The answer to a request without `stream`."""
        (choice,) = choices
        self._text = choice["message"]["content"]
        return orjson.dumps(self._ended(choice["finish_reason"], usage))

    def role_event(self, index: int, usage: Usage) -> bytes:
        """The events before the text."""
        response = {"response": self._response("in_progress", [], None, None)}
        item = {**self._message([]), "status": "in_progress"}
        part = {"content_index": 0, "item_id": self._item, "output_index": 0, "part": self._part("", [])}
        return b"".join(
            (
                self._next("response.created", response),
                self._next("response.in_progress", response),
                self._next("response.output_item.added", {"item": item, "output_index": 0}),
                self._next("response.content_part.added", part),
            )
        )

    def text_event(
        self, index: int, text: str, finish_reason: str | None, stop_reason: str | int | None, usage: Usage
    ) -> bytes:
        """A piece of the text; the last one has the events of the end behind it."""
        self._text += text
        at = {"content_index": 0, "item_id": self._item, "output_index": 0}
        event = self._next("response.output_text.delta", {**at, "delta": text, "logprobs": []})
        if finish_reason is None:
            return event
        part = self._part(self._text, None)
        return b"".join(
            (
                event,
                self._next("response.output_text.done", {**at, "logprobs": [], "text": self._text}),
                self._next("response.content_part.done", {**at, "part": part}),
                self._next("response.output_item.done", {"item": self._message([part]), "output_index": 0}),
                self._next("response.completed", {"response": self._ended(finish_reason, usage)}),
            )
        )

    def _next(self, name: str, content: Mapping[str, Any]) -> bytes:
        self._number += 1
        return self._named(name, {**content, "sequence_number": self._number - 1})

    def _part(self, text: str, logprobs: object) -> dict[str, Any]:
        return {"annotations": [], "text": text, "type": "output_text", "logprobs": logprobs}

    def _message(self, content: list[Any]) -> dict[str, Any]:
        fixed = {"role": "assistant", "status": "completed", "type": "message", "phase": None}
        return {"id": self._item, "content": content, **fixed}

    def _ended(self, finish_reason: str, usage: Usage) -> dict[str, Any]:
        whole = finish_reason == "stop"
        details = None if whole else {"reason": "max_output_tokens" if finish_reason == "length" else finish_reason}
        nobody: dict[str, Any] = {"output_tokens_per_turn": [], "tool_output_tokens_per_turn": []}
        counts = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": usage.cached_tokens,
                "cache_write_tokens": 0,
                "input_tokens_per_turn": [],
                "cached_tokens_per_turn": [],
            },
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0, "tool_output_tokens": 0, **nobody},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
        output = [self._message([self._part(self._text, None)])]
        return self._response("completed" if whole else "incomplete", output, counts, details)

    def _response(self, status: str, output: list[Any], usage: object, details: object) -> dict[str, Any]:
        return {
            "id": self.id,
            "created_at": self._created,
            "incomplete_details": details,
            "model": self._model,
            "object": "response",
            "output": output,
            "max_output_tokens": self._limit,
            "status": status,
            "usage": usage,
            **_FIXED,
        }
