"""Process 1 of a node: sets the node's namespaces up, then starts its services and starts them again when they end.

A node resembles a machine of its own: network, mounts, processes, host name and IPC are its own; kernel, users and
programs are the host's. Its services are the run scripts in `<node>/services`, each of which ends with `exec`. Killing
this process ends everything in the node.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

# The nodes' own versions of the folders in which kubelet, containerd and CNI keep what they know.
OWN_FOLDERS = (
    "/var/lib/kubelet",
    "/var/lib/containerd",
    "/var/lib/cni",
    "/var/log/pods",
    "/var/log/containers",
    "/run/containerd",
    "/run/netns",
)
# Lost when a node stops, as on a machine that reboots.
VOLATILE = ("/run/containerd", "/run/netns", "/var/lib/cni")
CGROUPS = Path("/sys/fs/cgroup")
# What a whole cluster's CPU time weighs where CPUs are short, in processes of the root group.
CPU_SHARE = 16
V1_CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd")
V2_CONTROLLERS = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids")
EMPTY_THE_ROOT = (
    "move its processes into a group below it (mkdir -p /sys/fs/cgroup/init; "
    "xargs -rn1 </sys/fs/cgroup/cgroup.procs >/sys/fs/cgroup/init/cgroup.procs)"
)
HOST_NETWORK_FD = 9
LOG_BYTES = 16 * 2**20
LONGEST_PAUSE = 10.0


def say(message: str) -> None:
    """One line into the node's own log."""
    sys.stdout.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {message}\n")
    sys.stdout.flush()


def mount(*arguments: str) -> None:
    """mount(8)."""
    subprocess.run(["mount", *arguments], check=True)


def cgroup_path(cluster: str, node: str) -> str:
    """A node's cgroup, below the hierarchy's root; kubelet's cgroupRoot."""
    return f"{cluster}/{node}"


