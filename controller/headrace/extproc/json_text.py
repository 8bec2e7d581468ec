"""A place in a JSON text that comes in pieces, and the tokens that may be cut: spaces, words, strings.

What may need more text is a generator: it yields where it does (`hungry`), or where others should have a turn. Strings
are followed by searches in C; a step of Python is an item."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Generator

import orjson

Steps = Generator[None, None, None]

# No number or word of JSON that means something is longer.
_LONGEST_WORD = 4300
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
_WORD = re.compile(rb'[^ \t\r\n,:"{}\[\]]++')

_QUOTE = ord('"')
_CONTROLS = bytes(range(32))


class Malformed(ValueError):  # noqa: N818
    """Text that is not JSON."""


class JsonText:
    """A place in a text, of which a window is known. A turn has so many items."""

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
        if self._left <= 0:
            yield
        self._left -= 1
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

    def nothing_more(self) -> Steps:
        """The document is over: there are spaces alone. Raises Malformed."""
        found = _SPACE.match(self._text, self._at)
        self._at = found.end() if found is not None else self._at
        if self._at < len(self._text):
            raise Malformed("there is more after its end")
        yield from self._more()

    def _more(self) -> Steps:
        self.hungry = True
        while self.hungry:
            yield

    def _turn(self) -> Steps:
        """Count an item, and give others their turn after so many."""
        if self._left <= 0:
            yield
        self._left -= 1

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

    def _string(self, out: bytearray | None, *, quoted: bool = False, key: bool = False) -> Steps:
        """A string, behind its opening quote. Its text goes into `out`, `quoted` as JSON writes it. Control characters
        in a `key` pass, as they do in all that is passed over."""
        while True:
            yield from self._turn()
            text, at = self._text, self._at
            end = text.find(b'"', at)
            stop = end if end >= 0 else len(text)
            if text.find(b"\\", at, stop) >= 0:
                found = (_WHOLE if out is not None else _STRING).match(text, at)
                stop = found.end() if found is not None else at
                if out is not None:
                    out += unescaped(text[at:stop], quoted=quoted)
            elif out is not None:
                out += text[at:stop] if key else plain(text[at:stop])
            self._at = stop
            if stop < len(text):
                if text[stop] == _QUOTE:
                    self._at += 1
                    return
                if len(text) - stop >= _LONGEST_ESCAPE:
                    raise Malformed("there is no such escape")
            yield from self._more()


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


def parsed(text: bytes) -> object:
    """A small JSON value. Raises Malformed."""
    try:
        return orjson.loads(text)
    except ValueError:
        pass
    try:
        return json.loads(text)
    except ValueError:
        raise Malformed("a value is no JSON") from None


def plain(text: bytes) -> bytes:
    """The text of a string, or a part of one, that has no escapes. Raises Malformed."""
    if len(text.translate(None, _CONTROLS)) != len(text):
        raise Malformed("a control character is in a string")
    return text


def unescaped(raw: bytes, *, quoted: bool = False) -> bytes:
    """The text of a string, or a part of one, that has escapes."""
    text = parsed(b'"%b"' % raw)
    assert isinstance(text, str)
    return text.encode("utf-8", "replace") if not quoted else compact([text])[2:-2]
