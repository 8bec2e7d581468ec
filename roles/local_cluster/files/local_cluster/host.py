"""What this machine has and lacks. Nothing here changes anything."""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from . import binaries, network, node
from .processes import PROGRAM_PATH, node_processes, owner
from .settings import Problem, Settings

# The program for which each Debian package is wanted.
# One that lies there needs no package of that name: it may come from another, such as Docker's.
PROGRAMS = {
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "nftables": "nft",
    "conntrack": "conntrack",
    "socat": "socat",
    "ethtool": "ethtool",
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
    "iproute2": "ip",
    "gcc": "gcc",
}
CNI_PLUGINS = "containernetworking-plugins"
# From this version on, Go fetches a newer one where GOTOOLCHAIN lets it.
FETCHES_ITSELF = (1, 21)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command and keep its output; what it means is the caller's business. One that is missing ends with 127."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]} is not installed")


def is_debian() -> bool:
    """Whether packages come from apt here."""
    return shutil.which("apt-get") is not None and shutil.which("dpkg-query") is not None


def missing_packages(wanted: Iterable[str], cni_bin_dir: Path) -> list[str]:
    """The Debian packages of which neither the program nor, on Debian, the package itself is there."""
    wanted = [package for package in wanted if not _is_there(package, cni_bin_dir)]
    if is_debian() and wanted:
        listed = run("dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *wanted).stdout
        installed = {line.split()[0] for line in listed.splitlines() if line.endswith(" installed")}
        return [package for package in wanted if package not in installed]
    return [package for package in wanted if package in PROGRAMS or package == CNI_PLUGINS]


def _is_there(package: str, cni_bin_dir: Path) -> bool:
    if package == CNI_PLUGINS:
        return (cni_bin_dir / "ptp").exists()
    # A node's processes look for programs where these paths say, not where this user's do.
    return package in PROGRAMS and shutil.which(PROGRAMS[package], path=PROGRAM_PATH) is not None


def go_version() -> str:
    """The Go toolchain's version, such as go1.26.8; empty where there is none."""
    return run("go", "env", "GOVERSION").stdout.strip()


def go_needed() -> str:
    """The version of Go that the newest of the local cluster's modules asks for."""
    asked = [
        line.removeprefix("go ").strip()
        for path in sorted(binaries.SOURCES.glob("*/go.mod"))
        for line in path.read_text().splitlines()
        if line.startswith("go ")
    ]
    return max(asked, key=_numbers)


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers of go1.26.8, of 1.26, or of a version with words around them."""
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    return tuple(int(number or 0) for number in found.groups()) if found else ()


@dataclass(frozen=True)
class Needs:
    """What a run needs: a cache folder, room and tools to build in it, packages that nobody will install."""

    cache_dir: Path
    build: bool
    missing_packages: list[str]


def problems_of_kind(needs: Needs) -> list[Problem]:
    """What a cluster by kind needs of this machine besides kind: what is built here, and what it is built with."""
    found = _go() if needs.build else []
    if needs.missing_packages:
        found += _packages(needs.missing_packages)
    return found


def problems(settings: Settings, needs: Needs) -> list[Problem]:
    """Everything that keeps the cluster from being built or kept here."""
    found = _privileges()
    found += _programs(needs)
    found += _disk(settings, needs)
    if not found:
        found += _name(settings)
        found += _addresses(settings)
        found += _port(settings)
        found += _same_as_before(settings)
    return found


def _privileges() -> list[Problem]:
    if os.geteuid() != 0:
        return [
            Problem(
                "privileges",
                "network namespaces and mounts need root, and this is another user",
                "run the playbook as root (sudo -E make up)",
            )
        ]
    tried = run("unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--mount-proc", "true")
    if tried.returncode:
        why = f"the kernel refuses namespaces here ({tried.stderr.strip()})"
        return [
            Problem(
                "privileges",
                why,
                "use a virtual machine, or a container started with --privileged; or another inventory than local",
            )
        ]
    return []


def _programs(needs: Needs) -> list[Problem]:
    found = _go() if needs.build else []
    if needs.missing_packages:
        found += _packages(needs.missing_packages)
    return found + _cgroups()


def _go() -> list[Problem]:
    needed, version = go_needed(), go_version()
    fix = f"install Go {needed} or newer (go.dev/dl), and have its `go` first on PATH"
    if not version:
        why = "the local cluster's programs are built from Go modules, and there is no `go` on PATH"
        return [Problem("go", why, fix)]
    if _numbers(version) >= _numbers(needed):
        return []
    if _numbers(version) >= FETCHES_ITSELF:
        if run("go", "env", "GOTOOLCHAIN").stdout.strip().endswith("auto"):
            return []
        fix += "; or set GOTOOLCHAIN=auto, with which this one fetches it"
    return [Problem("go", f"`go` on PATH is {version}, and the local cluster's programs need Go {needed}", fix)]


def _packages(packages: list[str]) -> list[Problem]:
    missing = " ".join(packages)
    fix = (
        f"apt-get install {missing}"
        if is_debian()
        else f"install what your distribution calls the Debian packages {missing}"
    )
    return [Problem("packages", f"{missing} missing", fix)]


def _cgroups() -> list[Problem]:
    """On cgroup v2 a group with processes in it hands nothing down. The machine's own root may, a container's not."""
    root = node.CGROUPS
    if node.cgroup_hierarchies() != [root] or not (root / "cgroup.type").exists():
        return []
    available = (root / "cgroup.controllers").read_text().split()
    handed_down = (root / "cgroup.subtree_control").read_text().split()
    lacking = [name for name in node.V2_CONTROLLERS if name in available and name not in handed_down]
    if not lacking or not (root / "cgroup.procs").read_text().split():
        return []
    why = f"{root} has processes in it, so the nodes' cgroups would have no {', '.join(lacking)}"
    return [Problem("cgroups", why, node.EMPTY_THE_ROOT)]


def _disk(settings: Settings, needs: Needs) -> list[Problem]:
    found = []
    # A build from nothing fills Go's own caches, below the same home as ours, with 10 GiB.
    folders = (
        ("local_cluster_state_dir", settings.state_dir, 2048),
        ("local_cluster_cache_dir", needs.cache_dir, 12288 if needs.build else 1024),
    )
    for variable, path, mib in folders:
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        free = shutil.disk_usage(existing).free // 2**20
        if free < mib:
            fix = f"free some, or set {variable} to a folder on a larger disk"
            found.append(Problem(variable, f"{path} has {free} MiB of free disk, and {mib} MiB are needed", fix))
    return found


def _name(settings: Settings) -> list[Problem]:
    """Two clusters of one name would share network namespaces and cgroups."""
    other = owner(Path("/run/netns", settings.control_plane.namespace))
    if other not in (None, settings.state_dir):
        why = f"the cluster in {other} has the name {settings.name}"
        return [Problem("local_cluster_name", why, "choose another name")]
    if (settings.state_dir / "cluster.json").exists():
        return []
    return [network.stranger(found) for found in network.Network(settings, check=True).strangers()]


def _addresses(settings: Settings) -> list[Problem]:
    found = []
    taken = routes(Path("/proc/net/route").read_text())
    for variable in ("node_network", "pod_network", "service_network", "load_balancer_network"):
        wanted: ipaddress.IPv4Network = getattr(settings, variable)
        for taken_network, device in taken:
            if device != settings.host_link and taken_network.overlaps(wanted):
                fix = f"set local_cluster_{variable} to a range that is free on this machine"
                found.append(
                    Problem(
                        f"local_cluster_{variable}",
                        f"{wanted} overlaps this machine's route to {taken_network} (device {device})",
                        fix,
                    )
                )
                break
    return found


def routes(table: str) -> list[tuple[ipaddress.IPv4Network, str]]:
    """Networks and devices of /proc/net/route, without default routes. Not by ip(8), which may not be installed yet."""
    found = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        # Hexadecimal, in the order of bytes that the machine has.
        address, mask = (ipaddress.IPv4Address(socket.ntohl(int(fields[column], 16))) for column in (1, 7))
        if int(mask):
            found.append((ipaddress.IPv4Network(f"{address}/{mask}"), fields[0]))
    return found


def _port(settings: Settings) -> list[Problem]:
    if not settings.publish_address or _publishing(settings):
        return []
    host, _, port = settings.publish_address.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
            probe.listen()
        except OSError as error:
            why = (
                f"{settings.publish_address} is taken by another program"
                if error.errno == errno.EADDRINUSE
                else f"{settings.publish_address}: {error.strerror}"
            )
            return [Problem("local_cluster_publish_address", why, "stop that program, or choose another address:port")]
    return []


def _publishing(settings: Settings) -> bool:
    """Whether this cluster's control plane runs: then the address is held by its own load balancer."""
    return settings.control_plane.name in node_processes(settings.state_dir)


def _same_as_before(settings: Settings) -> list[Problem]:
    """Networks are written into certificates and Services: a cluster that exists keeps them."""
    try:
        before = json.loads((settings.state_dir / "cluster.json").read_text())
    except FileNotFoundError:
        return []
    found = []
    for variable in ("name", "node_network", "pod_network", "service_network", "load_balancer_network"):
        if before[variable] != settings.raw[variable]:
            fix = "run playbooks/local_cluster_down.yml with the old value first, or choose another local_cluster_name"
            why = f"the cluster in {settings.state_dir} was made with {before[variable]}, not {settings.raw[variable]}"
            found.append(Problem(f"local_cluster_{variable}", why, fix))
    return found
