"""What a cluster could leave on a machine: a snapshot to compare before and after."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

# Rules count what they match: the numbers are no part of what a rule is.
COUNTERS = re.compile(r"counter packets \d+ bytes \d+")


def _said(*command: str) -> str:
    # A program that is missing or fails must not look like a machine without routes or rules.
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _lines(*command: str) -> frozenset[str]:
    return frozenset(_said(*command).splitlines())


def rules(ruleset: str) -> frozenset[str]:
    """The lines of a firewall's rules, each behind the table and the chain that it is in, without what they counted."""
    found, inside = [], []
    for line in filter(None, map(str.strip, ruleset.splitlines())):
        if line == "}":
            inside.pop()
            continue
        found.append(" ".join([*inside, COUNTERS.sub("counter", line)]))
        if line.endswith("{"):
            inside.append(line)
    return frozenset(found)


def cgroups(root: Path) -> frozenset[str]:
    """The groups directly below the root of each hierarchy: one on cgroup v2, one for each controller on v1."""
    roots = [root] if (root / "cgroup.controllers").exists() else [path for path in root.iterdir() if path.is_dir()]
    return frozenset(str(path) for hierarchy in roots for path in hierarchy.iterdir() if path.is_dir())


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
            firewall=rules(_said("nft", "list", "ruleset")),
            mounts=frozenset(line.split()[1] for line in _lines("cat", "/proc/mounts")),
            cgroups=cgroups(Path("/sys/fs/cgroup")),
            forwarding=Path("/proc/sys/net/ipv4/ip_forward").read_text().strip(),
        )
