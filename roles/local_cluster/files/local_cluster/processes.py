"""Finding the nodes' first processes. By what /proc says and not by pid files, which lie after a crash."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# Where a node's processes look for programs.
PROGRAM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class NodeProcess:
    """A node's processes as the host sees them: pid 1 of the node, and `unshare`, its parent, outside."""

    init: int | None
    outer: int | None


def arguments(node_directory: Path) -> list[str]:
    """The last arguments of a node's first process. They are what it is known by."""
    return ["init", "--node", str(node_directory)]


def owner(namespace: Path) -> Path | None:
    """The state folder of the cluster whose node runs in that network namespace, if one does."""
    if not namespace.exists():
        return None
    wanted = namespace.stat().st_ino
    for process in Path("/proc").iterdir():
        try:
            argv = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            if argv[-3:-1] == ["init", "--node"] and (process / "ns/net").stat().st_ino == wanted:
                return Path(argv[-1]).parents[1]
        except (NotADirectoryError, FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return None


def node_processes(state_dir: Path) -> dict[str, NodeProcess]:
    """The nodes of the cluster with that state folder that have a process, by name."""
    prefix = str(state_dir / "nodes") + "/"
    found: dict[str, NodeProcess] = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            argv = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            if len(argv) < 4 or argv[-3:-1] != ["init", "--node"] or not argv[-1].startswith(prefix):
                continue
            status = (process / "status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        name = argv[-1].removeprefix(prefix)
        seen_as = next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
        before = found.get(name, NodeProcess(None, None))
        if len(seen_as) > 1 and seen_as[-1] == "1":
            found[name] = NodeProcess(int(process.name), before.outer)
        elif len(seen_as) == 1:
            found[name] = NodeProcess(before.init, int(process.name))
    return found
