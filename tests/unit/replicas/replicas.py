"""Replicas of one picker without a network: their books, and links between them that the test works."""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace.core import Endpoint, Request
from headrace.datalayer.ledger import InFlight, Ledger
from headrace.datalayer.store import EndpointStore
from headrace.prefixes.approximate import PrefixIndex
from headrace.replicas.journal import KEPT_BYTES, FellBehind, Journal
from headrace.replicas.peer_accounts import OutOfStep, PeerAccounts, read_update
from headrace.scheduling import PrefixSettings

KEYS = tuple(f"10.0.0.{n}:8000" for n in range(1, 4))


class Clock:
    """A clock that the test sets; all replicas' own, though each may have another zero."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def endpoints(*keys: str) -> list[Endpoint]:
    return [
        Endpoint(namespace="n", pod_name=f"pod-{key}", address=key.partition(":")[0], port=8000) for key in keys or KEYS
    ]


@dataclass(slots=True)
class Link:
    """One replica's stream to another: how far it has come. None: it is to begin with the account as a whole."""

    sequence: int | None = None


class Replica:
    """One replica's books."""

    def __init__(self, name: str, clock: Clock, *, keys: tuple[str, ...] = KEYS, kept_bytes: int = KEPT_BYTES) -> None:
        self.name = name
        self.clock = clock
        self.store = EndpointStore()
        self.index = PrefixIndex(PrefixSettings())
        self.journal = Journal(name, self.index, clock=clock, name=name, kept_bytes=kept_bytes)
        self.ledger = Ledger(self.store, [self.journal])
        self.ledger.expect_observers()
        self.peers = PeerAccounts(self.store, self.ledger, self.index, me=name, clock=clock)
        self.links: dict[str, Link] = {}
        # How often it had to begin anew with another's account.
        self.anew = 0
        self.set_endpoints(*keys)

    def set_endpoints(self, *keys: str) -> None:
        came, gone = self.store.replace(endpoints(*keys))
        for endpoint in gone:
            self.index.remove(endpoint.key)
        for endpoint in came:
            self.index.add(endpoint.key)
            self.peers.add(endpoint.key)

    def pick(self, request_id: str, key: str = KEYS[0], **more: object) -> InFlight:
        fields: dict[str, object] = {"attached": False, "tokens": 10, **more}
        return self.ledger.start(Request(request_id, model="model", body_size=100), key, self.clock(), **fields)  # type: ignore[arg-type]

    def counts(self) -> dict[str, tuple[int, int, int]]:
        """Of each endpoint requests, bytes and tokens, of all replicas."""
        return {r.endpoint.key: (r.in_flight, r.in_flight_bytes, r.in_flight_tokens) for r in self.store.records()}

    def follow(self, other: Replica) -> None:
        """Begin a stream: the other one's account as a whole comes first."""
        if other.name not in self.links:
            other.journal.joined()
        self.links[other.name] = Link()

    def cut_off(self, other: Replica) -> None:
        """The stream breaks."""
        if self.links.pop(other.name, None) is not None:
            other.journal.left()

    def hear(self, other: Replica, batches: int = 1_000_000) -> None:
        """Take so many messages of what the other one tells."""
        link = self.links.get(other.name)
        if link is None:
            return
        other.journal.cut()
        for _ in range(batches):
            try:
                if link.sequence is None:
                    link.sequence, parts = other.journal.account(other.ledger.own())
                    for raw in parts:
                        self.peers.receive(read_update(raw))
                elif (raw := other.journal.after(link.sequence)) is not None:
                    self.peers.receive(read_update(raw))
                    link.sequence += 1
                else:
                    self.peers.receive(read_update(other.journal.sign_of_life()))
                    return
            except (FellBehind, OutOfStep):
                link.sequence = None
                self.anew += 1


@dataclass
class Fleet:
    """Replicas that all follow each other."""

    clock: Clock = field(default_factory=Clock)
    replicas: list[Replica] = field(default_factory=list)

    @classmethod
    def of(cls, count: int, **more: int) -> Fleet:
        fleet = cls()
        fleet.replicas = [Replica(f"replica-{n}", fleet.clock, **more) for n in range(count)]  # type: ignore[arg-type]
        for replica in fleet.replicas:
            for other in fleet.others(replica):
                replica.follow(other)
        fleet.settle()
        return fleet

    def others(self, replica: Replica) -> list[Replica]:
        return [other for other in self.replicas if other is not replica]

    def settle(self, rounds: int = 3) -> None:
        """Until everybody has heard everything: a hand-over takes a round to be answered."""
        for _ in range(rounds):
            for replica in self.replicas:
                for other in self.others(replica):
                    replica.hear(other)
