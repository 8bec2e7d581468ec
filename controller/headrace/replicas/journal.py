"""What this replica tells those that follow it: changes of its own account in numbered batches, and the account as a
whole for who comes, or has fallen behind. No I/O: whoever sends it asks for the next batch.

Bounded: the latest batches are kept, up to a number of bytes. A follower that is slower than that starts anew with the
account as a whole; nobody waits for it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

from headrace.datalayer.evidence import Failure
from headrace.datalayer.ledger import InFlight
from headrace.prefixes.approximate import PrefixIndex
from headrace.replicas import peers_pb2 as messages

# What is kept for followers. A change is about 100 bytes, and 8 for each block of a prompt.
KEPT_BYTES = 8 << 20
# Changes between two batches; more come only where the event loop has stood still.
_MOST_PENDING = 50_000
# How much of the account, or of an endpoint's prefixes, goes into one message: about a millisecond's work.
_ENTRIES_A_PART = 500
_BLOCKS_A_PART = 4096
# Failures between two batches, and characters of a flow's name: further ones say nothing new.
_MOST_FAILURES = 100
_MOST_FLOW = 128
_WORD = (1 << 64) - 1


class FellBehind(LookupError):  # noqa: N818
    """The batches that a follower wants next are no longer kept: it needs the account as a whole."""


@dataclass(eq=False)
class Journal:
    """Notes changes (a LedgerListener), and makes batches of them. `clock` gives seconds that only go forward."""

    replica: str
    index: PrefixIndex
    _: KW_ONLY
    clock: Callable[[], float]
    name: str = ""
    kept_bytes: int = KEPT_BYTES

    def __post_init__(self) -> None:
        # The number of the last batch.
        self.sequence = 0
        # Set when there is something to make a batch of.
        self.pending = asyncio.Event()
        self._followers = 0
        self._changes: list[tuple[bool, InFlight, bool]] = []
        self._sent: list[tuple[str, Sequence[int], int]] = []
        self._failed: list[Failure] = []
        self._batches: deque[tuple[float, bytes]] = deque()
        self._size = 0

    # Notes of the request's path.

    def started(self, entry: InFlight) -> None:
        """It is in our account."""
        if self._followers:
            self._note(True, entry, False)

    def changed(self, entry: InFlight) -> None:
        """It counts for another endpoint, or with other tokens."""
        if self._followers:
            self._note(False, entry, False)

    def finished(self, entry: InFlight) -> None:
        """It is no longer in our account."""
        if self._followers:
            self._note(False, entry, True)

    def sent(self, endpoint: str, blocks: Sequence[int]) -> None:
        """A prompt of these blocks went to an endpoint."""
        if self._followers and blocks:
            self._sent.append((endpoint, blocks, self.index.settings.block_bytes))

    def failed(self, failure: Failure) -> None:
        """An endpoint failed to answer a request."""
        if self._followers and len(self._failed) < _MOST_FAILURES:
            self._failed.append(failure)
            self.pending.set()

    def _note(self, start: bool, entry: InFlight, end: bool) -> None:
        self._changes.append((start, entry, end))
        self.pending.set()

    # For those who send it.

    def joined(self) -> None:
        """Somebody follows: changes are noted from now on."""
        self._followers += 1

    def left(self) -> None:
        """Somebody follows no more."""
        self._followers -= 1
        if not self._followers:
            self._forget()

    def cut(self) -> None:
        """Make a batch of what has been noted."""
        changes, self._changes = self._changes, []
        sent, self._sent = self._sent, []
        failed, self._failed = self._failed, []
        if not (changes or sent or failed):
            return
        self.sequence += 1
        if len(changes) > _MOST_PENDING:
            self._forget()
            return
        update = self._update(self.sequence)
        for start, entry, end in changes:
            if start:
                self._describe(update.changes.add().started, entry, update.made_at)
            elif end:
                update.changes.add().finished = entry.number
            else:
                moved = update.changes.add().moved
                moved.number, moved.endpoint, moved.tokens = entry.number, entry.endpoint, max(0, entry.tokens)
        for endpoint, blocks, block_bytes in sent:
            update.sent.add(endpoint=endpoint, block_bytes=block_bytes, blocks=blocks)
        for failure in failed:
            origin = failure.origin
            told = update.failures.add(endpoint=failure.endpoint, flow=origin.flow[:_MOST_FLOW], served=failure.served)
            told.first_block = origin.first_block & _WORD
        raw = update.SerializeToString()
        self._batches.append((update.made_at, raw))
        self._size += len(raw)
        while self._size > self.kept_bytes:
            self._size -= len(self._batches.popleft()[1])

    def after(self, sequence: int) -> bytes | None:
        """The batch that follows the one of this number; None while there is none. Raises FellBehind."""
        position = len(self._batches) - (self.sequence - sequence)
        if sequence >= self.sequence:
            return None
        if position < 0:
            raise FellBehind(f"batch {sequence + 1} is no longer kept")
        return self._batches[position][1]

    def lag(self, sequence: int) -> float:
        """Seconds since the batch after this one was made; 0 where there is none."""
        if sequence >= self.sequence:
            return 0.0
        position = max(0, len(self._batches) - (self.sequence - sequence))
        return self.clock() - self._batches[position][0] if position < len(self._batches) else 0.0

    def sign_of_life(self) -> bytes:
        """That there is nothing to tell."""
        return self._update(self.sequence).SerializeToString()

    def account(self, own: Iterable[InFlight]) -> tuple[int, Iterator[bytes]]:
        """Our whole account, which is `own` now, in parts, and the number of the batch that it goes on after.

        Parts are made when they are asked for: what changes meanwhile is in a later batch, and sets anew."""
        self.cut()
        return self.sequence, self._parts(list(own), self.sequence)

    def _parts(self, entries: list[InFlight], sequence: int) -> Iterator[bytes]:
        for begin in range(0, max(1, len(entries)), _ENTRIES_A_PART):
            update = self._update(sequence)
            update.reset = begin == 0
            for entry in entries[begin : begin + _ENTRIES_A_PART]:
                if not entry.over:
                    self._describe(update.changes.add().started, entry, update.made_at)
            yield update.SerializeToString()

    def prefixes(self, sequence: int) -> Iterator[bytes]:
        """All that is known of what endpoints have cached, in parts, least recently used first; for a follower that has
        had the batch of this number."""
        for endpoint in self.index.endpoints():
            blocks = self.index.blocks(endpoint)
            for begin in range(0, len(blocks), _BLOCKS_A_PART):
                # As of a prompt: the listener takes the last block first.
                part = blocks[begin : begin + _BLOCKS_A_PART][::-1]
                update = self._update(sequence)
                update.sent.add(endpoint=endpoint, block_bytes=self.index.settings.block_bytes, blocks=part)
                yield update.SerializeToString()

    def _forget(self) -> None:
        """Keep nothing: who comes, or follows, needs the account as a whole."""
        self._changes.clear()
        self._sent.clear()
        self._failed.clear()
        self._batches.clear()
        self._size = 0

    def _update(self, sequence: int) -> messages.Update:
        return messages.Update(replica=self.replica, name=self.name, sequence=sequence, made_at=self.clock())

    def _describe(self, told: messages.Started, entry: InFlight, now: float) -> None:
        told.number, told.request_id, told.endpoint = entry.number, entry.request_id, entry.endpoint
        if entry.picked_for != entry.endpoint:
            told.picked_for = entry.picked_for
        told.model, told.bytes, told.tokens = entry.model, entry.size, max(0, entry.tokens)
        told.output_tokens = max(0, entry.output_tokens)
        told.age_seconds = max(0.0, now - entry.started_at)
        if entry.elsewhere:
            told.elsewhere = True
            if entry.pick is not None:
                told.pick_replica, told.pick_number = entry.pick
        asked = entry.asked
        if asked.model != entry.model:
            told.asked_model = asked.model
        if asked.slo_ttft_ms is not None:
            told.slo_ttft_ms = asked.slo_ttft_ms
        if asked.slo_tpot_ms is not None:
            told.slo_tpot_ms = asked.slo_tpot_ms
        if entry.flow:
            told.flow = entry.flow
        if entry.priority:
            told.priority = entry.priority
