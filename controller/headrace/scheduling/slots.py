"""Sets of endpoints as integers: an endpoint has a slot, a small number, and is in the set where that bit is 1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from random import Random


class Slots:
    """Which endpoint has which slot. An endpoint keeps its slot until all who have taken it have released it; then the
    slot is given to another. `of` has the slots by endpoint key; it is not to be changed by the reader."""

    def __init__(self) -> None:
        self.of: dict[str, int] = {}
        self._holders: dict[str, int] = {}
        self._free: list[int] = []
        self._shown = False

    def take(self, key: str) -> int:
        """The slot of an endpoint, a new one where it has none."""
        slot = self.of.get(key)
        if slot is None:
            self._own()
            slot = self.of[key] = self._free.pop() if self._free else len(self.of)
        self._holders[key] = self._holders.get(key, 0) + 1
        return slot

    def release(self, key: str) -> None:
        """One of those who have taken an endpoint's slot needs it no more."""
        self._holders[key] -= 1
        if not self._holders[key]:
            self._own()
            del self._holders[key]
            self._free.append(self.of.pop(key))

    def shown(self) -> Mapping[str, int]:
        """`of`, for those who keep it: it stays as it is, whatever happens to the endpoints."""
        self._shown = True
        return self.of

    def _own(self) -> None:
        if self._shown:
            self.of, self._shown = self.of.copy(), False


class Matches(Mapping[str, int]):
    """How many blocks endpoints have in common with a prompt, by key: `groups` are such numbers, and the sets of the
    endpoints that have so many. No endpoint is in two of them."""

    __slots__ = ("groups", "slots")

    def __init__(self, groups: list[tuple[int, int]], slots: Mapping[str, int]) -> None:
        self.groups = groups
        self.slots = slots

    def __getitem__(self, key: str) -> int:
        bit = 1 << self.slots[key]
        for length, members in self.groups:
            if members & bit:
                return length
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        union = 0
        for _, members in self.groups:
            union |= members
        return (key for key, slot in self.slots.items() if union >> slot & 1)

    def __len__(self) -> int:
        return sum(members.bit_count() for _, members in self.groups)

    def __bool__(self) -> bool:
        return bool(self.groups)

    def one_by_one(self) -> dict[str, int]:
        """The same as a dictionary, for those who ask for every endpoint."""
        found: dict[str, int] = {}
        for length, members in self.groups:
            for key, slot in self.slots.items():
                if members >> slot & 1:
                    found[key] = length
        return found


def any_of(members: int, rng: Random) -> int:
    """The slot of one endpoint of a set that has some, each as likely. Without a choice `rng` is not asked."""
    count = members.bit_count()
    at = int(rng.random() * count) if count > 1 else 0
    # The half that has it, again and again: a pool may have a thousand endpoints, all alike.
    begin, width = 0, members.bit_length()
    while width > 1:
        width = (width + 1) // 2
        low = members & ((1 << width) - 1)
        below = low.bit_count()
        if at < below:
            members = low
        else:
            at -= below
            members >>= width
            begin += width
    return begin
