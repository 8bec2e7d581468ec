"""What this machine has and lacks. Nothing here changes anything."""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .processes import node_processes, owner
from .settings import Problem, Settings

# A program that each Debian package brings, where a machine without dpkg is asked.
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
    "libc6-dev": "gcc",
}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command and keep its output; what it means is the caller's business."""
    return subprocess.run(command, capture_output=True, text=True, check=False)


def is_debian() -> bool:
    """Whether packages come from apt here."""
    return shutil.which("apt-get") is not None and shutil.which("dpkg-query") is not None


def missing_packages(wanted: Iterable[str], cni_bin_dir: Path) -> list[str]:
    """The Debian packages that are not installed; elsewhere those whose program is not there."""
    wanted = list(wanted)
    if is_debian():
        listed = run("dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *wanted).stdout
        installed = {line.split()[0] for line in listed.splitlines() if line.endswith(" installed")}
        return [package for package in wanted if package not in installed]
    missing = [package for package in wanted if package in PROGRAMS and not shutil.which(PROGRAMS[package])]
    if not (cni_bin_dir / "ptp").exists():
        missing.append("containernetworking-plugins")
    return missing


def go_version() -> str:
    """The Go toolchain's version; empty where there is none."""
    return run("go", "env", "GOVERSION").stdout.strip() if shutil.which("go") else ""


@dataclass(frozen=True)
class Needs:
    """What a run needs: a cache folder, room and tools to build in it, packages that nobody will install."""

    cache_dir: Path
    build: bool
    missing_packages: list[str]


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
    found = []
    if needs.build and not shutil.which("go"):
        fix = "install Go (go.dev/dl), and have `go` on PATH"
        found.append(
            Problem("go", "the local cluster's programs are built from Go modules, and there is no `go` on PATH", fix)
        )
    if needs.missing_packages:
        missing = " ".join(needs.missing_packages)
        fix = (
            f"apt-get install {missing}"
            if is_debian()
            else f"install what your distribution calls the Debian packages {missing}"
        )
        found.append(Problem("packages", f"{missing} missing", fix))
    return found


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
    if other in (None, settings.state_dir):
        return []
    return [
        Problem("local_cluster_name", f"the cluster in {other} has the name {settings.name}", "choose another name")
    ]


def _addresses(settings: Settings) -> list[Problem]:
    found = []
    taken = [
        (ipaddress.IPv4Network(route["dst"]), route.get("dev", ""))
        for route in json.loads(run("ip", "-j", "-4", "route", "show", "table", "main").stdout or "[]")
        if route.get("dst", "default") != "default"
    ]
    for variable in ("node_network", "pod_network", "service_network", "load_balancer_network"):
        wanted: ipaddress.IPv4Network = getattr(settings, variable)
        for network, device in taken:
            if device != settings.host_link and network.overlaps(wanted):
                fix = f"set local_cluster_{variable} to a range that is free on this machine"
                found.append(
                    Problem(
                        f"local_cluster_{variable}",
                        f"{wanted} overlaps this machine's route to {network} (device {device})",
                        fix,
                    )
                )
                break
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
