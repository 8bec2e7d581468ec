"""Token counts where nobody has counted: a token is taken as four bytes of the prompt, as prefix blocks are."""

from __future__ import annotations

from headrace.core import Request

BYTES_A_TOKEN = 4


def input_tokens(request: Request) -> int:
    """About how many tokens the prompt has."""
    return (len(request.prompt) + BYTES_A_TOKEN - 1) // BYTES_A_TOKEN


def output_tokens(request: Request, ratio: float = 1.5) -> int:
    """About how many tokens the answer will have: `ratio` times the prompt, and no more than the client takes.

    Source: llm-d-router, in-flight load producer."""
    estimate = round(input_tokens(request) * ratio)
    return estimate if request.max_tokens is None else min(estimate, request.max_tokens)
