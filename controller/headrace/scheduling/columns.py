"""The states of a pool's endpoints, kept in step with what changes, and grouped by what scores are made of: so that a
pick among a thousand endpoints need not look at each."""

from __future__ import annotations

from bisect import bisect_left, insort

from headrace.scheduling.facts import EndpointState
from headrace.scheduling.slots import Slots


class Bucket:
    """The endpoints with equally many requests waiting, as sets by the free share of their KV cache: `free` has those
    shares in ascending order, `sets` the set of each."""

    __slots__ = ("free", "members", "sets")

    def __init__(self) -> None:
        self.free: list[float] = []
        self.sets: dict[float, int] = {}
        self.members = 0

    def add(self, bit: int, free: float) -> None:
        """An endpoint joins."""
        self.members |= bit
        found = self.sets.get(free)
        if found is None:
            insort(self.free, free)
            self.sets[free] = bit
        else:
            self.sets[free] = found | bit

    def remove(self, bit: int, free: float) -> None:
        """An endpoint leaves."""
        self.members &= ~bit
        left = self.sets[free] & ~bit
        if left:
            self.sets[free] = left
        else:
            del self.sets[free]
            del self.free[bisect_left(self.free, free)]


class Columns:
    """States by slot, and the buckets they are in, by requests waiting. `everybody` is the set of all endpoints."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.by_slot: dict[int, EndpointState] = {}
        self.buckets: dict[int, Bucket] = {}
        self.everybody = 0
        self._places: dict[int, tuple[int, float]] = {}

    def put(self, slot: int, state: EndpointState) -> None:
        """The state of an endpoint is this from now on."""
        self.by_slot[slot] = state
        free = 1.0 - state.kv_usage
        # As scores are: within 0 to 1, and what is no number is 0.
        place = (state.waiting, 0.0 if free < 0.0 or free != free else 1.0 if free > 1.0 else free)
        before = self._places.get(slot)
        if place == before:
            return
        bit = 1 << slot
        if before is None:
            self.everybody |= bit
        else:
            self._leave(bit, before)
        self._places[slot] = place
        bucket = self.buckets.get(place[0])
        if bucket is None:
            bucket = self.buckets[place[0]] = Bucket()
        bucket.add(bit, place[1])

    def remove(self, slot: int) -> None:
        """An endpoint has left the pool."""
        place = self._places.pop(slot, None)
        if place is not None:
            del self.by_slot[slot]
            self.everybody &= ~(1 << slot)
            self._leave(1 << slot, place)

    def _leave(self, bit: int, place: tuple[int, float]) -> None:
        bucket = self.buckets[place[0]]
        bucket.remove(bit, place[1])
        if not bucket.members:
            del self.buckets[place[0]]
