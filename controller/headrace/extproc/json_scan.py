"""Follows JSON through pieces that may end anywhere: what is wanted of it is captured, the rest is passed over.

Each part of the grammar is a generator that yields where it needs more text (`hungry`), or where others should have a
turn. Strings, numbers and flat structure are followed by searches in C; a step of Python is an item. The caller checks
UTF-8, size, number and depth. What is passed over is followed by its strings and brackets alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from dataclasses import dataclass

from headrace.extproc.json_text import JsonText, Malformed, Steps, compact, parsed

# A key that is wanted is shorter, each character an escape.
_LONGEST_KEY = 256
# Strings of which the value is wanted: over 1,024 characters, each written as two escapes.
_LONGEST_TEXT = 16 << 10
_SPACES, _BETWEEN = rb"[ \t\r\n]*+", rb"[ \t\r\n,]*+"
_TEXT = rb'"(?:[^"\\]++|\\.)*+"'
_FLAT = rb'[^"{}\[\]]++|%b' % _TEXT
# What stands in an object or list: brackets so many levels deep. Each level costs another look at what goes on in the
# next piece.
_INNER = _FLAT
for _ in range(3):
    _INNER = rb"%b|[{\[](?:%b)*+[}\]]" % (_FLAT, _INNER)
_RUN = re.compile(rb"(?:%b)*+" % _INNER, re.DOTALL)
_VALUE = rb'(?:%b|[{\[](?:%b)*+[}\]]|[^ \t\r\n,:"{}\[\]]++)' % (_TEXT, _INNER)
# Whole elements and members, of any number; and whole objects, of as many as are worth a step.
_MEMBER = rb"%b%b:%b%b" % (_TEXT, _SPACES, _SPACES, _VALUE)
_ELEMENTS, _MEMBERS = (
    re.compile(rb"%b(?=%b)(?:%b,%b%b(?=%b))*+" % (one, end, _SPACES, _SPACES, one, end), re.DOTALL)
    for one, end in ((_VALUE, rb"[ \t\r\n]*+[,\]]"), (_MEMBER, rb"[ \t\r\n]*+[,}]"))
)
_OBJECTS = re.compile(rb"(?:%b\{(?:%b)*+\}){1,256}+" % (_BETWEEN, _INNER), re.DOTALL)
# Whole elements that are no objects.
_OTHERS = re.compile(rb"(?:%b(?!\{)%b(?=%b[,\]]))++" % (_BETWEEN, _VALUE, _SPACES), re.DOTALL)
_KEY = re.compile(rb'%b"([^"\\]{0,64}+)"%b:' % (_BETWEEN, _SPACES))

_QUOTE, _COMMA, _OBJECT = b'",{'
_OPENING, _CLOSING = b"{[", b"}]"


@dataclass(frozen=True, slots=True)
class Captured:
    """A value as `extproc.body` writes it into a prompt: a string's text, else JSON without spaces. `truth` is
    Python's."""

    content: bytes | bytearray
    truth: bool


def unwanted(*names: str) -> re.Pattern[bytes]:
    """Matches whole members of an object, but for those with these names, and those whose name has escapes."""
    key = rb'"(?!(?:%b)")[^"\\]*+"' % "|".join(names).encode()
    members = rb"(?:%b%b%b:%b%b(?=%b[,}]))++" % (_BETWEEN, key, _SPACES, _SPACES, _VALUE, _SPACES)
    return re.compile(members, re.DOTALL)


