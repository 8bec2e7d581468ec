"""A long body, scanned while it arrives: JSON and what is none, cut anywhere, in steps of any size.

However the pieces are cut, the same comes out; what is strict JSON has the facts that it has when it is read whole."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from headrace.core.bounded_json import TooComplex
from headrace.extproc.body import BodyFacts, UnreadableBody, long_facts, read_body
from headrace.extproc.body_scan import BodyScan
from headrace.extproc.json_text import Malformed

from .reader import Reader

PATH = "/v1/chat/completions"
# Python reads no longer number.
_LONG_NUMBER = re.compile(rb"[-+.0-9eE]{4000}")


def target(data: bytes) -> None:
    """One input."""
    reader = Reader(data)
    bits = reader.byte()
    steps = (1 + reader.below(300), 1 + reader.below(300))
    cuts = Reader(reader.piece())
    content = reader.rest()
    if bits & 0x14 == 0x14:
        # A stretch of it over and over: what is slow for long bodies shows.
        edge = len(content) // 2
        content = content[:edge] + content[edge : edge + 64] * 256 + content[edge + 64 :]
    once = scanned([content], (1 << 15, 1 << 11))
    pieces = cuts.cut(content) if not bits & 1 else [content[at : at + 1] for at in range(len(content))]
    often = scanned(pieces if len(pieces) < 1 << 12 else [content], steps)
    assert (often.failed is None) == (once.failed is None), (often.failed, once.failed)
    assert once.failed is None or isinstance(once.failed, Malformed | TooComplex)
    assert facts(often, content) == facts(once, content)
    if often.failed is None:
        assert often.model_places == once.model_places
    if not strict(content):
        return
    try:
        whole = read_body(content, path=PATH)
    except UnreadableBody:
        assert facts(once, content) is None
        return
    found = facts(once, content)
    assert found is not None
    assert (found.model, found.streaming, found.max_tokens) == (whole.model, whole.streaming, whole.max_tokens)
    if unique(content):
        assert found.prompt == whole.prompt


def scanned(pieces: list[bytes], steps: tuple[int, int]) -> BodyScan:
    scan = BodyScan(step_bytes=steps[0], step_items=steps[1])
    for piece in pieces:
        scan.feed(piece)
        while scan.step():
            pass
    scan.end()
    return scan


def facts(scan: BodyScan, content: bytes) -> BodyFacts | None:
    try:
        return long_facts(scan, content[:64], path=PATH, size=len(content))
    except UnreadableBody:
        return None


def strict(content: bytes) -> bool:
    """Whether it is an object in JSON as orjson reads it."""
    try:
        return isinstance(orjson.loads(content), dict) and _LONG_NUMBER.search(content) is None
    except ValueError:
        return False


def unique(content: bytes) -> bool:
    """Whether no name comes twice in an object: within a long structure, the scanner keeps both."""
    names = True

    def note(pairs: list[tuple[str, Any]]) -> None:
        nonlocal names
        names &= len({name for name, _ in pairs}) == len(pairs)

    try:
        json.loads(content, object_pairs_hook=note)
    except (ValueError, RecursionError):
        return False
    return names
