"""Data producers: what prepares attributes of a request and of the endpoints before scheduling, as the reference
picker's PrepareData plugins do. A producer implements `Producer`, and of the other protocols those that it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

from headrace.core import Request
from headrace.scheduling.facts import EndpointState, Facts


@runtime_checkable
class Producer(Protocol):
    """Prepares what filters and scorers go by."""

    def prepare(self, facts: Facts, states: Sequence[EndpointState]) -> None:
        """Adds what it knows to `facts`. Called for each pick, after the producers before it: no I/O, no waiting."""


@runtime_checkable
class LearnsPicks(Protocol):
    """A producer that learns from picks."""

    def picked(self, state: EndpointState, facts: Facts) -> None:
        """The request of these facts goes to this endpoint."""


@runtime_checkable
class FollowsEndpoints(Protocol):
    """Keeps something for each endpoint of the pool."""

    def add(self, key: str) -> None:
        """An endpoint joins the pool."""

    def remove(self, key: str) -> None:
        """An endpoint leaves it; its address may be given to another."""


class RequestProducer(Protocol):
    """Prepares a request before it is admitted. It may wait, within a bound of its own."""

    async def prepare_request(self, request: Request) -> Request:
        """The request with what is known of it now. Raises nothing."""


class Producers:
    """The producers in use: `built_in` always, others as the configuration names them."""

    def __init__(self, built_in: Sequence[Producer], configured: Iterable[object] = ()) -> None:
        self._built_in = tuple(built_in)
        self._keys: dict[str, None] = {}
        self._all: tuple[Producer, ...] = ()
        self.configure(configured)

    def configure(self, plugins: Iterable[object]) -> None:
        """Use the producers among these plugins from now on, in place of those configured before."""
        before = set(map(id, self._all))
        configured = tuple(plugin for plugin in plugins if isinstance(plugin, Producer))
        self._all = self._built_in + configured
        # Bound once: these are called for each pick.
        self._prepare = [producer.prepare for producer in self._built_in]
        self._prepare_configured = [producer.prepare for producer in configured]
        self._picked = [producer.picked for producer in self._all if isinstance(producer, LearnsPicks)]
        for producer in self._all:
            if isinstance(producer, FollowsEndpoints) and id(producer) not in before:
                for key in self._keys:
                    producer.add(key)

    def prepare(self, facts: Facts, states: Callable[[], Sequence[EndpointState]]) -> None:
        """Prepare a request's facts. Those that are built in do not look at the states."""
        for prepare in self._prepare:
            prepare(facts, ())
        if self._prepare_configured:
            known = states()
            for prepare in self._prepare_configured:
                prepare(facts, known)

    def picked(self, state: EndpointState, facts: Facts) -> None:
        """The request of these facts goes to this endpoint."""
        for picked in self._picked:
            picked(state, facts)

    def add(self, key: str) -> None:
        """An endpoint joins the pool."""
        self._keys[key] = None
        for producer in self._all:
            if isinstance(producer, FollowsEndpoints):
                producer.add(key)

    def remove(self, key: str) -> None:
        """An endpoint leaves it."""
        self._keys.pop(key, None)
        for producer in self._all:
            if isinstance(producer, FollowsEndpoints):
                producer.remove(key)
