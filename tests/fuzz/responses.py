"""What is read of responses on their way, and the name put back: SSE and JSON, cut anywhere.

However the pieces are cut, the same tokens are counted and the same bytes come out; where no name is replaced, those
that went in."""

from __future__ import annotations

import json

from headrace.config.limits import ByteBudget, Held
from headrace.extproc.model_name import ModelNames
from headrace.extproc.usage import Usage, UsageMeter

from .reader import Reader


def target(data: bytes) -> None:
    """One input."""
    reader = Reader(data)
    bits = reader.byte()
    events, nested = bool(bits & 1), bool(bits & 2)
    cuts = Reader(reader.piece())
    content = reader.rest()
    if bits & 0x14 == 0x14:
        content = content * 64  # what is slow for long input shows
    whole = [content]
    pieces = cuts.cut(content) if not bits & 8 else [content[at : at + 1] for at in range(len(content))]
    if len(pieces) > 1 << 12:
        pieces = whole
    counted = usage(whole, events)
    assert usage(pieces, events) == counted
    if counted is not None:
        assert min(counted.input_tokens, counted.output_tokens, counted.cached_tokens) >= 0
    once, replaced = renamed(whole, events=events, nested=nested)
    often, as_often = renamed(pieces, events=events, nested=nested)
    if not events or all(is_json(line[5:]) for line in content.split(b"\n") if line.startswith(b"data:")):
        assert (often, as_often) == (once, replaced)
    if not as_often:
        assert often == content
    if not replaced:
        assert once == content


def is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def usage(pieces: list[bytes], events: bool) -> Usage | None:
    budget = ByteBudget(1 << 20, small=1 << 20)
    meter = UsageMeter(Held(budget), events=events)
    for piece in pieces:
        meter.feed(piece)
    found = meter.usage()
    assert budget.held == 0
    return found


def renamed(pieces: list[bytes], *, events: bool, nested: bool) -> tuple[bytes, int]:
    names = ModelNames('the client\'s "own"', events=events, nested=nested)
    return b"".join([names.feed(piece) for piece in pieces]), names.replaced
