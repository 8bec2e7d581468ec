"""Puts another name where JSON names its model, in pieces that may end anywhere.

A body is neither parsed nor held: a scanner follows strings, brackets and the keys of the outermost objects, and all
but the name itself comes out as it went in. Whatever name stands there is replaced, so no byte has to wait until it is
known whether it belongs to a certain name.

Places: `model` of the document itself, and in responses also of its `response` (OpenAI's Responses API, whose events
carry the whole response) and its `message` (Anthropic's `message_start`)."""

from __future__ import annotations

import json
import re
from enum import Enum, auto

import orjson

from headrace.core.bounded_json import MAX_BYTES, check_bounds, load

_NESTED = (b"response", b"message")
# Longer keys are none of the above: their rest is followed, not kept.
_LONGEST_KEY = 16
# More than 1,024 characters, each written as an escape.
_LONGEST_NAME = 8192

# Tokens in the objects that are watched, and elsewhere: arrays of numbers have none.
_WATCHED = re.compile(rb'["{}\[\],:]')
_UNWATCHED = re.compile(rb'["{}\[\]]')
_WATCHED_EVENT = re.compile(rb'["{}\[\],:\n]')
_UNWATCHED_EVENT = re.compile(rb'["{}\[\]\n]')
_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
# All up to the next bracket that has brackets inside, or to a string that goes on in the next piece: a document may
# have hundreds of thousands of strings, and a step for each would take a second.
_FLAT = rb'[^"{}\[\]]++|"(?:[^"\\]++|\\.)*+"'
_UNWATCHED_RUN = re.compile(rb"(?:%b|[{\[](?:%b)*+[}\]])*+" % (_FLAT, _FLAT), re.DOTALL)
_FLAT_EVENT = rb'[^"{}\[\]\n]++|"(?:[^"\\\n]++|\\[^\n])*+"'
_UNWATCHED_EVENT_RUN = re.compile(rb"(?:%b|[{\[](?:%b)*+[}\]])*+" % (_FLAT_EVENT, _FLAT_EVENT))
# JSON has no raw line break in a string: in an event stream it ends the event, whatever was open.
_STRING_EVENT = re.compile(rb'(?:[^"\\\n]++|\\[^\n])*+')

# An event as servers write it, up to its model's name: scalars alone come before it. Found in one search, where the
# scanner takes a step for each key.
_SCALAR = rb'"(?!model")[^"\\\n]*": ?(?:"[^"\\\n]*"|[-+.0-9eE]+|null|true|false), ?'
_USUAL_EVENT = re.compile(rb"^(data: ?\{(?:" + _SCALAR + rb')*+"model": ?")[^"\\\n]*(?=")', re.MULTILINE)

_QUOTE, _BACKSLASH, _COMMA, _COLON, _OBJECT, _NEWLINE = b'"\\,:{\n'
_OPENING = b"{["


class _At(Enum):
    """Where the scanner is."""

    STRUCTURE = auto()
    KEY = auto()
    NAME = auto()  # in the text that is replaced
    TEXT = auto()  # in any other string


