"""Which models of the pool are adapters, as its servers report them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from itertools import islice

from headrace.scheduling import EndpointState, Facts


class AdapterNames:
    """The names that the pool's present servers report as adapters', up to `most` of them. A data producer."""

    def __init__(self, most: int = 16_384) -> None:
        # All of them, as they are now. Not to be changed by the reader.
        self.names: Set[str] = set()
        self._most = most
        # How many servers report each name; and of each server what it reported, and what of it is counted.
        self._servers: Counter[str] = Counter()
        self._reported: dict[str, tuple[frozenset[str], frozenset[str]]] = {}

    def report(self, key: str, names: frozenset[str]) -> None:
        """A server reports these and no others; none of them once it is gone."""
        reported, counted = self._reported.get(key, (frozenset(), frozenset()))
        if names == reported:
            return
        for name in counted - names:
            self._servers[name] -= 1
            if not self._servers[name]:
                del self._servers[name]
        room = self._most - len(self._servers)
        new = frozenset(islice((name for name in names if name not in self._servers), max(0, room)))
        kept = new | (names & self._servers.keys())
        self._servers.update(kept - counted)
        # A set: `state` intersects with it at each decision, which is slower with a dictionary's keys.
        self.names = set(self._servers)
        if names:
            self._reported[key] = (names, kept)
        else:
            self._reported.pop(key, None)

    def prepare(self, facts: Facts, states: Sequence[EndpointState]) -> None:
        """Whether the request's model is an adapter."""
        facts.is_adapter = facts.request.model in self.names
