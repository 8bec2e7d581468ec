"""Token counts that model servers report in their responses, read as the response goes by.

JSON bodies and SSE events, split anywhere. Forms: OpenAI's `usage` (completions, chat, embeddings; the Responses API's
event `response.completed`), Anthropic's `usage` (in `message_start` and `message_delta`), SGLang's `meta_info`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from headrace.config.limits import Held

# A JSON body is kept to its end up to this size; of a longer one, only the end, where servers write the usage.
_MOST_KEPT_BYTES = 256 << 10
_TAIL_BYTES = 64 << 10
# The keys cannot stand inside a string: there, quotes are escaped.
_MARK = re.compile(rb'"(?:usage|meta_info)"\s*:\s*(?=\{)')
_MOST_TOKENS = 1 << 40


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one response. `cached_tokens` are those of the prompt that the server took from its prefix cache."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0


class UsageMeter:
    """Reads one response. `events`: it is an SSE stream. `held` is what it has of the budget of all responses: without
    room in that, the response is passed over. Call `close` in the end."""

    __slots__ = ("_events", "_found", "_held", "_kept", "_tail_only")

    def __init__(self, held: Held | None, *, events: bool) -> None:
        # None: it is passed over.
        self._held = held
        self._events = events
        self._kept = bytearray()
        self._tail_only = False
        self._found: Usage | None = None

    def feed(self, piece: bytes) -> None:
        """The next piece of the body."""
        if self._held is None:
            return
        if self._events and not self._kept and piece.endswith(b"\n"):
            # Whole lines, as nearly always: nothing of them is kept.
            if _MARK.search(piece):
                self._read_lines(piece)
            return
        self._take(piece)
        if not self._held.hold(len(self._kept)):
            self.close()

    def close(self) -> None:
        """Keep nothing any more. May be called again."""
        self._kept.clear()
        if self._held is not None:
            self._held.release()
            self._held = None

    def _take(self, piece: bytes) -> None:
        kept = self._kept
        kept += piece
        if not self._events:
            if len(kept) > _MOST_KEPT_BYTES:
                self._tail_only = True
                del kept[:-_TAIL_BYTES]
            return
        if b"\n" in piece:
            end = kept.rfind(b"\n") + 1
            if _MARK.search(kept, 0, end):
                self._read_lines(bytes(kept[:end]))
            del kept[:end]
        if len(kept) > _MOST_KEPT_BYTES:
            kept.clear()  # a line that never ends is no event

    def usage(self) -> Usage | None:
        """What was reported; None if nothing was. Call it when the response has ended."""
        kept = bytes(self._kept)
        self.close()
        if _MARK.search(kept):
            if self._events:
                self._read_lines(kept)
            else:
                self._read_document(kept)
        return self._found

    def _read_lines(self, lines: bytes) -> None:
        for line in lines.split(b"\n"):
            if line.startswith(b"data:") and _MARK.search(line):
                self._read(_load(line[5:]))

    def _read_document(self, body: bytes) -> None:
        if not self._tail_only:
            value = _load(body)
            # SGLang answers a list where it was asked for several completions.
            for entry in value if isinstance(value, list) else [value]:
                self._read(entry)
            return
        marks = list(_MARK.finditer(body))
        if marks:
            found = marks[-1]
            self._read({found[0].split(b'"')[1].decode(): _load_first(body[found.end() :])})

    def _read(self, document: object) -> None:
        if not isinstance(document, Mapping):
            return
        for holder in (document, document.get("response"), document.get("message")):
            if isinstance(holder, Mapping):
                for name in ("usage", "meta_info"):
                    reported = holder.get(name)
                    if isinstance(reported, Mapping):
                        self._found = _merged(self._found or Usage(), reported)


def _merged(known: Usage, reported: Mapping[str, Any]) -> Usage:
    """What is reported later counts; Anthropic tells input and output in different events."""
    details = reported.get("prompt_tokens_details") or reported.get("input_tokens_details")
    cached = _count(details, "cached_tokens") if isinstance(details, Mapping) else None
    if cached is None:
        cached = _count(reported, "cached_tokens")
    taken = _count(reported, "prompt_tokens")
    if taken is None:
        taken = _count(reported, "input_tokens")
        read, written = (_count(reported, f"cache_{what}_input_tokens") for what in ("read", "creation"))
        if taken is not None and (read is not None or written is not None):
            # Anthropic's input_tokens are those after the cached prefix.
            cached = read or 0
            taken += cached + (written or 0)
    given = _count(reported, "completion_tokens", "output_tokens")
    return Usage(
        known.input_tokens if taken is None else taken,
        known.output_tokens if given is None else given,
        known.cached_tokens if cached is None else cached,
    )


def _count(reported: Mapping[str, Any], *names: str) -> int | None:
    """The first of these that is a number of tokens."""
    counts = (value for name in names if type(value := reported.get(name)) is int and 0 <= value <= _MOST_TOKENS)
    return next(counts, None)


def _load(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except ValueError:
        return None


def _load_first(text: bytes) -> Any:
    try:
        return json.JSONDecoder().raw_decode(text.decode("utf-8", "replace"))[0]
    except (ValueError, RecursionError):
        return None