class ModelNames:
    """The scanner of one body. `events`: an SSE stream, each line a document of its own. `nested`: see above.

    `replaced` counts the names put in so far; `first` is the first name that stood there, as it was written."""

    def __init__(self, model: str, *, events: bool = False, nested: bool = False) -> None:
        self.replaced = 0
        self.first = b""
        self._name = orjson.dumps(model)[1:-1]
        self._events = events
        self._nested = nested
        self._at_line_start = events
        self._start()

    def _start(self) -> None:
        self._at = _At.STRUCTURE
        self._depth = 0
        # Whether the open brackets of the two outermost levels are objects to watch.
        self._outer = self._inner = False
        self._key = b""
        self._after_colon = False
        self._escaped = False

    @property
    def cut(self) -> bool:
        """Whether what was fed so far ends within a name."""
        return self._at is _At.NAME

    def feed(self, piece: bytes) -> bytes:
        """The next piece with its names replaced. Nothing is kept back: what comes out belongs to what went in."""
        if not self._events:
            return self._scan(piece)
        whole_lines = self._at_line_start and piece.endswith(b"\n")
        if piece:
            self._at_line_start = piece.endswith(b"\n")
        if whole_lines:
            places = piece.count(b'"model"')
            changed, found = _USUAL_EVENT.subn(self._usual, piece) if places else (piece, 0)
            if found == places:
                self.replaced += found
                return changed
        return self._scan(piece)

    def _usual(self, found: re.Match[bytes]) -> bytes:
        return found[1] + self._name

    def _scan(self, piece: bytes) -> bytes:
        out: list[bytes] = []
        copied = at = 0
        size = len(piece)
        while at < size:
            if self._at is _At.STRUCTURE:
                at, self._at = self._structure(piece, at)
                if self._at is _At.NAME:
                    out += (piece[copied:at], self._name)
                    copied = at
                    self.replaced += 1
                continue
            begun, inside = at, self._at
            at = self._string(piece, at)
            if inside is _At.NAME:
                copied = at
                if self.replaced == 1 and len(self.first) <= _LONGEST_NAME:
                    self.first += piece[begun:at]
            elif inside is _At.KEY and len(self._key) <= _LONGEST_KEY:
                self._key += piece[begun : min(at, begun + _LONGEST_KEY + 1)]
            if at < size:
                self._at = _At.STRUCTURE
                # The quote that closes the string, or a line break, which structure looks at again.
                at += piece[at] == _QUOTE
        if not copied:
            return piece
        out.append(piece[copied:])
        return b"".join(out)

    def _structure(self, piece: bytes, at: int) -> tuple[int, _At]:
        """Goes on behind the next token, or at the end of the piece; and where the scanner is then."""
        watched = self._outer if self._depth == 1 else self._inner and self._depth == 2
        if not watched and self._depth:
            run = (_UNWATCHED_EVENT_RUN if self._events else _UNWATCHED_RUN).match(piece, at)
            at = run.end() if run is not None else at
        if self._events:
            found = (_WATCHED_EVENT if watched else _UNWATCHED_EVENT).search(piece, at)
        else:
            found = (_WATCHED if watched else _UNWATCHED).search(piece, at)
        if found is None:
            return len(piece), _At.STRUCTURE
        token = piece[found.start()]
        if token == _QUOTE:
            return found.end(), self._opened_string(watched)
        if token in _OPENING:
            self._open(token == _OBJECT)
        elif token == _COMMA:
            self._after_colon = False
        elif token == _COLON:
            self._after_colon = True
        elif token == _NEWLINE:
            self._start()
        else:
            self._depth = max(0, self._depth - 1)
        return found.end(), _At.STRUCTURE

    def _opened_string(self, watched: bool) -> _At:
        if not watched:
            return _At.TEXT
        if self._after_colon:
            return _At.NAME if self._key == b"model" else _At.TEXT
        self._key = b""
        return _At.KEY

    def _open(self, is_object: bool) -> None:
        if self._depth == 0:
            self._outer = is_object
            self._after_colon = False
        elif self._depth == 1:
            self._inner = is_object and self._outer and self._nested and self._after_colon and self._key in _NESTED
            if self._inner:
                self._after_colon = False
        self._depth += 1

    def _string(self, piece: bytes, at: int) -> int:
        """The index of what ends the string, a quote or an event's line break; the piece's size if it goes on."""
        size = len(piece)
        if self._escaped:
            self._escaped = False
            if not (self._events and piece[at] == _NEWLINE):
                at += 1
        pattern = _STRING_EVENT if self._events else _STRING
        while True:
            found = pattern.match(piece, at)
            at = found.end() if found is not None else at
            if at < size and piece[at] == _BACKSLASH:
                at += 1
                self._escaped = at == size
                if self._escaped:
                    return size
                continue
            return at


def named_model(body: bytes) -> str:
    """The model that a JSON object, whole or cut, names; "" if it names none so far. Raises TooComplex."""
    check_bounds(body)
    scanner = ModelNames("")
    scanner.feed(body)
    if not scanner.replaced or scanner.cut:
        return ""
    try:
        found = load(b'"%b"' % scanner.first)
    except ValueError:
        return ""
    return found if isinstance(found, str) else ""


def with_model(body: bytes, model: str, max_bytes: int = MAX_BYTES) -> bytes:
    """The JSON object `body`, whole or cut, with its `model` replaced and every other byte kept.

    A body that spells the key with escapes, or has none, is written anew. Raises ValueError if that cannot be done:
    it is no JSON object, or longer than `max_bytes`, or too complex."""
    scanner = ModelNames(model)
    changed = scanner.feed(body)
    if scanner.replaced:
        return changed
    value = load(body, max_bytes)
    if not isinstance(value, dict):
        raise ValueError("the body must be a JSON object")
    # Not orjson's: that nests to 254 levels only, and writes NaN as null.
    return json.dumps({**value, "model": model}, separators=(",", ":")).encode()
