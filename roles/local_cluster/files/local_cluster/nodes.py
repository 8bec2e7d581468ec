"""Starting and stopping nodes from the host, and running commands in them."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import node as inside
from .processes import PROGRAM_PATH, NodeProcess, arguments, node_processes
from .settings import Node, Settings

TOOL = Path(__file__).resolve().parents[1] / "cluster.py"
# What a node reads once, at its start. Its labels and its keys are not among that.
CONFIGURATION = ("services", "etc")
# containerd reads its registries' files each time it pulls.
REREAD = "certs.d"


class NodeError(Exception):
    """A node did not come up or go away; the message says where to look."""


def digest(node: Node, programs: Path) -> str:
    """What a node's processes were started from: its run scripts, its configuration, the programs that those name."""
    seen = hashlib.sha256()
    for folder in CONFIGURATION:
        for path in sorted((node.directory / folder).rglob("*")):
            if path.is_file() and REREAD not in path.parts:
                content = path.read_text()
                seen.update(f"{path.relative_to(node.directory)}\0{content}\0".encode())
                for name in sorted(set(re.findall(re.escape(f"{programs}/") + r"([\w-]+)", content))):
                    seen.update(str((programs / name).resolve()).encode())
    return seen.hexdigest()


def write_files(settings: Settings, wanted: Sequence[Mapping[str, str]], check: bool) -> tuple[list[str], str]:
    """Write the nodes' run scripts and configuration (path below `nodes`, content, octal mode), remove all others.

    Answers with what was done, and with that as a unified diff.
    """
    root = settings.state_dir / "nodes"
    contents = {root / file["path"]: (file["content"], int(file["mode"], 8)) for file in wanted}
    there = {path for folder in CONFIGURATION for path in root.glob(f"*/{folder}/**/*") if path.is_file()}
    changes: list[str] = []
    difference: list[str] = []
    for path in sorted(there | set(contents)):
        content, mode = contents.get(path, ("", 0))
        before = path.read_text() if path in there else ""
        name = str(path.relative_to(root))
        if path in there and path in contents and before == content and path.stat().st_mode & 0o777 == mode:
            continue
        changes.append(f"{'write' if path in contents else 'remove'} {name}")
        difference += difflib.unified_diff(
            before.splitlines(True), content.splitlines(True), f"before: {name}", f"after: {name}"
        )
        if check:
            continue
        if path not in contents:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = path.with_name(path.name + ".new")
        new.write_text(content)
        new.chmod(mode)
        new.rename(path)
    return changes, "".join(difference)


def to_start(settings: Settings) -> list[tuple[Node, str]]:
    """The nodes that do not run, or run something else than what is configured, with the reason."""
    processes = node_processes(settings.state_dir)
    found = []
    for node in (settings.control_plane, *settings.nodes):
        process = processes.get(node.name)
        running = node.directory / "running"
        if not process or not process.init:
            found.append((node, "start"))
        elif not running.exists() or running.read_text() != digest(node, settings.state_dir / "bin"):
            found.append((node, "restart, its configuration changed,"))
        elif not _same_namespace(process.init, node):
            found.append((node, "restart, its network namespace is new,"))
    return found


def _same_namespace(pid: int, node: Node) -> bool:
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino == Path("/run/netns", node.namespace).stat().st_ino
    except FileNotFoundError:
        return False


def superfluous(settings: Settings) -> list[str]:
    """Nodes that run and are no part of the cluster any more."""
    wanted = {settings.control_plane.name} | {node.name for node in settings.nodes}
    return sorted(set(node_processes(settings.state_dir)) - wanted)


def start(settings: Settings, node: Node) -> None:
    """Start a node and wait until its first process has set everything up.

    Raises:
        NodeError: it ended, or was not up within 30 seconds.
    """
    stop(settings, [node.name])
    (node.directory / "running").unlink(missing_ok=True)
    (node.directory / "starting").write_text(digest(node, settings.state_dir / "bin"))
    enter = ["nsenter", f"--net=/run/netns/{node.namespace}"]
    unshare = [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--uts",
        "--ipc",
        "--mount-proc",
        "--propagation",
        "private",
    ]
    descriptor = os.open("/proc/self/ns/net", os.O_RDONLY)
    os.dup2(descriptor, inside.HOST_NETWORK_FD)
    log = node.directory / "node.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*enter, *unshare, sys.executable, "-B", str(TOOL), *arguments(node.directory)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=[inside.HOST_NETWORK_FD],
            env={
                "PATH": PROGRAM_PATH,
                "HOME": "/root",
                "LOCAL_CLUSTER": settings.name,
            },
            cwd="/",
        )
    deadline = time.monotonic() + 30
    while not (node.directory / "running").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise NodeError(f"node {node.name} did not come up; the end of {log}:\n{log.read_text()[-2000:]}")
        time.sleep(0.02)


def stop(settings: Settings, names: list[str], timeout: float = 30.0) -> None:
    """End nodes with everything in them.

    Raises:
        NodeError: their processes are still there after the timeout.
    """
    deadline = time.monotonic() + timeout
    while left := {name: process for name, process in node_processes(settings.state_dir).items() if name in names}:
        for process in left.values():
            _kill(process)
        if time.monotonic() > deadline:
            raise NodeError(f"processes of {', '.join(left)} do not end: {left}")
        time.sleep(0.05)


def _kill(process: NodeProcess) -> None:
    # Process 1 takes its whole pid namespace with it; `unshare` outside ends by itself then, unless it is all there is.
    for pid in (process.init or process.outer,):
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def remove_cgroups(settings: Settings, check: bool) -> list[str]:
    """Remove the cgroups of all the cluster's nodes that there ever were. They are empty once the nodes have ended."""
    removed = []
    for hierarchy in inside.all_cgroup_hierarchies():
        cluster = hierarchy / settings.name
        groups = [path for path in cluster.glob("n*") if path.is_dir() and path.name[1:].isdecimal()]
        removed += [f"remove cgroup {group}" for group in groups]
        if groups and not check:
            for group in groups:
                _remove_group(group)
            if not any(path.is_dir() for path in cluster.iterdir()):
                _remove_group(cluster)
    return removed


def _remove_group(group: Path) -> None:
    for _ in range(100):
        for child in sorted((path for path in group.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts)):
            _rmdir(child)
        if _rmdir(group):
            return
        time.sleep(0.05)
    raise NodeError(f"the cgroup {group} has processes that do not end")


def _rmdir(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def enter(settings: Settings, name: str) -> list[str]:
    """The command prefix that runs a command inside a node.

    Raises:
        NodeError: the node does not run.
    """
    process = node_processes(settings.state_dir).get(name)
    if not process or not process.init:
        raise NodeError(f"node {name} of {settings.state_dir} does not run")
    return ["nsenter", "--target", str(process.init), "--mount", "--net", "--pid", "--uts", "--ipc", "--"]
