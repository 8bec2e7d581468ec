"""A `headrace` command as a process of its own, as a container would run it."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ...hang import HANG_SECONDS

TIMEOUT = HANG_SECONDS
MODEL = "test/model"


class Headrace:
    """A running command and its log."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "headrace.cli.main", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.seen: list[dict[str, Any]] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        # A thread, so that a full pipe never stops the process, and a wait for a line can end.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.put(line)
        self._lines.put(None)

    def wait_log(self, message: str) -> dict[str, Any]:
        """Wait for a log line with this message; it must be JSON, as every line before it."""
        while True:
            line = self._lines.get(timeout=TIMEOUT)
            assert line is not None, f"the process ended before it logged {message!r}: {self.seen}"
            self.seen.append(json.loads(line))
            if self.seen[-1]["message"].startswith(message):
                return self.seen[-1]

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait_exit(self) -> int:
        return self.process.wait(TIMEOUT)

    def resident_bytes(self) -> int:
        with open(f"/proc/{self.process.pid}/status") as status:  # noqa: PTH123
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        raise AssertionError("no VmHWM")


@contextmanager
def headrace(*arguments: str, **environment: str) -> Iterator[Headrace]:
    """Run a command for the length of the block; it is killed at its end if it still runs."""
    running = Headrace(list(arguments), environment)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
        running.process.wait(TIMEOUT)
        running._reader.join(TIMEOUT)
        if running.process.stderr is not None:
            running.process.stderr.close()


@contextmanager
def simulator(*arguments: str, **environment: str) -> Iterator[tuple[Headrace, str]]:
    """A simulated server on a free port, once it serves; gives the process and the base URL."""
    flags = ["--host", "127.0.0.1", "--port", "0", "--model", MODEL, *arguments]
    with headrace("simulate", *flags, **environment) as running:
        serving = running.wait_log("serving")
        yield running, f"http://127.0.0.1:{serving['port']}"
