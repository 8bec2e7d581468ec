"""JSON from strangers: read within bounds that are checked before it is parsed.

A parser makes an object for each value: 1 MiB of `{"":0},` becomes 35 MiB of dictionaries, and every other request
waits meanwhile. So values are counted first, in a few passes over the bytes that make no object for each of them."""

from __future__ import annotations

import json
from itertools import accumulate
from typing import Any

import orjson

# The longest text that is parsed, unless a caller says otherwise: a million token ids, or a picture of 6 MB as base64.
MAX_BYTES = 8 << 20
# Tools' schemas nest to 30 or so; model servers themselves give up at 200 (pydantic) to 1,000 (json).
MAX_DEPTH = 512
# A prompt of a million token ids has that many. A value costs up to 56 bytes: the parser's own note of it, a float, its
# place in a list.
MAX_VALUES = 1 << 20
# Strings, keys, objects and lists cost up to 250 bytes each. A chat of 20,000 messages has 120,000 of them.
# Together: at most 100 MiB beside the text, and a few tenths of a second, for the worst text of 8 MiB.
MAX_NODES = 1 << 18

# The standard library reads what orjson refuses (NaN, lone surrogates, UTF-16) and model servers accept, but slowly:
# texts up to this size get a second reading.
SECOND_READING_BYTES = 1 << 20
# What is taken at a time where strings are cut out: bounds the pieces that exist at once.
_SLICE_BYTES = 1 << 16
_OPENING, _CLOSING = b"[{", b"]}"
# Brackets as signed bytes: +1 and -1.
_STEPS = bytes.maketrans(_OPENING + _CLOSING, b"\x01\x01\xff\xff")
_NO_BRACKETS = bytes(set(range(256)) - set(_OPENING + _CLOSING))


class TooComplex(ValueError):  # noqa: N818
    """JSON with more values, or nested deeper, than is read. The message names the bound, and is fit for a client."""


class TooLong(ValueError):  # noqa: N818
    """JSON that is longer than is read. The message names the bound, and is fit for a client."""


def load(text: bytes, max_bytes: int = MAX_BYTES) -> Any:
    """The value of a JSON text. Raises TooLong, TooComplex, and ValueError for what is no JSON."""
    if len(text) > max_bytes:
        raise TooLong(f"it has {len(text)} bytes; at most {max_bytes} are read")
    check_bounds(text)
    try:
        return orjson.loads(text)
    except ValueError as error:
        if not text.strip():
            raise ValueError("it is empty") from None
        if len(text) > SECOND_READING_BYTES:
            bound = f"of such, at most {SECOND_READING_BYTES} bytes are read"
            raise TooLong(f"it is not strict JSON ({error}); {bound}") from None
    try:
        return json.loads(text)
    except RecursionError:
        raise TooComplex(f"it is nested more than {MAX_DEPTH} levels deep") from None
    except ValueError as error:
        raise ValueError(str(error).partition(":")[0]) from None


def check_bounds(text: bytes) -> None:
    """See that a JSON text, which may be cut or malformed, is within the bounds. Raises TooComplex.

    Commas, quotes and brackets inside strings do not count."""
    # First as if nothing were inside strings: enough for nearly every text, and costs next to nothing.
    brackets = _count_few(text, b"[") + _count_few(text, b"{")
    if brackets <= MAX_DEPTH and (
        len(text) <= MAX_NODES
        or (brackets + text.count(b",") < MAX_VALUES and brackets + text.count(b'"') // 2 <= MAX_NODES)
    ):
        return
    text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    strings = text.count(b'"') // 2
    # Before anything is made for each string.
    if strings > MAX_NODES:
        raise _too_many_nodes()
    outside = _without_strings(text)
    brackets = outside.count(b"[") + outside.count(b"{")
    if strings + brackets > MAX_NODES:
        raise _too_many_nodes()
    if brackets + outside.count(b",") >= MAX_VALUES:
        raise TooComplex(f"it has more than {MAX_VALUES} values")
    steps = memoryview(outside.translate(_STEPS, _NO_BRACKETS)).cast("b")
    if max(accumulate(steps), default=0) > MAX_DEPTH:
        raise TooComplex(f"it is nested more than {MAX_DEPTH} levels deep")


def _count_few(text: bytes, character: bytes) -> int:
    """How often a character is there, counted to just over MAX_DEPTH. Where there are few, this takes a tenth of
    bytes.count's time: it looks for them with memchr."""
    return len(text) - len(text.replace(character, b"", MAX_DEPTH + 1))


def _too_many_nodes() -> TooComplex:
    return TooComplex(f"it has more than {MAX_NODES} strings, objects and lists")


def _without_strings(text: bytes) -> bytes:
    """What is outside the strings of a text that has no escapes."""
    kept = []
    inside = False
    for at in range(0, len(text), _SLICE_BYTES):
        pieces = text[at : at + _SLICE_BYTES].split(b'"')
        kept.append(b"".join(pieces[inside::2]))
        inside ^= len(pieces) % 2 == 0
    return b"".join(kept)
