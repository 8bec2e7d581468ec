"""Follows JSON through pieces that may end anywhere: what is wanted of it is captured, the rest is passed over.

Each part of the grammar is a generator that yields where it needs more text (`hungry`), or where others should have a
turn. Strings, numbers and flat structure are followed by searches in C; a step of Python is an item. The caller checks
UTF-8, size, number and depth. What is passed over is followed by its strings and brackets alone."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass

import orjson

Steps = Generator[None, None, None]

# No number or word of JSON that means something is longer; nor is a key that is wanted, each character an escape.
_LONGEST_WORD = 4300
_LONGEST_KEY = 256
# Strings of which the value is wanted: over 1,024 characters, each written as two escapes.
_LONGEST_TEXT = 16 << 10
# An escape that is cut has fewer bytes than these.
_LONGEST_ESCAPE = 12

_SPACE = re.compile(rb"[ \t\r\n]*+")
_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_HIGH = rb"\\u[dD][89abAB][0-9a-fA-F]{2}"
_LOW = rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
# Characters and whole escapes; a high surrogate only with what follows it, as far as that says whether they are a pair.
_WHOLE = re.compile(
    rb'(?:[^"\\]++|\\[^u]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}|%b(?:%b|(?=[^\\]|\\[^u]|\\u[^dD]|\\u[dD][^c-fC-F])))*+'
    % (_HIGH, _LOW)
)
# Up to the next bracket that has brackets inside, or to a string that goes on in the next piece.
_FLAT = rb'[^"{}\[\]]++|"(?:[^"\\]++|\\.)*+"'
_RUN = re.compile(rb"(?:%b|[{\[](?:%b)*+[}\]])*+" % (_FLAT, _FLAT), re.DOTALL)
# Numbers and commas, each number up to its end.
_NUMBERS = re.compile(rb"(?:[ \t\r\n,]++|-?[0-9][-+.0-9eE]*+(?=[ \t\r\n,\]}]))++")
_WORD = re.compile(rb'[^ \t\r\n,:"{}\[\]]++')

_QUOTE, _BACKSLASH, _COMMA, _COLON = b'"\\,:'
_OPENING, _CLOSING = b"{[", b"}]"


class Malformed(ValueError):  # noqa: N818
    """Text that is not JSON."""


@dataclass(frozen=True, slots=True)
class Captured:
    """A value as `extproc.body` writes it into a prompt: a string's text, else JSON without spaces. `truth` is
    Python's."""

    pieces: list[bytes]
    truth: bool


