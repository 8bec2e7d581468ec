#!/usr/bin/env python3
"""An API server with nothing in it, for the length of a scenario: apiserver.py start|stop FOLDER [BINARIES].

`start` returns once it answers, with its kubeconfig in FOLDER/kubeconfig; `stop` ends it, by its pid, and removes the
folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.hang import HANG_SECONDS
from tests.integration.apiserver import running


def serve(folder: Path, binaries: Path) -> None:
    """Run until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with running(binaries, folder):
        (folder / "ready").touch()
        while True:
            signal.pause()


def start(folder: Path, binaries: Path) -> None:
    """Start a process of its own that serves, and wait for it."""
    stop(folder)
    folder.mkdir(parents=True, mode=0o700)
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, __file__, "serve", str(folder), str(binaries)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    (folder / "pid").write_text(str(child.pid))
    deadline = time.monotonic() + HANG_SECONDS
    while not (folder / "ready").exists():
        if child.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"the API server did not start:\n{(folder / 'log').read_text()}")
        time.sleep(0.2)


def stop(folder: Path) -> None:
    """End what `start` began, if it is still the same process."""
    pid_file = folder / "pid"
    if pid_file.exists():
        pid = int(pid_file.read_text())
        command = Path(f"/proc/{pid}/cmdline")
        if command.exists() and str(folder) in command.read_text():
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + 30
            while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
                time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    action, where = sys.argv[1], Path(sys.argv[2])
    if action == "stop":
        stop(where)
    else:
        {"start": start, "serve": serve}[action](where, Path(sys.argv[3]))