def cgroup_hierarchies() -> list[Path]:
    """The folders below which a node has a cgroup: one on cgroup v2, one for each controller on v1."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [CGROUPS / controller for controller in V1_CONTROLLERS if (CGROUPS / controller).is_dir()]


def all_cgroup_hierarchies() -> list[Path]:
    """Where a node may have left cgroups: on v1, containerd also uses what else is mounted, such as `unified`."""
    if cgroup_hierarchies() == [CGROUPS]:
        return [CGROUPS]
    return sorted(path for path in CGROUPS.iterdir() if path.is_dir() and not path.is_symlink())


def make_cgroups(cluster: str, node: str) -> None:
    """Make the cgroup that kubelet wants: in every v1 hierarchy, with cpuset filled; or in v2, controllers on.

    Raises:
        SystemExit: v2 refuses, because the group above has processes; the message says what to do.
    """
    for hierarchy in cgroup_hierarchies():
        parent = hierarchy
        for part in (cluster, node):
            if hierarchy == CGROUPS:
                _enable(parent)
            (parent / part).mkdir(exist_ok=True)
            if hierarchy.name == "cpuset":
                for name in ("cpuset.cpus", "cpuset.mems"):
                    (parent / part / name).write_text((parent / name).read_text())
            parent /= part
        _weigh(hierarchy / cluster)


def _weigh(group: Path) -> None:
    """Give a cluster the CPU share of several processes: by default it has that of one process in the root group."""
    for name, default in (("cpu.shares", 1024), ("cpu.weight", 100)):
        if (group / name).exists():
            (group / name).write_text(str(CPU_SHARE * default))


def _enable(group: Path) -> None:
    available = (group / "cgroup.controllers").read_text().split()
    try:
        (group / "cgroup.subtree_control").write_text(
            " ".join(f"+{name}" for name in V2_CONTROLLERS if name in available)
        )
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        why = f"{group} has processes in it and hands nothing down"
        raise SystemExit(f"cgroups: {why}. Fix: {EMPTY_THE_ROOT}") from None


def set_up(cluster: str, directory: Path) -> None:
    """Mounts, host name, sysctls and cgroups of this node. Runs in its fresh namespaces."""
    name = directory.name
    socket.sethostname(name if name != "cp" else f"{cluster}-cp")
    # /sys of this network namespace, with the machine's cgroups put back. Before / becomes shared: else the unmounting
    # spreads to the copy and takes the cgroups with it.
    aside = directory / "cgroup"
    aside.mkdir(exist_ok=True)
    mount("--rbind", str(CGROUPS), str(aside))
    mount("-t", "sysfs", "sysfs", "/sys")
    mount("--rbind", str(aside), str(CGROUPS))
    subprocess.run(["umount", "-l", str(aside)], check=True)
    mount("--make-rshared", "/")
    if name == "cp":
        return
    for folder in OWN_FOLDERS:
        own = directory / "fs" / folder.lstrip("/")
        if folder in VOLATILE:
            shutil.rmtree(own, ignore_errors=True)
        own.mkdir(parents=True, exist_ok=True)
        Path(folder).mkdir(parents=True, exist_ok=True)
        mount("--bind", str(own), folder)
        mount("--make-rshared", folder)
    for key, value in {
        "ip_forward": "1",
        "conf/all/rp_filter": "0",
        "conf/default/rp_filter": "0",
        "conf/eth0/rp_filter": "0",
    }.items():
        Path("/proc/sys/net/ipv4", key).write_text(value)
    make_cgroups(cluster, name)


@dataclass
class Service:
    """One run script, and how it fares."""

    script: Path
    log: Path
    host_network: bool
    process: int = 0
    started: float = 0.0
    pause: float = 0.0
    due: float = 0.0

    @classmethod
    def of(cls, script: Path, logs: Path) -> Service:
        """A script that says `# network: host` runs in the host's network namespace."""
        return cls(script, logs / f"{script.stem}.log", "# network: host" in script.read_text())

    def start(self) -> None:
        """Start it, output to its log."""
        enter = ["nsenter", f"--net=/proc/self/fd/{HOST_NETWORK_FD}"] if self.host_network else []
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*enter, "/bin/sh", str(self.script)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[HOST_NETWORK_FD] if self.host_network else [],
                preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, []),
                start_new_session=True,
            )
        process.returncode = 0  # it is waited for here, not by the Popen object
        self.process, self.started = process.pid, time.monotonic()

    def ended(self, status: int) -> None:
        """Note its end. It starts again after a second, later if it keeps failing at once."""
        code = os.waitstatus_to_exitcode(status)
        lived = time.monotonic() - self.started
        self.pause = 1.0 if lived > 30 else min(LONGEST_PAUSE, max(1.0, self.pause * 2))
        self.process, self.due = 0, time.monotonic() + self.pause
        say(f"{self.script.stem} ended with {code} after {lived:.1f} s; again in {self.pause:.0f} s")


def rotate(log: Path) -> None:
    """Keep a log bounded: its writer appends, so it can be copied aside and emptied under its hands."""
    try:
        if log.stat().st_size > LOG_BYTES:
            shutil.copyfile(log, log.with_suffix(".log.1"))
            os.truncate(log, 0)
    except FileNotFoundError:
        pass


def supervise(services: list[Service]) -> None:
    """Start the services, and each again when it ends, for ever; reap whatever is orphaned to process 1."""
    signals = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    while True:
        now = time.monotonic()
        for service in services:
            if not service.process and service.due <= now:
                service.start()
            rotate(service.log)
        waiting = [service.due - now for service in services if not service.process]
        received = signal.sigtimedwait(signals, max(0.0, min([*waiting, 60.0])))
        if received and received.si_signo != signal.SIGCHLD:
            say(f"ending on signal {received.si_signo}")
            return
        _reap({service.process: service for service in services})


def _reap(running: dict[int, Service]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        if pid in running:
            running[pid].ended(status)


def main(cluster: str, directory: Path) -> None:
    """Be process 1 of the node in that folder. The file `running` says which configuration it runs with."""
    set_up(cluster, directory)
    logs = directory / "log"
    logs.mkdir(exist_ok=True)
    services = [Service.of(script, logs) for script in sorted((directory / "services").glob("*.sh"))]
    say(f"node {directory.name} starts {', '.join(service.script.stem for service in services)}")
    (directory / "starting").rename(directory / "running")
    supervise(services)
