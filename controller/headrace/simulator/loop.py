"""Runs the engine in an event loop: waits for its steps and hands the tokens to those who wait for them."""

from __future__ import annotations

import asyncio
import logging
import time
from array import array
from collections.abc import Callable
from typing import Protocol

from headrace.simulator.engine import Engine, StepReport
from headrace.simulator.request import FinishReason, Phase, Sequence

_logger = logging.getLogger(__name__)

# A step that the loop noticed late counts as ended on time, up to this many seconds: timers are late by a millisecond
# or so, which would otherwise be 10 % of every step. Beyond, the process itself was starved, and simulated time waits.
_CATCH_UP_SECONDS = 0.05


class EngineObserver(Protocol):
    """Sees what the engine does: the metrics."""

    def on_step(self, report: StepReport) -> None:
        """A step ended."""

    def on_finished(self, sequence: Sequence) -> None:
        """A sequence ended, for whatever reason but the next."""

    def on_left(self, sequence: Sequence) -> None:
        """A sequence ended because its client left."""


class Ticket:
    """One submitted sequence, and the tokens of it that its client has not seen."""

    __slots__ = ("_taken", "news", "sequence")

    def __init__(self, sequence: Sequence, news: asyncio.Event) -> None:
        self.sequence = sequence
        self.news = news
        """Set whenever there is something new; several tickets may share one."""
        self._taken = len(sequence.prompt)

    def take(self) -> array[int]:
        """The tokens written since the last call."""
        tokens = self.sequence.tokens[self._taken :]
        self._taken += len(tokens)
        return tokens

    @property
    def at_end(self) -> bool:
        """Whether all tokens are taken and no more will come."""
        return self.sequence.phase is Phase.FINISHED and self._taken == len(self.sequence.tokens)


class EngineLoop:
    """Owns the engine while `run` is active. All methods belong to the event loop's thread."""

    def __init__(self, engine: Engine, observer: EngineObserver, clock: Callable[[], float] = time.monotonic) -> None:
        self.engine = engine
        self._observer = observer
        self._clock = clock
        self._tickets: dict[Sequence, Ticket] = {}
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._going = asyncio.Event()
        self._going.set()

    @property
    def num_unfinished(self) -> int:
        """Sequences waiting or running."""
        return len(self._tickets)

    def submit(self, sequence: Sequence, news: asyncio.Event) -> Ticket:
        """Queue a sequence; `news` is set for each token and at the end. Raises ValueError when it is too long."""
        self.engine.add(sequence, self._clock())
        ticket = Ticket(sequence, news)
        self._tickets[sequence] = ticket
        self._idle.clear()
        self._work.set()
        return ticket

    def finish(self, ticket: Ticket, reason: FinishReason) -> None:
        """End a sequence early; nothing happens when it has ended already."""
        if self.engine.finish(ticket.sequence, reason, self._clock()):
            self._ended(ticket.sequence)

    def leave(self, ticket: Ticket) -> None:
        """End a sequence because its client left; nothing happens when it has ended already."""
        if self.engine.finish(ticket.sequence, FinishReason.ABORT, self._clock()):
            self._ended(ticket.sequence, left=True)

    def abort_all(self) -> None:
        """End every sequence as aborted: its client gets what there is."""
        for ticket in list(self._tickets.values()):
            self.finish(ticket, FinishReason.ABORT)

    def pause(self, paused: bool) -> None:
        """Stop the engine where it is, or let it go on."""
        if paused:
            self._going.clear()
        else:
            self._going.set()

    async def wait_idle(self) -> None:
        """Wait until no sequence is left."""
        await self._idle.wait()

    async def run(self) -> None:
        """Step the engine for ever. Every sequence left ends with `FinishReason.ERROR` when this does."""
        try:
            while True:
                await self._going.wait()
                await self._run_step()
        finally:
            for sequence in list(self._tickets):
                self.engine.finish(sequence, FinishReason.ERROR, self._clock())
                self._ended(sequence)

    async def _run_step(self) -> None:
        due = self.engine.due
        if due is None:
            if self.engine.idle:
                self._work.clear()
                await self._work.wait()
                await self._going.wait()
            self._step(self._clock())
            if self.engine.due is None and not self.engine.idle:
                raise RuntimeError(f"the engine has work but plans none: {self.engine.state()}; this is a bug")
            return
        # Also when it is late already: other tasks must run between steps. One sleep of 0 is one round of the loop.
        await asyncio.sleep(max(0.0, due - self._clock()))
        await self._going.wait()
        self._step(max(due, self._clock() - _CATCH_UP_SECONDS))

    def _step(self, now: float) -> None:
        report = self.engine.step(now)
        if report is None:
            return
        self._observer.on_step(report)
        for sequence in report.generated:
            ticket = self._tickets.get(sequence)
            if ticket is None:
                continue  # its client left while the step ran
            if sequence.phase is Phase.FINISHED:
                self._ended(sequence)
            else:
                ticket.news.set()

    def _ended(self, sequence: Sequence, *, left: bool = False) -> None:
        ticket = self._tickets.pop(sequence, None)
        if ticket is None:
            return
        if left:
            self._observer.on_left(sequence)
        else:
            self._observer.on_finished(sequence)
        ticket.news.set()
        if not self._tickets:
            self._idle.set()
