"""Ports for programs that must be told theirs before they start."""

from __future__ import annotations

import os
import socket


def share(worker: str | None) -> range:
    """The ports of a worker of pytest-xdist, or of processes that are none: those of molecule run beside the workers.

    No process of another share takes a port between here and the program's start. All are below the ports that the
    kernel gives to outgoing connections (32768 and up), and above those of the tests' cluster, which may come up
    meanwhile. Nine workers have shares of their own."""
    number = 0 if worker is None else 1 + int(worker.removeprefix("gw")) % 9
    return range(20000 + number * 1000, 21000 + number * 1000)


_SHARE = share(os.environ.get("PYTEST_XDIST_WORKER"))
_next = os.getpid() * 97 % len(_SHARE)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on just now, and that this process has not been given before."""
    global _next
    for _ in _SHARE:
        port, _next = _SHARE[_next], (_next + 1) % len(_SHARE)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"every port from {_SHARE[0]} to {_SHARE[-1]} of 127.0.0.1 is in use")
