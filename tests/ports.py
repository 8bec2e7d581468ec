"""Ports for programs that must be told theirs before they start."""

from __future__ import annotations

import os
import socket

# Below the ports that the kernel gives to outgoing connections (32768 and up): none of those can take a port between
# here and the program's start. Above those of the tests' cluster, which may come up meanwhile. pytest-xdist's workers
# share the range out: none takes another's port in that time.
_FIRST, _LAST = 20000, 29999
if "PYTEST_XDIST_WORKER" in os.environ:
    _FIRST += int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")) % 5 * 2000
    _LAST = _FIRST + 1999
_next = _FIRST + os.getpid() * 97 % (_LAST - _FIRST)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on just now, and that this process has not been given before."""
    global _next
    for _ in range(_LAST - _FIRST + 1):
        port = _next
        _next = _FIRST if port == _LAST else port + 1
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"every port from {_FIRST} to {_LAST} of 127.0.0.1 is in use")
