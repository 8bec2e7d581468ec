"""One place a request can be sent to: a port of a Pod (each targetPort of a Pod is an endpoint of its own)."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from headrace.core.fields import is_digits


class InvalidAddress(ValueError):  # noqa: N818
    """A text that is not `ip:port`; the message names the text and the fix."""


def endpoint_key(address: str, port: int) -> str:
    """`ip:port` as the endpoint picker protocol writes it; IPv6 addresses in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def split_key(key: str) -> tuple[str, int]:
    """The address and port of `ip:port` or `[ipv6]:port`. The address comes back in its canonical text.

    Raises InvalidAddress."""
    host, colon, port = key.strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    if not colon or not is_digits(port, 5) or not 1 <= int(port) <= 65535:
        raise InvalidAddress(
            f"{key!r} is not ip:port with a port of 1 to 65535; write it as 10.0.0.1:8000 or [::1]:8000"
        )
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        raise InvalidAddress(f"{key!r} does not hold an IP address; write it as 10.0.0.1:8000 or [::1]:8000") from error
    if (address.version == 6) != bracketed:
        raise InvalidAddress(f"{key!r}: brackets go around IPv6 addresses, and only around them")
    return str(address), int(port)


@dataclass(frozen=True)
class Endpoint:
    """A port of a model server Pod.

    `address` is the Pod's IP without brackets. `rank` is the place of the port among the pool's target ports
    (the data parallel rank, where a Pod serves several)."""

    namespace: str
    pod_name: str
    address: str
    port: int
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    rank: int = 0
    uid: str = ""
    node_name: str = ""

    @cached_property
    def key(self) -> str:
        """`ip:port`, the name of this endpoint in the endpoint picker protocol."""
        return endpoint_key(self.address, self.port)
