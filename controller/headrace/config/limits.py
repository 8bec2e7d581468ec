"""How much of what strangers send may be held, and read without a turn for others.

Every reader of foreign bytes has a budget: bytes of one item, and bytes of all items together, which derive from the
memory that the process may use. What takes long is done in steps of at most STEP_BYTES and STEP_ITEMS, with a turn for
other work between: about 2 ms of CPU each."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

STEP_BYTES = 32 << 10
# Brackets, strings, numbers: what costs a step of Python.
STEP_ITEMS = 2048
# An item up to this size may use all of a budget, a longer one three quarters: what is large cannot lock out the rest.
SMALL_BYTES = 64 << 10

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Bytes of one item, and of all items that are held at a time."""

    item_bytes: int
    total_bytes: int


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a process may hold. `memory` is what it may use in all, in bytes; `source` says where that is from."""

    memory: int
    source: str
    # Requests' bodies: the rest of the process, and copies on their way out, have to fit beside them.
    bodies: Budget
    # What is kept of responses until their usage is read.
    responses: Budget
    # Messages of gateways that are not complete, and answers that gateways have not taken: twice this is never held.
    messages: int
    # What is kept of servers' metrics pages while they are read.
    pages: Budget
    # Messages of KV cache events that wait to be read.
    kv_messages: Budget


def limits(memory: int, source: str = "") -> Limits:
    """The budgets of a process that may use so many bytes."""
    share = memory // 16
    least = max(1 << 20, share)
    return Limits(
        memory=memory,
        source=source,
        bodies=shared(memory // 4),
        responses=Budget(item_bytes=256 << 10, total_bytes=least),
        messages=share,
        pages=Budget(item_bytes=512 << 10, total_bytes=least),
        kv_messages=Budget(item_bytes=1 << 20, total_bytes=least),
    )


def shared(total: int) -> Budget:
    """A budget of which one item may have as much as all large ones together."""
    return Budget(item_bytes=large_share(total), total_bytes=total)


def own_limits(root: Path = _CGROUPS, own: Path = _OWN_CGROUP, machine: int | None = None) -> Limits:
    """The budgets of this process: by its control group's memory limit, else by half of the machine's memory.

    `root` is where control groups are mounted, `own` names ours; `machine` is the machine's memory in bytes."""
    machine = machine or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _cgroup_limit(root, own)
    if limit is not None and limit < machine:
        return limits(limit, "the control group's limit")
    return limits(machine // 2, "half of the machine's memory")


def _cgroup_limit(root: Path, own: Path) -> int | None:
    """The least memory limit of our control group and those around it, version 1 or 2; None where there is none.

    In a container our group is often mounted as the root, under a path that is only known outside."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    places = [(root, "memory.max", ""), (root / "memory", "memory.limit_in_bytes", "")]
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            places.append((root, "memory.max", path))
        elif "memory" in controllers.split(","):
            places.append((root / "memory", "memory.limit_in_bytes", path))
    found = []
    for mount, name, path in places:
        group = mount / path.lstrip("/")
        groups = [group, *(parent for parent in group.parents if parent.is_relative_to(mount))]
        found += [limit for each in groups if (limit := _read_limit(each / name)) is not None]
    return min(found, default=None)


def _read_limit(file: Path) -> int | None:
    """The limit in a file; None where it says "max", or cannot be read."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 and int(text) else None


def large_share(total: int) -> int:
    """What large items together may use of a budget of all."""
    return total - total // 4


class ByteBudget:
    """Counts the bytes that are held of one kind, by all who hold some. Belongs to one event loop."""

    __slots__ = ("held", "large", "most", "small")

    def __init__(self, most: int, *, small: int = SMALL_BYTES) -> None:
        self.most = most
        self.held = 0
        # Items of up to `small` bytes may be among `most`, larger ones among `large`.
        self.small = small
        self.large = large_share(most)

    def open(self) -> Held:
        """The account of one item, with nothing in it."""
        return Held(self)


class Held:
    """What one item has of a budget. `release` must be called when it is over, in whatever way."""

    __slots__ = ("_budget", "size")

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.size = 0

    def add(self, count: int) -> bool:
        """Hold so many bytes more. False where there is no room: then nothing more is held."""
        budget, size = self._budget, self.size + count
        if budget.held + count > (budget.most if size <= budget.small else budget.large):
            return False
        budget.held += count
        self.size = size
        return True

    def hold(self, size: int) -> bool:
        """Hold so many bytes, in place of what was held. False where there is no room for more."""
        if size > self.size:
            return self.add(size - self.size)
        self._budget.held -= self.size - size
        self.size = size
        return True

    def release(self) -> None:
        """Hold nothing any more. May be called again."""
        self._budget.held -= self.size
        self.size = 0
