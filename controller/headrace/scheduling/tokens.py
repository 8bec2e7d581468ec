"""Token counts where nobody has counted: a token is taken as four bytes of the prompt, as prefix blocks are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from headrace.core import Request

BYTES_A_TOKEN = 4
# Of a prompt, as many tokens are looked at: reading them, and naming blocks by them, takes some milliseconds.
MOST_TOKENS = 65_536
# Each has up to 10 digits, and a comma.
_MOST_BYTES = 11 * MOST_TOKENS
_Tokens = list[Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]]
_tokens = msgspec.json.Decoder(_Tokens)
_prompts = msgspec.json.Decoder(list[_Tokens])


def input_tokens(request: Request) -> int:
    """About how many tokens the prompt has."""
    return (len(request.prompt) + BYTES_A_TOKEN - 1) // BYTES_A_TOKEN


def given_tokens(request: Request) -> Sequence[int] | None:
    """The prompt's first tokens: those somebody told, or those the client gave as token ids; None where it is text."""
    if request.tokens is not None:
        return request.tokens
    prompt = request.prompt
    if prompt[:1] != b"[" or prompt[-1:] != b"]":
        return None
    nested = prompt[1:2] == b"["
    if len(prompt) > _MOST_BYTES:
        # The tokens before the last one that is cut.
        prompt = prompt[: max(0, prompt.rfind(b",", 0, _MOST_BYTES))] + (b"]]" if nested else b"]")
    try:
        # A text prompt may look like this too, and hold anything.
        (tokens,) = _prompts.decode(prompt) if nested else (_tokens.decode(prompt),)
    except (msgspec.MsgspecError, ValueError):
        return None
    return tokens[:MOST_TOKENS] or None


def token_count(request: Request, tokens: Sequence[int]) -> int:
    """How many tokens the prompt has of which these are the first."""
    if len(tokens) < MOST_TOKENS or request.tokens is not None:
        return len(tokens)
    return request.prompt.count(b",") + 1


def output_tokens(request: Request, ratio: float = 1.5) -> int:
    """About how many tokens the answer will have: `ratio` times the prompt, and no more than the client takes.

    Source: llm-d-router, in-flight load producer."""
    estimate = round(input_tokens(request) * ratio)
    return estimate if request.max_tokens is None else min(estimate, request.max_tokens)
