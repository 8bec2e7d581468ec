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
    brackets = count_few(text, b"[", MAX_DEPTH) + count_few(text, b"{", MAX_DEPTH)
    if brackets <= MAX_DEPTH and (
        len(text) <= MAX_NODES
        or (brackets + text.count(b",") < MAX_VALUES and brackets + text.count(b'"') // 2 <= MAX_NODES)
    ):
        return
    bounds = Bounds()
    for at in range(0, len(text), _SLICE_BYTES):
        bounds.feed(text[at : at + _SLICE_BYTES])


class Bounds:
    """Counts what of a JSON text is outside strings, piece by piece."""

    __slots__ = ("_brackets", "_commas", "_depth", "_escaped", "_inside", "_quotes")

    def __init__(self) -> None:
        self._quotes = self._brackets = self._commas = self._depth = 0
        # Whether the next piece begins inside a string, and behind a backslash.
        self._inside = self._escaped = False

    def feed(self, text: bytes) -> None:
        """The next piece of the text. Raises TooComplex."""
        if not text:
            return
        if self._escaped:
            text, self._escaped = text[1:], False
        if b"\\" in text:
            whole = text.rstrip(b"\\")
            if (len(text) - len(whole)) % 2:
                self._escaped, text = True, text[:-1]
            text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
        pieces = text.split(b'"')
        outside = b"".join(pieces[self._inside :: 2])
        self._quotes += len(pieces) - 1
        self._inside ^= len(pieces) % 2 == 0
        brackets = outside.count(b"[") + outside.count(b"{")
        self._brackets += brackets
        self._commas += outside.count(b",")
        if self._quotes // 2 + self._brackets > MAX_NODES:
            raise TooComplex(f"it has more than {MAX_NODES} strings, objects and lists")
        if self._brackets + self._commas >= MAX_VALUES:
            raise TooComplex(f"it has more than {MAX_VALUES} values")
        if self._depth + brackets > MAX_DEPTH:
            steps = memoryview(outside.translate(_STEPS, _NO_BRACKETS)).cast("b")
            if max(accumulate(steps, initial=self._depth)) > MAX_DEPTH:
                raise TooComplex(f"it is nested more than {MAX_DEPTH} levels deep")
        self._depth += brackets - outside.count(b"]") - outside.count(b"}")


def count_few(text: bytes, character: bytes, most: int) -> int:
    """How often a character is there, counted to just over `most`. Where there are few, this takes a tenth of
    bytes.count's time: it looks for them with memchr."""
    return len(text) - len(text.replace(character, b"", most + 1))
