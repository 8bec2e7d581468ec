"""Reads a long JSON body for its facts while it arrives, in bounded steps, from pieces that may end anywhere.

What nobody wants is passed over without an object for it. The result is that of reading the whole body at once
(`extproc.body`), but for malformed JSON in fields that nobody wants, which a model server will refuse."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable, Generator

import msgspec

from headrace.config.limits import STEP_BYTES, STEP_ITEMS
from headrace.core.bounded_json import Bounds, TooComplex
from headrace.extproc.json_scan import Captured, JsonScan, unwanted
from headrace.extproc.json_text import Malformed, compact, parsed, plain, unescaped

# None asks for a turn, or for more of the body.
Steps = Generator[None, None, None]

LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens", "max_new_tokens")
# Parts of a prompt beside the messages: those before them, and those that stand for them, of which one counts.
BEFORE = ("cache_salt", "tools", "system", "instructions")
INSTEAD = ("prompt", "input", "text", "token_ids", "input_ids")
_PROMPTS = (*BEFORE, *INSTEAD)
_OF_A_MESSAGE = ("role", "content", "tool_calls")
_BESIDE_MODEL = unwanted("model")
_BESIDE_FIELDS = unwanted("model", "stream", "messages", "sampling_params", *LIMITS, *_PROMPTS)
_BESIDE_MESSAGES = unwanted(*_OF_A_MESSAGE)
_BESIDE_LIMITS = unwanted(*LIMITS)
_ITEMS_A_MESSAGE = 4
_SEPARATOR = b"\x1f"
_NOT_THERE = Captured(b"", False)


class _Message(msgspec.Struct):
    role: msgspec.Raw = msgspec.Raw()
    content: msgspec.Raw = msgspec.Raw()
    tool_calls: msgspec.Raw = msgspec.Raw()


_messages = msgspec.json.Decoder(list[_Message])


def _captured(raw: msgspec.Raw) -> Captured:
    text = bytes(raw)
    if text[:1] == b'"':
        content = plain(text[1:-1]) if b"\\" not in text else unescaped(text[1:-1])
        return Captured(content, bool(content))
    value = parsed(text) if text else None
    return Captured(b"" if value is None else compact(value), bool(value))


class BodyScan:
    """The facts of one body, as far as it has come. Give the pieces to `feed`, call `step` until it is false, and
    `close` in the end.

    `fields` are values as a parsed body has them, as far as `extproc.body` looks at them. `model_places` are where
    values of `model` stand, quotes included. `only_model`: nothing else is wanted."""

    def __init__(self, *, only_model: bool = False, step_bytes: int = STEP_BYTES, step_items: int = STEP_ITEMS) -> None:
        self.fields: dict[str, object] = {}
        self.model_places: list[tuple[int, int]] = []
        # Why it cannot be read; None while it can.
        self.failed: ValueError | None = None
        self.complete = False
        self._parts: dict[str, bytes | bytearray] = {}
        # Each part of a message behind a separator; None without a list of messages.
        self._messages: bytearray | None = None
        self._slow_until = 0
        self._waiting: deque[bytes] = deque()
        self._bounds = Bounds()
        self._cut = b""
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._step_bytes = step_bytes
        self._json = JsonScan(step_items)
        self._only_model = only_model
        self._work = self._document()
        next(self._work)

    @property
    def prompt(self) -> bytes:
        """What the server's prefix cache will see."""
        parts = [self._parts[name] for name in BEFORE if name in self._parts]
        if self._messages is None:
            parts += [self._parts[name] for name in INSTEAD if name in self._parts][:1]
        before, messages = _SEPARATOR.join(parts), self._messages or b""
        return before + messages if parts else bytes(memoryview(messages)[len(_SEPARATOR) :])

    @property
    def position(self) -> int:
        """Bytes of the body that were gone through."""
        return self._json.position

    def feed(self, piece: bytes) -> None:
        """The next piece of the body."""
        if self.failed is None and piece:
            self._waiting.append(piece)

    def step(self) -> bool:
        """Read on for a while: at most so many bytes and items as a step may have. Whether there is more to read."""
        if self.failed is not None:
            return False
        json = self._json
        try:
            if json.hungry:
                if not self._waiting:
                    return False
                window = self._window()
                self._bounds.feed(window)
                json.give(self._characters(window))
            json.refresh()
            next(self._work)
        except ValueError as error:
            self._fail(error)
            return False
        return bool(self._waiting) or not json.hungry

    def end(self) -> None:
        """The body has ended: see that the document has."""
        if self.failed is None and not self.complete:
            self._fail(Malformed("it ends too early"))

    def close(self) -> None:
        """Nothing of it is wanted any more. May be called again."""
        # The work refers to the scan, and so does the traceback of a failure: both would be kept until the collector
        # comes.
        self._work.close()
        self._drop()
        if self.failed is not None:
            self.failed = self.failed.with_traceback(None)

    def _fail(self, error: ValueError) -> None:
        self.failed = error if isinstance(error, TooComplex | Malformed) else Malformed(str(error).partition(":")[0])
        self._drop()

    def _drop(self) -> None:
        self._waiting.clear()
        self._parts.clear()
        self._messages = None

    def _window(self) -> bytes:
        piece = self._waiting.popleft()
        if len(piece) <= self._step_bytes:
            return piece
        # Cut as a view: a long piece is not copied again and again.
        view = memoryview(piece)
        self._waiting.extendleft(
            bytes(view[at : at + self._step_bytes])
            for at in reversed(range(self._step_bytes, len(view), self._step_bytes))
        )
        return bytes(view[: self._step_bytes])

    def _characters(self, window: bytes) -> bytes:
        """The window without a character that is cut at its end: that comes with the next one. Raises ValueError."""
        text = self._cut + window
        self._utf8.decode(window)
        self._cut = self._utf8.getstate()[0]
        return text[: len(text) - len(self._cut)] if self._cut else text

    def _document(self) -> Steps:
        json = self._json
        yield
        if (yield from json.peek()) == b"\xef":
            yield from json.byte_order_mark()
        yield from (
            json.members(self._only, _BESIDE_MODEL) if self._only_model else json.members(self._field, _BESIDE_FIELDS)
        )
        while True:
            self.complete = True
            yield from json.nothing_more()

    def _only(self, name: str) -> Steps:
        if name == "model":
            yield from self._model()
        else:
            yield from self._json.skip()

    def _field(self, name: str) -> Steps:
        json = self._json
        if name == "messages":
            self._messages = None
            if (yield from json.peek()) == b"[":
                self._messages = bytearray()
                yield from json.elements(self._message)
            else:
                yield from json.skip()
        elif name == "model":
            yield from self._model()
        elif name in _PROMPTS:
            self._parts.pop(name, None)
            captured = yield from json.capture()
            if captured.truth:
                self._parts[name] = captured.content
        elif name in LIMITS or name == "stream":
            self.fields[name] = yield from json.scalar()
        elif name == "sampling_params" and (yield from json.peek()) == b"{":
            found: dict[str, object] = {}
            self.fields[name] = found
            yield from json.members(self._limit_into(found), _BESIDE_LIMITS)
        else:
            self.fields.pop(name, None)
            yield from json.skip()

    def _limit_into(self, found: dict[str, object]) -> Callable[[str], Steps]:
        def field(name: str) -> Steps:
            if name in LIMITS:
                found[name] = yield from self._json.scalar()
            else:
                yield from self._json.skip()

        return field

    def _model(self) -> Steps:
        json = self._json
        yield from json.peek()
        begun = json.position
        self.fields["model"] = yield from json.scalar()
        self.model_places.append((begun, json.position))

    def _message(self) -> Steps:
        json = self._json
        if (yield from json.peek()) != b"{":
            yield from json.skip_others()
            return
        if json.position >= self._slow_until and (run := json.objects()):
            try:
                read = _messages.decode(b"[%b]" % run)
            except (msgspec.MsgspecError, ValueError):
                # The one that is no JSON, or not strict, is found one by one.
                self._slow_until = json.position + len(run)
            else:
                for message in read:
                    self._add(*map(_captured, (message.role, message.content, message.tool_calls)))
                json.passed(run, _ITEMS_A_MESSAGE * len(read))
                return
        found: dict[str, Captured] = {}

        def field(name: str) -> Steps:
            if name in _OF_A_MESSAGE:
                found[name] = yield from json.capture()
            else:
                yield from json.skip()

        yield from json.members(field, _BESIDE_MESSAGES)
        self._add(*(found.get(name, _NOT_THERE) for name in _OF_A_MESSAGE))

    def _add(self, role: Captured, content: Captured, tool_calls: Captured) -> None:
        assert self._messages is not None
        for part in (role, content, tool_calls) if tool_calls.truth else (role, content):
            self._messages += _SEPARATOR
            self._messages += part.content
