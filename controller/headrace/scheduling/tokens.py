"""Token counts where nobody has counted: a token is taken as four bytes of the prompt, as prefix blocks are."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.core import Request
from headrace.core.bounded_json import load

BYTES_A_TOKEN = 4


def input_tokens(request: Request) -> int:
    """About how many tokens the prompt has."""
    return (len(request.prompt) + BYTES_A_TOKEN - 1) // BYTES_A_TOKEN


def given_tokens(request: Request) -> Sequence[int] | None:
    """The prompt's tokens: those somebody told, or those the client gave as token ids; None where it is text."""
    if request.tokens is not None:
        return request.tokens
    prompt = request.prompt
    if prompt[:1] != b"[" or prompt[-1:] != b"]":
        return None
    try:
        # A text prompt may look like this too, and hold anything.
        value = load(prompt, len(prompt))
    except ValueError:
        return None
    if len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    valid = all(type(token) is int and 0 <= token < 1 << 32 for token in value)
    return value if value and valid else None


def output_tokens(request: Request, ratio: float = 1.5) -> int:
    """About how many tokens the answer will have: `ratio` times the prompt, and no more than the client takes.

    Source: llm-d-router, in-flight load producer."""
    estimate = round(input_tokens(request) * ratio)
    return estimate if request.max_tokens is None else min(estimate, request.max_tokens)
