"""A limit of memory on a process, as a Pod's: by a control group, where this machine lets us make one."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryGroup:
    """`prefix` goes before the command of a process that is to be in the group."""

    path: Path
    peak_file: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """A shell that joins the group and becomes the command."""
        return ("sh", "-c", f'echo $$ > {self.path}/cgroup.procs && exec "$@"', "sh")

    def peak(self) -> int:
        """The most bytes that its processes had at a time."""
        return int((self.path / self.peak_file).read_text())


def resident(pid: int) -> int:
    """The bytes of memory that a process has."""
    line = next(one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("VmRSS"))
    return int(line.split()[1]) << 10


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[MemoryGroup]:
    """A group of at most `limit` bytes, swap included. Skips the test where none can be made.

    Every process of it must have ended when the block does."""
    v1 = _ROOT / "memory"
    root = v1 if v1.is_dir() else _ROOT
    path = root / f"headrace-test-{os.getpid()}-{time.monotonic_ns()}"
    limits = (
        {"memory.limit_in_bytes": limit, "memory.memsw.limit_in_bytes": limit}
        if root == v1
        else {"memory.max": limit, "memory.swap.max": 0}
    )
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        for number, (name, value) in enumerate(limits.items()):
            try:
                (path / name).write_text(str(value))
            except OSError as error:
                # Swap is not accounted for everywhere.
                if not number:
                    pytest.skip(f"no limit of memory can be set here: {error}")
        yield MemoryGroup(path, "memory.max_usage_in_bytes" if root == v1 else "memory.peak")
    finally:
        for _ in range(100):
            try:
                path.rmdir()
                break
            except OSError:
                time.sleep(0.05)
