"""A request's body while it is held: its pieces, what of the budget of all bodies they have, and what they say.

A body of up to WHOLE_BYTES is read at once, when it is there: for one that small nothing is faster. A longer one is
scanned in steps while it arrives, and never put together in one piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import orjson

from headrace.config.limits import STEP_BYTES, Held
from headrace.core import Refusal, RefusalReason
from headrace.core.bounded_json import count_few
from headrace.extproc import answers
from headrace.extproc.body import WHOLE_BYTES, BodyFacts, long_facts, read_body
from headrace.extproc.body_scan import BodyScan
from headrace.extproc.model_name import with_model
from headrace.extproc.settings import ConversationSettings
from headrace.extproc.wire import Kind
from headrace.extproc.work import Work
from headrace.protocol import http

_BODY = Kind.REQUEST_BODY
# Of a body that is read at once.
_MOST_BRACKETS = 4096
# Of longer bodies nobody asks for the tokens: see prefixes.tokenizer.
_MOST_SHOWN_BYTES = 1 << 20
# What Python has beside the bytes of a piece.
PIECE_OVERHEAD = 64
_SMALL_PIECE = 4096
_ANSWERS_A_STEP = 16
_RETRY_AFTER_SECONDS = 1


class RequestBody:
    """The body of one request. `drop` must be called when it is not held any more."""

    __slots__ = ("_held", "_model_places", "_pieces", "_scan", "_settings", "is_long", "size")

    def __init__(self, settings: ConversationSettings) -> None:
        self._settings = settings
        self._held = Held(settings.bodies)
        self._pieces: list[bytes] = []
        self._scan: BodyScan | None = None
        self.size = 0
        # Whether it is scanned, or too long for that.
        self.is_long = False

    def add(self, piece: bytes, *, cut: bool = False) -> Refusal | None:
        """Hold the next piece; why the request cannot be served where it cannot be held. `cut`: the body may go on
        where the gateway does not show it."""
        settings, size = self._settings, self.size + len(piece)
        if size > settings.max_body_bytes:
            text = f"the body is over {settings.max_body_bytes} bytes"
            return Refusal(413, RefusalReason.BODY_TOO_LARGE, text)
        pieces = self._pieces
        # Small pieces are put together: each has a cost of its own, in memory and wherever they are gone through.
        joins = bool(pieces) and len(piece) < _SMALL_PIECE and len(pieces[-1]) < _SMALL_PIECE
        if not self._held.add(len(piece) if joins else len(piece) + PIECE_OVERHEAD):
            text = "the bodies of other requests take all the memory there is for them: try again"
            return Refusal(503, RefusalReason.BODY_BUDGET, text, _RETRY_AFTER_SECONDS)
        if joins:
            pieces[-1] += piece
        else:
            pieces.append(piece)
        self.size = size
        if size > WHOLE_BYTES:
            self._scan_piece(piece, cut=cut)
        return None

    def _scan_piece(self, piece: bytes, *, cut: bool) -> None:
        most = self._settings.max_parsed_body_bytes
        begins, self.is_long = not self.is_long, True
        if self.size > most and not cut:
            self._forget_scan()
        elif begins:
            # With this piece.
            self._scan = BodyScan()
            for held in self._pieces:
                self._scan.feed(held[:most])
        elif self._scan is not None:
            self._scan.feed(piece)

    def end(self) -> None:
        """The body is whole. One of many lists and objects is scanned as a long one is: to make all of them at once
        takes ten milliseconds."""
        if self.is_long or not STEP_BYTES < self.size <= self._settings.max_parsed_body_bytes:
            return
        body = self.joined()
        if count_few(body, b"[", _MOST_BRACKETS) + count_few(body, b"{", _MOST_BRACKETS) > _MOST_BRACKETS:
            self.is_long, self._scan = True, BodyScan()
            self._scan.feed(body)

    def read_steps(self) -> Iterator[list[bytes]]:
        """Read what has come of a long body, a bounded piece of it a step. There are no answers in it."""
        while self._scan is not None and self._scan.step():
            yield []

    def facts(self, headers: Mapping[str, str], *, whole: bool) -> BodyFacts:
        """What the body says to the pick; not `whole`: only its beginning has come. Raises UnreadableBody."""
        path = headers.get(http.PATH, "") if headers.get(http.METHOD, "POST") == "POST" else ""
        encoding = headers.get(http.CONTENT_ENCODING, "")
        most = self._settings.max_parsed_body_bytes
        if self.is_long:
            scan, self._scan = self._scan, None
            self._model_places = scan.model_places if scan is not None else []
            beginning = self._pieces[0][:most] if not whole else self._beginning()
            try:
                return long_facts(
                    scan, beginning, path=path, content_encoding=encoding, whole=whole, size=self.size, max_bytes=most
                )
            finally:
                if scan is not None:
                    scan.close()
        return read_body(self.joined(), path=path, content_encoding=encoding, whole=whole, max_bytes=most)

    def _beginning(self) -> bytes:
        first = self._pieces[0][:_SMALL_PIECE]
        # A short first piece is followed by a long one.
        return first if len(first) == _SMALL_PIECE else first + b"".join(self._pieces[1:2])[:_SMALL_PIECE]

    def shown(self) -> bytes:
        """The body for those who read it themselves; empty where it is too long for that."""
        return self.joined() if self.size <= _MOST_SHOWN_BYTES else b""

    def joined(self) -> bytes:
        """The body in one piece."""
        if len(self._pieces) != 1:
            self._pieces = [b"".join(self._pieces)]
        return self._pieces[0]

    def rename(self, model: str) -> bool:
        """Put another model's name into the body. False where its own cannot be found: the body stays as it came."""
        try:
            if not self.is_long:
                self._pieces = [with_model(self.joined(), model, self._settings.max_parsed_body_bytes)]
            elif self._model_places:
                self._pieces = replaced(self._pieces, self._model_places, orjson.dumps(model))
            else:
                return False
        except ValueError:
            return False
        self.size = sum(map(len, self._pieces))
        return True

    def send_on(self, work: Work, *, trailers: bool) -> list[bytes]:
        """The body as answers in full duplex, of a long one the first; the others are left as work. `trailers` come
        after it. It is held until `drop`: they are to be sent."""
        if self.is_long:
            steps = self._sending(trailers=trailers)
            work.begin(steps)
            return next(steps)
        out = list(answers.chunks(_BODY, self.joined(), end_of_stream=not trailers))
        if trailers:
            out.append(answers.UNCHANGED[Kind.REQUEST_TRAILERS])
        return out

    def _sending(self, *, trailers: bool) -> Iterator[list[bytes]]:
        """The answers of a long body, about 1 MB a step."""
        pieces = _grouped(self._pieces)
        out: list[bytes] = []
        piece = next(pieces)
        for following in pieces:
            out += answers.chunks(_BODY, piece, end_of_stream=False)
            if len(out) >= _ANSWERS_A_STEP:
                yield out
                out = []
            piece = following
        out += answers.chunks(_BODY, piece, end_of_stream=not trailers)
        if trailers:
            out.append(answers.UNCHANGED[Kind.REQUEST_TRAILERS])
        yield out

    def drop(self) -> None:
        """Hold nothing any more. May be called again."""
        if not self._pieces and not self.size:
            return
        self._pieces = []
        self._forget_scan()
        self.size = 0
        self._held.release()

    def _forget_scan(self) -> None:
        if self._scan is not None:
            self._scan.close()
            self._scan = None


