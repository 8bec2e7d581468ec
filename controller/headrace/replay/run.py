"""One run: a trace, a policy and a fleet, from event to event in virtual time."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random

from headrace.replay.fleet import FleetSettings, Server, servers_of
from headrace.replay.policies import Policy, policy_of
from headrace.replay.traces import Arrival
from headrace.simulator.request import Phase
from headrace.simulator.request import Sequence as EngineSequence

# Between two pages of a server, as the picker reads those of servers in use.
_PAGE_SECONDS = 0.2
# From the pick to the server.
_ON_THE_WAY = 0.001

# Kinds of events.
_ARRIVES, _REACHES, _STEP, _PAGE = range(4)


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's end. Seconds are counted from its arrival; `server` is its number."""

    number: int
    at: float
    server: int
    first_token: float
    whole: float
    output_tokens: int
    cached_tokens: int
    input_tokens: int

    @property
    def per_token(self) -> float:
        """Seconds for each token after the first."""
        return (self.whole - self.first_token) / max(1, self.output_tokens - 1)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to. `refused` were given no server. `seconds` is the trace's virtual time."""

    answers: Sequence[Answer]
    refused: int
    seconds: float


@dataclass(eq=False)
class _Run:
    arrivals: Sequence[Arrival]
    servers: Sequence[Server]
    # Of the run's clock.
    make_policy: Callable[[Callable[[], float]], Policy]
    now: float = 0.0
    _events: list[tuple[float, int, int, int]] = field(default_factory=list)
    _order: count[int] = field(default_factory=count)
    _answers: list[Answer] = field(default_factory=list)
    _numbers: dict[EngineSequence, int] = field(default_factory=dict)
    _refused: int = 0

    def __post_init__(self) -> None:
        self.policy = self.make_policy(lambda: self.now)

    def at(self, when: float, kind: int, which: int) -> None:
        heapq.heappush(self._events, (when, next(self._order), kind, which))

    def run(self) -> Outcome:
        arrivals = self.arrivals
        for server in self.servers:
            self.at(_PAGE_SECONDS * server.number / len(self.servers), _PAGE, server.number)
        self.at(arrivals[0].at, _ARRIVES, 0)
        sent: dict[int, int] = {}
        over = 0
        while over < len(arrivals):
            self.now, _, kind, which = heapq.heappop(self._events)
            if kind == _ARRIVES:
                if which + 1 < len(arrivals):
                    self.at(arrivals[which + 1].at, _ARRIVES, which + 1)
                picked = self.policy.pick(which, arrivals[which])
                if picked is None:
                    self._refused += 1
                    over += 1
                else:
                    sent[which] = picked
                    self.at(self.now + _ON_THE_WAY, _REACHES, which)
            elif kind == _REACHES:
                server = self.servers[sent.pop(which)]
                self._numbers[server.add(arrivals[which], self.now)] = which
                self._next(server, server.start(self.now))
            elif kind == _STEP:
                over += self._step(self.servers[which])
            else:
                self.policy.scraped(self.servers[which])
                self.at(self.now + _PAGE_SECONDS, _PAGE, which)
        return Outcome(self._answers, self._refused, self.now - arrivals[0].at)

    def _next(self, server: Server, due: float | None) -> None:
        if due is not None:
            self.at(due, _STEP, server.number)

    def _step(self, server: Server) -> int:
        """A step has ended. Gives how many requests have ended with it."""
        report, due = server.step(self.now)
        self._next(server, due)
        over = 0
        for sequence in report.generated:
            if sequence.num_output_tokens == 1:
                self.policy.first_token(self._numbers[sequence])
            if sequence.phase is Phase.FINISHED:
                over += 1
                self._over(server, sequence)
        return over

    def _over(self, server: Server, sequence: EngineSequence) -> None:
        number = self._numbers.pop(sequence)
        began, first = self.arrivals[number].at, sequence.first_token_at
        assert first is not None
        tokens, cached = sequence.num_output_tokens, sequence.num_prefix_hits
        times = (first - began, self.now - began)
        self._answers.append(Answer(number, began, server.number, *times, tokens, cached, len(sequence.prompt)))
        self.policy.finished(number)


def replay(
    arrivals: Sequence[Arrival], policy: str, fleet: FleetSettings, *, seed: int = 0, bodies: bool = False
) -> Outcome:
    """Replay requests by a policy: see `policies`. Raises CannotReplay, and InvalidConfig."""
    servers = servers_of(fleet)
    return _Run(arrivals, servers, lambda clock: policy_of(policy, servers, clock, Random(seed), bodies=bodies)).run()
