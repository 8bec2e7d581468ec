"""Which requests are taken for ones that kill servers, and for how long."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from headrace.core import Endpoint, RefusalReason, Request
from headrace.datalayer.killers import Killers
from headrace.datalayer.ledger import InFlight, Ledger
from headrace.datalayer.pool_state import PoolState
from headrace.datalayer.store import EndpointStore

SERVERS = [f"10.0.0.{at}:8000" for at in range(1, 9)]
KILLER, OTHER = b"kill", b"harmless"


@dataclass
class World:
    """A pool and its killers, on a clock of the test's."""

    now: float = 100.0
    numbers: int = 0
    store: EndpointStore = field(default_factory=EndpointStore)

    def __post_init__(self) -> None:
        self.killers = Killers(lambda: self.now)
        self.pool = PoolState(
            self.store,
            Ledger(self.store),
            clock=lambda: self.now,
            followers=[self.killers],
            observers=[self.killers],
        )
        self.set_servers(SERVERS)

    def set_servers(self, keys: list[str]) -> None:
        split = (key.split(":") for key in keys)
        endpoints = tuple(Endpoint("n", address, address, int(port)) for address, port in split)
        self.pool.endpoints_changed(endpoints, self.pool.failure_mode)

    def send(self, prompt: bytes, server: str) -> InFlight:
        self.now += 0.01
        self.numbers += 1
        return self.pool.started(request(prompt, str(self.numbers)), server, attached=False)

    def fails(self, entry: InFlight, status: int = 503) -> None:
        self.pool.answered(entry, entry.endpoint, status)
        self.pool.finished(entry)

    def page(self, server: str, *, refused: bool | None = None) -> None:
        record = self.store.get(server)
        assert record is not None
        if refused is None:
            record.scraped_at = self.now
            self.killers.scraped(record)
        else:
            self.killers.scrape_failed(record, refused)

    def kill(self, server: str, prompt: bytes = KILLER) -> None:
        """The server takes a request and dies of it."""
        self.fails(self.send(prompt, server))
        self.page(server, refused=True)

    def refuses(self, prompt: bytes = KILLER) -> bool:
        return self.killers.refusal(request(prompt, "asked")) is not None


def request(prompt: bytes, name: str) -> Request:
    return Request(name, prompt=prompt)


def test_one_that_two_servers_died_of_is_refused_for_a_minute() -> None:
    w = World()
    w.kill(SERVERS[0])
    assert not w.refuses()
    w.kill(SERVERS[1])
    refusal = w.killers.refusal(request(KILLER, "x"))
    assert refusal is not None
    assert (refusal.status, refusal.reason) == (503, RefusalReason.KILLS_SERVERS)
    assert not w.refuses(OTHER)
    w.now += 59.0
    assert w.refuses()
    w.now += 2.0
    assert not w.refuses()


def test_asked_again_at_once_it_does_not_wait_for_the_port_to_be_asked() -> None:
    w = World()
    w.fails(w.send(KILLER, SERVERS[0]))
    w.fails(w.send(KILLER, SERVERS[1]))
    assert w.refuses()
    # They live: it was something else.
    w.now += 0.1
    w.page(SERVERS[0])
    assert not w.refuses()


def test_failures_of_servers_that_live_are_forgotten() -> None:
    w = World()
    for server in SERVERS[:4]:
        w.fails(w.send(KILLER, server))
    w.now += 3.0
    assert not w.refuses()
    w.page(SERVERS[0], refused=True)
    assert not w.refuses(), "refused long after"


def test_of_several_the_newest_is_the_suspect_in_whatever_order_they_are_told() -> None:
    for order in (1, -1):
        w = World()
        for server in SERVERS[:2]:
            entries = [w.send(prompt, server) for prompt in (OTHER, KILLER)]
            for entry in entries[::order]:
                w.fails(entry)
            w.page(server, refused=True)
        assert w.refuses()
        assert not w.refuses(OTHER)


def test_what_is_told_after_the_port_was_asked_counts_too() -> None:
    w = World()
    for server in SERVERS[:2]:
        entries = [w.send(prompt, server) for prompt in (OTHER, KILLER)]
        w.fails(entries[0])
        w.page(server, refused=True)
        w.fails(entries[1])
    assert w.refuses()
    assert not w.refuses(OTHER)


def test_a_dead_server_does_not_die_of_what_is_sent_there_later() -> None:
    w = World()
    w.kill(SERVERS[0], OTHER)
    w.kill(SERVERS[1], OTHER + b"2")
    w.now += 1.0
    for server in SERVERS[:2]:
        w.fails(w.send(KILLER, server))
        w.page(server, refused=True)
    assert not w.refuses()


def test_streams_that_end_with_their_server() -> None:
    """Their headers came before the server had looked at them."""
    w = World()
    for server in SERVERS[:2]:
        entry = w.send(KILLER, server)
        w.pool.answered(entry, server, 200, streaming=True)
        w.pool.finished(entry)
        w.page(server, refused=True)
    assert w.refuses()


def test_a_client_that_leaves_is_no_sign_of_a_death() -> None:
    w = World()
    for server in SERVERS[:3]:
        w.pool.finished(w.send(KILLER, server))
    assert not w.refuses()


def test_what_was_answered_well_is_no_suspect() -> None:
    w = World()
    w.kill(SERVERS[0])
    entry = w.send(KILLER, SERVERS[2])
    w.pool.answered(entry, entry.endpoint, 200)
    w.kill(SERVERS[1])
    assert not w.refuses()


def test_a_server_that_was_taken_away_has_not_died() -> None:
    w = World()
    w.fails(w.send(KILLER, SERVERS[0]))
    w.fails(w.send(KILLER, SERVERS[1]))
    w.set_servers(SERVERS[2:])
    assert not w.refuses()
    w.set_servers(SERVERS)
    w.kill(SERVERS[2])
    assert not w.refuses()


@pytest.mark.parametrize("status", [400, 404, 429])
def test_what_the_client_did_wrong_is_no_death(status: int) -> None:
    w = World()
    for server in SERVERS[:2]:
        w.fails(w.send(KILLER, server), status)
        w.page(server, refused=True)
    assert not w.refuses()


def test_a_server_that_came_back_can_die_again_but_is_one_server() -> None:
    w = World()
    for _ in range(3):
        w.kill(SERVERS[0])
        w.now += 5.0
        w.page(SERVERS[0])
    assert not w.refuses()
    w.kill(SERVERS[1])
    assert w.refuses()


def test_memory_is_bounded() -> None:
    w = World()
    for number in range(2_000):
        w.kill(SERVERS[number % 8], f"prompt {number}".encode())
        w.now += 0.1
        w.page(SERVERS[number % 8])
    assert 100 < len(w.killers._suspects) <= 256
    assert not w.killers._digests
    # What another replica observes, nobody ends here.
    w.pool.ledger.superseded(w.send(KILLER, SERVERS[0]))
    w.now += 61.0
    w.killers.expire()
    assert not w.killers._suspects
    assert not w.killers._digests
    assert not w.killers._deaths


def test_requests_without_a_prompt_are_not_told_apart() -> None:
    w = World()
    for server in SERVERS[:2]:
        w.kill(server, b"")
    assert not w.refuses(b"")