def replaced(pieces: list[bytes], places: list[tuple[int, int]], value: bytes) -> list[bytes]:
    """The pieces of a text with another value in some places, which are given by their first byte and their end."""
    out: list[bytes] = []
    begun = 0
    rest = iter(places)
    place = next(rest, None)
    for piece in pieces:
        at, end = 0, begun + len(piece)
        while place is not None and place[0] < end:
            if place[0] >= begun:
                out += (piece[at : place[0] - begun], value)
            at = min(place[1], end) - begun
            if place[1] > end:
                break
            place = next(rest, None)
        out.append(piece[at:])
        begun = end
    return out


def _grouped(pieces: list[bytes]) -> Iterator[bytes]:
    """The pieces as ones of at most MAX_CHUNK_BYTES, in fewer where they are small. Takes them out of the list."""
    pieces.reverse()
    group: list[bytes] = []
    size = 0
    while pieces:
        piece = pieces.pop()
        if len(piece) > answers.MAX_CHUNK_BYTES:
            if group:
                yield b"".join(group)
                group, size = [], 0
            for at in range(0, len(piece), answers.MAX_CHUNK_BYTES):
                yield piece[at : at + answers.MAX_CHUNK_BYTES]
            continue
        if group and size + len(piece) > answers.MAX_CHUNK_BYTES:
            yield b"".join(group)
            group, size = [], 0
        group.append(piece)
        size += len(piece)
    if group:
        yield b"".join(group)