class JsonScan:
    """A place in a text, of which a window is known. `position` counts from the text's beginning."""

    def __init__(self, items: int) -> None:
        self.hungry = True
        self._items = self._left = items
        self._text = b""
        self._at = 0
        self._base = 0

    @property
    def position(self) -> int:
        """Bytes of the text that were gone through."""
        return self._base + self._at

    def give(self, piece: bytes) -> None:
        """The text goes on."""
        self._base += self._at
        self._text = self._text[self._at :] + piece if self._at < len(self._text) else piece
        self._at = 0
        self.hungry = False

    def refresh(self) -> None:
        """A new turn begins."""
        self._left = self._items

    def peek(self) -> Generator[None, None, bytes]:
        """The next byte that is no space, which is not passed."""
        self._left -= 1
        if self._left < 0:
            yield
        while True:
            text = self._text
            found = _SPACE.match(text, self._at)
            self._at = found.end() if found is not None else self._at
            if self._at < len(text):
                return text[self._at : self._at + 1]
            yield from self._more()

    def byte_order_mark(self) -> Steps:
        """The one of UTF-8, which model servers take."""
        while len(self._text) - self._at < len(codecs.BOM_UTF8):
            yield from self._more()
        if not self._text.startswith(codecs.BOM_UTF8, self._at):
            raise Malformed("it is no JSON")
        self._at += len(codecs.BOM_UTF8)

    def members(self, field: Callable[[str], Steps]) -> Steps:
        """An object: `field` goes through the value of each of its members."""
        if (yield from self.peek()) != b"{":
            raise Malformed("it is no object")
        self._at += 1
        while (found := (yield from self.peek())) != b"}":
            if found == b",":
                self._at += 1
                continue
            if found != b'"':
                raise Malformed("a key is missing")
            self._at += 1
            name = yield from self._name()
            if (yield from self.peek()) != b":":
                raise Malformed("a colon is missing")
            self._at += 1
            yield from field(name)
        self._at += 1

    def elements(self, element: Callable[[], Steps]) -> Steps:
        """A list: `element` goes through each of its elements."""
        self._at += 1
        while (found := (yield from self.peek())) != b"]":
            if found == b",":
                self._at += 1
            else:
                yield from element()
        self._at += 1

    def nothing_more(self) -> Steps:
        """The document is over: there are spaces alone. Raises Malformed."""
        found = _SPACE.match(self._text, self._at)
        self._at = found.end() if found is not None else self._at
        if self._at < len(self._text):
            raise Malformed("there is more after its end")
        yield from self._more()

    def skip(self) -> Steps:
        """Pass over a value."""
        found = yield from self.peek()
        if found == b'"':
            self._at += 1
            yield from self._string(None)
        elif found[0] in _OPENING:
            yield from self._nested()
        else:
            yield from self._word()

    def capture(self) -> Generator[None, None, Captured]:
        """A value as text for a prompt."""
        found = yield from self.peek()
        pieces: list[bytes] = []
        if found == b'"':
            self._at += 1
            yield from self._string(pieces)
            return Captured(pieces, any(pieces))
        if found[0] in _OPENING:
            yield from self._structure(pieces)
            return Captured(pieces, len(pieces) > 2)
        value = _parsed((yield from self._word()))
        return Captured([] if value is None else [compact(value)], bool(value))

    def scalar(self) -> Generator[None, None, object]:
        """A value; of a long string its beginning, of a structure another one that is as empty."""
        found = yield from self.peek()
        if found == b'"':
            self._at += 1
            pieces: list[bytes] = []
            yield from self._string(pieces)
            return b"".join(pieces)[:_LONGEST_TEXT].decode("utf-8", "ignore")
        if found[0] not in _OPENING:
            return _parsed((yield from self._word()))
        self._at += 1
        empty = (yield from self.peek())[0] in _CLOSING
        yield from self._nested(1)
        return [] if empty else [None]

    def _more(self) -> Steps:
        self.hungry = True
        while self.hungry:
            yield

    def _turn(self) -> Steps:
        """Count an item, and give others their turn after so many."""
        self._left -= 1
        if self._left < 0:
            yield

    def _name(self) -> Generator[None, None, str]:
        """A key, behind its opening quote; "" for one that is too long to be wanted."""
        pieces: list[bytes] = []
        yield from self._string(pieces)
        name = b"".join(pieces)
        return name.decode() if len(name) <= _LONGEST_KEY else ""

    def _word(self) -> Generator[None, None, bytes]:
        """A number or word up to its end."""
        while True:
            found = _WORD.match(self._text, self._at)
            if found is None:
                raise Malformed("a value is missing")
            if found.end() - self._at > _LONGEST_WORD:
                raise Malformed("a number is too long")
            if found.end() < len(self._text):
                self._at = found.end()
                return found[0]
            yield from self._more()

    def _string(self, pieces: list[bytes] | None, *, quoted: bool = False) -> Steps:
        """A string, behind its opening quote. Its text goes into `pieces`, `quoted` as JSON writes it."""
        while True:
            yield from self._turn()
            text, at = self._text, self._at
            end = text.find(b'"', at)
            stop = end if end >= 0 else len(text)
            if text.find(b"\\", at, stop) >= 0:
                found = (_WHOLE if pieces is not None else _STRING).match(text, at)
                stop = found.end() if found is not None else at
                if pieces is not None:
                    pieces.append(_unescaped(text[at:stop], quoted=quoted))
            elif pieces is not None and stop > at:
                pieces.append(text[at:stop])
            self._at = stop
            if stop < len(text):
                if text[stop] == _QUOTE:
                    self._at += 1
                    return
                if len(text) - stop >= _LONGEST_ESCAPE:
                    raise Malformed("there is no such escape")
            yield from self._more()

    def _nested(self, depth: int = 0) -> Steps:
        """Pass over an object or list, or what is left of it behind so many opening brackets."""
        while True:
            yield from self._turn()
            text = self._text
            if depth:
                found = _RUN.match(text, self._at)
                self._at = found.end() if found is not None else self._at
            if self._at >= len(text):
                yield from self._more()
                continue
            token = text[self._at]
            self._at += 1
            if token == _QUOTE:
                yield from self._string(None)
            elif token in _OPENING:
                depth += 1
            else:
                depth -= 1
                if not depth:
                    return

    def _structure(self, pieces: list[bytes]) -> Steps:
        """An object or list, written into `pieces` without spaces: at least one for each bracket."""
        depth = 0
        while True:
            token = (yield from self.peek())[0]
            if token == _QUOTE:
                self._at += 1
                pieces.append(b'"')
                yield from self._string(pieces, quoted=True)
                pieces.append(b'"')
            elif token in _OPENING or token in _CLOSING or token == _COLON:
                pieces.append(self._text[self._at : self._at + 1])
                self._at += 1
                depth += (token in _OPENING) - (token in _CLOSING)
                if not depth:
                    return
            elif (found := _NUMBERS.match(self._text, self._at)) is not None:
                self._at = found.end()
                pieces.append(_numbers(found[0]))
            else:
                pieces.append(compact(_parsed((yield from self._word()))))


def compact(value: object) -> bytes:
    """A value as JSON without spaces, as far as that can be written."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace")
    try:
        return orjson.dumps(value)
    except TypeError:  # nested deeply; or numbers and surrogates that only the second reading lets in
        pass
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    except RecursionError:
        return b""


def _parsed(text: bytes) -> object:
    """A small JSON value. Raises Malformed."""
    try:
        return orjson.loads(text)
    except ValueError:
        pass
    try:
        return json.loads(text)
    except ValueError:
        raise Malformed("a value is no JSON") from None


def _numbers(text: bytes) -> bytes:
    """Numbers and commas without spaces, each number as it is written anew."""
    inner = text.strip(b", \t\r\n")
    before = b"," if text.lstrip()[:1] == b"," else b""
    after = b"," if inner and text.rstrip()[-1:] == b"," else b""
    return before + (compact(_parsed(b"[%b]" % inner))[1:-1] if inner else b"") + after


def _unescaped(raw: bytes, *, quoted: bool) -> bytes:
    """The text of a string, or a part of one, that has escapes."""
    text = _parsed(b'"%b"' % raw)
    assert isinstance(text, str)
    return text.encode("utf-8", "replace") if not quoted else compact([text])[2:-2]