class JsonScan(JsonText):
    """Goes through values: each part of the grammar is a generator."""

    def members(self, field: Callable[[str], Steps], others: re.Pattern[bytes]) -> Steps:
        """An object: `field` goes through the value of each of its members, but for `others`, which may be left out."""
        if (yield from self.peek()) != b"{":
            raise Malformed("it is no object")
        self._at += 1
        while True:
            yield from self._turn()
            if (found := others.match(self._text, self._at)) is not None:
                self._at = found.end()
            if (found := _KEY.match(self._text, self._at)) is not None:
                self._at = found.end()
                yield from field(found[1].decode())
                continue
            token = yield from self.peek()
            self._at += 1
            if token == b"}":
                return
            if token == b'"':
                yield from field((yield from self._name()))
            elif token != b",":
                raise Malformed("a key is missing")

    def elements(self, element: Callable[[], Steps]) -> Steps:
        """A list: `element` goes through one or more of its elements at a time."""
        self._at += 1
        while (found := (yield from self.peek())) != b"]":
            if found == b",":
                self._at += 1
            else:
                yield from element()
        self._at += 1

    def objects(self) -> bytes:
        """Objects that follow each other here, as many as are there whole; they are not passed. Empty for none."""
        found = _OBJECTS.match(self._text, self._at)
        return found[0] if found is not None else b""

    def skip_others(self) -> Steps:
        """Pass over an element that is no object, and those that follow it."""
        found = _OTHERS.match(self._text, self._at)
        if found is None:
            yield from self.skip()
        else:
            self._at = found.end()

    def passed(self, text: bytes, items: int) -> None:
        """So much text, and so many items, were gone through."""
        self._at += len(text)
        self._left -= items

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
        out = bytearray()
        if found == b'"':
            self._at += 1
            yield from self._string(out)
            return Captured(out, bool(out))
        if found[0] in _OPENING:
            yield from self._structure(out)
            return Captured(out, len(out) > len(b"[]"))
        value = parsed((yield from self._word()))
        return Captured(b"" if value is None else compact(value), bool(value))

    def scalar(self) -> Generator[None, None, object]:
        """A value; of a long string its beginning, of a structure another one that is as empty."""
        found = yield from self.peek()
        if found == b'"':
            self._at += 1
            out = bytearray()
            yield from self._string(out)
            return out[:_LONGEST_TEXT].decode("utf-8", "ignore")
        if found[0] not in _OPENING:
            return parsed((yield from self._word()))
        self._at += 1
        empty = (yield from self.peek())[0] in _CLOSING
        yield from self._nested(1)
        return [] if empty else [None]

    def _name(self) -> Generator[None, None, str]:
        """A key, behind its opening quote, and its colon; "" for one that is too long to be wanted."""
        name = bytearray()
        yield from self._string(name, key=True)
        if (yield from self.peek()) != b":":
            raise Malformed("a colon is missing")
        self._at += 1
        return name.decode() if len(name) <= _LONGEST_KEY else ""

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

    def _structure(self, out: bytearray) -> Steps:
        """An object or list, written without spaces."""
        opened = bytearray()
        # Whether a value has come that a comma or an end must follow, and whether one must come.
        after = wanted = False
        while True:
            token = (yield from self.peek())[0]
            inside = opened[-1] if opened else 0
            if token in _CLOSING:
                if wanted or token != inside + 2:
                    raise Malformed("a bracket is closed that is not open")
                self._at += 1
                out.append(token)
                del opened[-1]
                after = True
                if not opened:
                    return
            elif token == _COMMA and after:
                self._at += 1
                out.append(token)
                after, wanted = False, True
            elif after:
                raise Malformed("a comma is missing")
            elif inside and (run := (_MEMBERS if inside == _OBJECT else _ELEMENTS).match(self._text, self._at)):
                self._at = run.end()
                out += compact(parsed(b"%c%b%c" % (inside, run[0], inside + 2)))[1:-1]
                after, wanted = True, False
            else:
                if inside == _OBJECT:
                    token = yield from self._colon(out)
                if token in _OPENING:
                    self._at += 1
                    out.append(token)
                    opened.append(token)
                    wanted = False
                else:
                    yield from self._plain(token, out)
                    after, wanted = True, False

    def _colon(self, out: bytearray) -> Generator[None, None, int]:
        """A key and its colon, written without spaces. Gives the first byte of what comes then."""
        if (yield from self.peek()) != b'"':
            raise Malformed("a key is missing")
        yield from self._plain(_QUOTE, out)
        if (yield from self.peek()) != b":":
            raise Malformed("a colon is missing")
        self._at += 1
        out += b":"
        return (yield from self.peek())[0]

    def _plain(self, token: int, out: bytearray) -> Steps:
        """A string, as JSON writes it, or a number or word."""
        if token != _QUOTE:
            out += compact(parsed((yield from self._word())))
            return
        self._at += 1
        out += b'"'
        yield from self._string(out, quoted=True)
        out += b'"'
