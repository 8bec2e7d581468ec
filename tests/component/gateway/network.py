"""A network namespace of the tests' own, for this process and every process it starts.

Kubernetes refuses loopback addresses as endpoints, so Pods and Services of the tests have addresses of the
documentation ranges. They exist on this namespace's loopback device, and nowhere else: nothing leaves the machine, and
fixed ports disturb nobody."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ...hang import HANG_SECONDS

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_IPV6 = "2001:db8::"

# RFC 5737: every address of it is local here.
IPV4_PREFIX = "192.0.2."
IPV6_HOSTS = range(1, 16)


def ipv4(host: int) -> str:
    """An address of the namespace."""
    return f"{IPV4_PREFIX}{host}"


def ipv6(host: int) -> str:
    """An address of the namespace, for hosts of IPV6_HOSTS."""
    return f"{_IPV6}{host:x}"


def blackhole() -> str:
    """An address that swallows what is sent to it."""
    return "198.51.100.1"


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """Move the calling thread into a new network namespace until the block ends."""
    assert os.geteuid() == 0, "these tests make a network namespace: run them as root"
    library = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _checked(library.unshare(_NEW_NETWORK), "unshare")
        try:
            _ip("link", "set", "lo", "up")
            _ip("route", "add", "local", f"{IPV4_PREFIX}0/24", "dev", "lo")
            # What is sent here comes back from the loopback device for an address that is nobody's, and is dropped.
            _ip("route", "add", f"{blackhole()}/32", "dev", "lo")
            if Path("/proc/sys/net/ipv6").exists():
                for host in IPV6_HOSTS:
                    _ip("-6", "address", "add", f"{ipv6(host)}/128", "dev", "lo", "nodad")
            yield
        finally:
            _checked(library.setns(before, _NEW_NETWORK), "setns")
    finally:
        os.close(before)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=HANG_SECONDS)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


def _checked(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
