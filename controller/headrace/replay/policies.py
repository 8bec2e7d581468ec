"""Who chooses a server in a replay: the picker itself, by a configuration, or one of the simple policies beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any, Protocol

import xxhash

from headrace.core import Decision, FailureMode, Request
from headrace.epp.composition import Components
from headrace.epp.config_file import PickerConfig, load_config
from headrace.epp.metrics import Metrics
from headrace.extproc.events import PickNeeded
from headrace.replay.fleet import Server
from headrace.replay.traces import BLOCK_TOKENS, Arrival
from headrace.scheduling.tokens import BYTES_A_TOKEN

_MODEL = "model"
# Blocks of a prompt that tell one conversation from another.
_SESSION_BLOCKS = 3


class CannotReplay(ValueError):  # noqa: N818
    """A policy that a replay cannot follow. The message names policy and fix."""


class Policy(Protocol):
    """Chooses servers by their number. Sees what a picker would see, and is told what a picker would be told."""

    def pick(self, number: int, arrival: Arrival) -> int | None:
        """The server for a request, which has this number; None: it is refused."""

    def first_token(self, number: int) -> None:
        """The first piece of a request's answer went by."""

    def finished(self, number: int) -> None:
        """A request is over."""

    def scraped(self, server: Server) -> None:
        """A server's page was read."""


@dataclass(eq=False)
class Simple:
    """Knows how many requests are in flight at each server, and nothing else."""

    servers: Sequence[Server]
    choose: Callable[[Simple, Arrival], int]
    rng: Random

    def __post_init__(self) -> None:
        self.in_flight = [0] * len(self.servers)
        self.turn = -1
        self._at: dict[int, int] = {}

    def pick(self, number: int, arrival: Arrival) -> int:
        """See Policy."""
        server = self._at[number] = self.choose(self, arrival)
        self.in_flight[server] += 1
        return server

    def first_token(self, number: int) -> None:
        """Nothing follows from it."""

    def finished(self, number: int) -> None:
        """See Policy."""
        self.in_flight[self._at.pop(number)] -= 1

    def scraped(self, server: Server) -> None:
        """Nothing follows from it."""


def _round_robin(policy: Simple, _: Arrival) -> int:
    policy.turn = (policy.turn + 1) % len(policy.servers)
    return policy.turn


def _random(policy: Simple, _: Arrival) -> int:
    return policy.rng.randrange(len(policy.servers))


def _least(policy: Simple, among: Sequence[int]) -> int:
    fewest = min(policy.in_flight[server] for server in among)
    return policy.rng.choice([server for server in among if policy.in_flight[server] == fewest])


def _least_request(policy: Simple, _: Arrival) -> int:
    return _least(policy, range(len(policy.servers)))


def _power_of_two(policy: Simple, _: Arrival) -> int:
    count = len(policy.servers)
    return _least(policy, policy.rng.sample(range(count), min(2, count)))


def _consistent_hash(policy: Simple, arrival: Arrival) -> int:
    """By conversation: highest random weight."""
    session = repr((arrival.adapter, arrival.blocks[:_SESSION_BLOCKS]))
    return max(range(len(policy.servers)), key=lambda server: xxhash.xxh3_64_intdigest(f"{server} {session}"))


def _knowing(policy: Simple, arrival: Arrival) -> int:
    """Reads the servers' own state and constants, which no picker can. What others are measured by."""
    waits = [server.seconds_to_first_token(arrival) for server in policy.servers]
    return min(range(len(waits)), key=waits.__getitem__)


SIMPLE: dict[str, Callable[[Simple, Arrival], int]] = {
    "round-robin": _round_robin,
    "random": _random,
    "power-of-two": _power_of_two,
    "least-request": _least_request,
    "consistent-hash": _consistent_hash,
    "knowing": _knowing,
}
# The picker without a file.
BUILT_IN = "built-in"


class Picker:
    """The picker, from the Director down. `bodies`: it sees the pieces of answers, and so their first one."""

    def __init__(
        self,
        config: PickerConfig,
        servers: Sequence[Server],
        clock: Callable[[], float],
        rng: Random,
        *,
        bodies: bool,
    ) -> None:
        if config.flow_control.enabled:
            raise CannotReplay("a configuration with flowControl makes requests wait, which a replay does not; drop it")
        if config.kv_events is not None:
            raise CannotReplay("a replay has no KV events; drop precise-prefix-cache-producer")
        self._parts = Components(
            config=config.scheduling,
            flow_control=config.flow_control,
            metrics=Metrics("replay"),
            clock=clock,
            rng=rng,
            pick_deadline=1.0,
            decisions_kept=1,
        )
        self._clock, self._bodies = clock, bodies
        self._numbers = {server.endpoint.key: server.number for server in servers}
        self._open: dict[int, Any] = {}
        self._parts.pool.endpoints_changed(tuple(server.endpoint for server in servers), FailureMode.CLOSE)

    def pick(self, number: int, arrival: Arrival) -> int | None:
        """See Policy."""
        prompt = prompt_of(arrival)
        request = Request(
            str(number),
            method="POST",
            path="/v1/completions",
            model=arrival.adapter or _MODEL,
            prompt=prompt,
            body_size=len(prompt),
            streaming=True,
        )
        pick = self._parts.director.decide_at_once(PickNeeded(request, covers_response=False))
        if pick is None:
            raise CannotReplay("a pick waits for something; a replay follows only what picks at once")
        if not isinstance(pick.answer, Decision):
            return None
        key = pick.answer.endpoints[0]
        entry = self._parts.pool.observed(request.request_id, key)
        if entry is not None:
            self._parts.pool.answered(entry, key, 200)
            self._open[number] = entry
        return self._numbers[key]

    def first_token(self, number: int) -> None:
        """See Policy."""
        if self._bodies:
            self._parts.pool.first_token(self._open[number])

    def finished(self, number: int) -> None:
        """See Policy."""
        self._parts.pool.finished(self._open.pop(number))

    def scraped(self, server: Server) -> None:
        """See Policy."""
        record = self._parts.pool.store.get(server.endpoint.key)
        assert record is not None
        record.scraped(server.metrics(), self._clock())
        self._parts.pool.scraped(record)


@lru_cache(maxsize=1 << 16)
def _block_text(block: int) -> bytes:
    return f"{block & 0xFFFFFFFF:08x}".encode() * (BLOCK_TOKENS * BYTES_A_TOKEN // 8)


def prompt_of(arrival: Arrival) -> bytes:
    """The text of a prompt: equal blocks, equal text."""
    return b"".join(map(_block_text, arrival.blocks))[: arrival.input_tokens * BYTES_A_TOKEN]


def read_policy(name: str) -> PickerConfig | None:
    """The configuration that a policy's name stands for: `built-in`, or a file; None for a simple one.

    Raises CannotReplay, and InvalidConfig."""
    if name in SIMPLE:
        return None
    if name == BUILT_IN:
        return PickerConfig()
    path = Path(name)
    if not path.is_file():
        raise CannotReplay(
            f"--policy {name}: no such file; give an EndpointPickerConfig's, or one of {BUILT_IN}, {', '.join(SIMPLE)}"
        )
    return load_config(path)


def policy_of(
    name: str, servers: Sequence[Server], clock: Callable[[], float], rng: Random, *, bodies: bool = False
) -> Policy:
    """The policy of this name. Raises CannotReplay, and InvalidConfig."""
    config = read_policy(name)
    if config is None:
        return Simple(servers, SIMPLE[name], rng)
    return Picker(config, servers, clock, rng, bodies=bodies)
