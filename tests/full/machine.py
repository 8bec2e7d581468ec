"""What a cluster could leave on a machine: a snapshot to compare before and after."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


def _lines(*command: str) -> frozenset[str]:
    return frozenset(subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines())


def _cgroups() -> frozenset[str]:
    root = Path("/sys/fs/cgroup")
    depth_two = [path for controller in root.iterdir() if controller.is_dir() for path in controller.iterdir()]
    return frozenset(str(path) for path in depth_two if path.is_dir())


def processes_that_name(word: str) -> dict[int, str]:
    """Process ids whose command line holds the word, with that command line."""
    found = {}
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in command and "pytest" not in command and "ansible" not in command:
            found[int(directory.name)] = command
    return found


@dataclass(frozen=True)
class Machine:
    """Everything of the host that `make down` must leave as it was found."""

    namespaces: frozenset[str]
    links: frozenset[str]
    routes: frozenset[str]
    firewall: frozenset[str]
    mounts: frozenset[str]
    cgroups: frozenset[str]
    forwarding: str

    @classmethod
    def now(cls) -> Machine:
        """Read the host's state."""
        return cls(
            namespaces=frozenset(line.split()[0] for line in _lines("ip", "netns", "list")),
            links=frozenset(line.split(": ")[1].split("@")[0] for line in _lines("ip", "-o", "link")),
            routes=_lines("ip", "route"),
            firewall=frozenset(line for line in _lines("nft", "list", "ruleset") if "counter packets" not in line),
            mounts=frozenset(line.split()[1] for line in _lines("cat", "/proc/mounts")),
            cgroups=_cgroups(),
            forwarding=Path("/proc/sys/net/ipv4/ip_forward").read_text().strip(),
        )
