"""The picker's ports: what its gRPC servers are set to, and how a port is taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# Beyond the largest body a message can carry: a body of max_body_bytes comes as one message where it is buffered.
_MESSAGE_OVERHEAD = 1 << 20


class CannotServe(RuntimeError):  # noqa: N818
    """What is needed to serve is missing; the message says what, and what to do."""


@dataclass(frozen=True)
class Ports:
    """Where the servers listen, once they do."""

    grpc: int
    health: int
    metrics: int
    # Where other replicas follow this one; 0 where there are none.
    peers: int = 0


def grpc_options(max_body_bytes: int) -> list[tuple[str, int]]:
    """Options of the ext_proc server. `max_body_bytes`: the largest body that is taken."""
    limit = max_body_bytes + _MESSAGE_OVERHEAD
    return [
        # Two processes on one port would share its connections and each know half of what is in flight.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", limit),
        ("grpc.max_send_message_length", limit),
        ("grpc.max_concurrent_streams", 1 << 20),
        # Above 1,000 calls that wait for a handler gRPC drops some at random. A burst is what admission is for.
        ("grpc.server.max_pending_requests", 1 << 20),
        ("grpc.server.max_pending_requests_hard_limit", 1 << 20),
        # Envoy probes an idle connection every second (HTTP/2 keepalive); gRPC would close it as abuse.
        ("grpc.http2.min_ping_interval_without_data_ms", 100),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def bind(add_port: Callable[[], int], flag: str, wanted: int) -> int:
    """The port that a gRPC server is bound to. Raises CannotServe."""
    try:
        return add_port()
    except RuntimeError:  # all that gRPC says
        raise taken(flag, wanted) from None


def taken(flag: str, wanted: int) -> CannotServe:
    """The error of a port that somebody else has."""
    return CannotServe(f"--{flag}={wanted}: the port is taken; stop what listens there, or give another port")
