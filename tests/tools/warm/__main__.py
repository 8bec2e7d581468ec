"""Run a command whose Ansible modules share an interpreter: `python -m tests.tools.warm COMMAND...`

A module of `kubernetes.core` takes half a second of processor time, nearly all of it for imports. Here an interpreter
has imported them and forks for each module. The modules are the same files, in a process of their own with the caller's
arguments, environment, folder and standard streams. `sitecustomize.py` tells `ansible-playbook` of it, `client.py` is
what Ansible starts instead of Python.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
COLLECTION = "ansible_collections.kubernetes.core.plugins.module_utils"
IMPORTS = (
    "kubernetes.client", "kubernetes.config", "kubernetes.dynamic", "yaml", "requests",
    "ansible.module_utils.basic", "ansible.module_utils.urls",
    f"{COLLECTION}.k8s.runner", f"{COLLECTION}.k8s.core", f"{COLLECTION}.ansiblemodule", f"{COLLECTION}.args_common",
)  # fmt: skip


class Bundled:
    """Finds what a module's archive has of packages that are imported already."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, _ = name.rpartition(".")
        if package.partition(".")[0] not in ("ansible", "ansible_collections"):
            return None
        archives = [entry for entry in sys.path if entry.endswith(".zip")]
        return PathFinder.find_spec(name, [f"{archive}/{package.replace('.', '/')}" for archive in archives])


def run(call: dict[str, Any]) -> int:
    """Run a Python program as `python [PATH ARGUMENT...]` would, and return its exit status."""
    os.chdir(call["directory"])
    os.umask(call["umask"])
    os.environ.clear()
    os.environ.update(call["environment"])
    sys.argv = call["arguments"] or [""]
    # In a Python of its own, a module's archive comes first, too.
    sys.meta_path.insert(0, Bundled)  # type: ignore[arg-type]
    with open(sys.argv[0] or 0, encoding="utf-8", closefd=bool(sys.argv[0])) as file:
        source = file.read()
    try:
        exec(compile(source, sys.argv[0] or "<stdin>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - what Python does with an error that nobody caught
        traceback.print_exc()
        return 1
    return 0


def answer(connection: socket.socket) -> None:
    """Take a call and the caller's streams, run it and send its status. Runs in a process that does nothing else."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    data, streams, _, _ = socket.recv_fds(connection, 1 << 16, 3)
    while not data.endswith(b"\n"):
        data += connection.recv(1 << 16)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    status = 1
    try:
        status = run(json.loads(data))
        atexit._run_exitfuncs()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.send(bytes([status & 255]))
        # Without the end of an interpreter, which would free everything that was imported.
        os._exit(0)


def serve(listener: socket.socket) -> None:
    """Import, then fork for each call, without end."""
    for name in IMPORTS:
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            answer(connection)
        connection.close()


def main(command: list[str]) -> int:
    """Run a command beside the interpreter, and return its exit status."""
    # Not TemporaryDirectory, which every process that was forked would remove at its end.
    folder = Path(tempfile.mkdtemp(prefix="headrace-warm-"))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen(64)
    server = os.fork()
    if server == 0:
        serve(listener)
    # Playbooks look for programs beside their Python.
    for program in Path(sys.executable).parent.iterdir():
        if not program.name.startswith("python"):
            (folder / program.name).symlink_to(program)
    client = folder / "python"
    client.write_text(f"#!{sys.executable} -ISE\n{(HERE / 'client.py').read_text()}")
    client.chmod(0o755)
    shutil.copy(HERE / "sitecustomize.py", folder)
    environment = {
        **os.environ,
        "HEADRACE_WARM_PYTHON": str(client),
        "HEADRACE_WARM_SOCKET": str(folder / "socket"),
        "HEADRACE_WARM_PREFIX": sys.prefix,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])),
    }
    try:
        return subprocess.run(command, env=environment).returncode
    finally:
        os.kill(server, signal.SIGTERM)
        os.waitpid(server, 0)
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
