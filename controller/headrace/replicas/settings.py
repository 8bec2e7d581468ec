"""Where a picker's other replicas are: its flags, and what is worked out of the others."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from headrace.config.flags import flag, folder, port
from headrace.core import endpoint_key, split_key

_HOST = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def _service(text: str) -> str:
    if text and not _HOST.fullmatch(text):
        raise ValueError("give the name of a headless Service, as my-epp-peers")
    return text


def _addresses(text: str) -> tuple[str, ...]:
    parts = filter(None, map(str.strip, text.split(",")))
    return tuple(dict.fromkeys(endpoint_key(*split_key(part)) for part in parts))


@dataclass(frozen=True, kw_only=True)
class PeerSettings:
    """The other replicas are behind a headless Service's name, or at fixed addresses (ip:port)."""

    service: str = flag(
        "",
        "headless Service of this picker's replicas, NAME or NAME.NAMESPACE: they share what is in flight",
        _service,
        "--peer-service",
    )
    addresses: tuple[str, ...] = flag(
        "", "the other replicas, ip:port,ip:port, instead of a Service", _addresses, "--peers"
    )
    port: int = flag(9004, "where other replicas follow this one", port, "--peer-port")
    certificates: Path | None = flag(
        "",
        "directory of tls.crt, tls.key and ca.crt, the same for all replicas (mutual TLS)",
        folder("tls.crt", "tls.key", "ca.crt"),
        "--peer-cert-path",
    )
    pool: str = ""
    # Our own Pod: its name, for people, and its address, which is not followed.
    name: str = ""
    own_address: str = ""

    @property
    def wanted(self) -> bool:
        """Whether other replicas are to be followed."""
        return bool(self.service or self.addresses)
