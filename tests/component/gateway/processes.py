"""Processes of the tests: started with their output in a file, waited for, stopped by their pid."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...hang import HANG_SECONDS


@dataclass
class Running:
    """A process that was started; `log` takes what it says."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def text(self) -> str:
        """All it has said."""
        return self.log.read_text(errors="replace")

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Until the condition holds. Raises AssertionError with the end of the log if the process ends first."""
        wait_until(condition, what, alive=self)

    def stop(self, seconds: float = 15.0) -> None:
        """SIGTERM, and SIGKILL after `seconds`."""
        if self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def started(
    name: str, command: Sequence[str | Path], directory: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """Run a command until the block ends."""
    log = directory / f"{name}.log"
    with log.open("ab") as stream:
        process = subprocess.Popen([str(part) for part in command], stdout=stream, stderr=stream, env=environment)
    running = Running(name, process, log)
    try:
        yield running
    finally:
        running.stop()


def wait_until(condition: Callable[[], bool], what: str, *, alive: Running | None = None) -> None:
    """Until the condition, which asks another process, holds. Raises AssertionError saying what was waited for."""
    deadline = time.monotonic() + HANG_SECONDS
    while not condition():
        if alive is not None:
            code = alive.process.poll()
            assert code is None, f"{alive.name} ended with {code}, waiting for {what}:\n{alive.text()[-4000:]}"
        tail = alive.text()[-4000:] if alive is not None else ""
        assert time.monotonic() < deadline, f"{what}: not within {HANG_SECONDS} s\n{tail}"
        time.sleep(0.1)
