"""What a decision is made from: the state of each endpoint, and what is known of the request."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from types import MappingProxyType
from typing import NamedTuple

from headrace.core import Endpoint, Request


class EndpointState(NamedTuple):
    """One endpoint at one moment. A NamedTuple: states are rebuilt with every pick, and it is the cheapest value.

    `waiting` and `running` are requests: what the server last said, corrected by what the picker sent it and saw it
    finish since. `kv_usage` is the used share of its KV cache, 0..1. `fresh` is false where the server's metrics are
    missing or too old: then the counts are the picker's own."""

    key: str
    endpoint: Endpoint
    waiting: int = 0
    running: int = 0
    kv_usage: float = 0.0
    in_flight: int = 0
    in_flight_bytes: int = 0
    # Adapters in use on the server, as it says and as the picker has sent; and those it only queues.
    running_adapters: frozenset[str] = frozenset()
    waiting_adapters: frozenset[str] = frozenset()
    # Adapters that should still be loaded, in use or not: the last ones sent there, as many as fit.
    resident_adapters: frozenset[str] = frozenset()
    # How many adapters the server holds at once; 0: none, or unknown.
    max_adapters: int = 0
    # Base model names the server reports; empty where unknown.
    models: frozenset[str] = frozenset()
    fresh: bool = True
    # About how many prompt tokens of the requests in flight its prefix cache does not have.
    in_flight_tokens: int = 0
    # Metrics that the configuration names beyond the usual ones, by its own name for them.
    custom: Mapping[str, float] = MappingProxyType({})

    def has_adapter_slot(self) -> bool:
        """Whether one more adapter fits beside those in use and queued."""
        return len(self.running_adapters | self.waiting_adapters) < self.max_adapters


class Binding(NamedTuple):
    """Where a session's last request went: a Pod as `namespace/name-rank-N`, and when (the picker's clock)."""

    pod: str
    used_at: float


_NO_MATCHES: Mapping[str, int] = MappingProxyType({})
_NO_SESSIONS: Mapping[str, Binding] = MappingProxyType({})


class Facts(NamedTuple):
    """One request, and what was looked up for it; made for each pick, as states are. `now` is in seconds, on any clock
    that only goes forward.

    `prefix_matches` has, by endpoint key, how many of the prompt's first `prefix_blocks` blocks its cache should hold;
    endpoints with none are left out. `is_adapter`: the request's model is known to be an adapter."""

    request: Request
    now: float
    rng: Random
    is_adapter: bool = False
    prefix_blocks: int = 0
    prefix_matches: Mapping[str, int] = _NO_MATCHES
    # Tokens in a prefix block.
    block_tokens: int = 64
    # Sessions by their identifier.
    sessions: Mapping[str, Binding] = _NO_SESSIONS
    # For endpoints that were picked for a prompt no cache had: the number of the last such pick, higher is later.
    cold_picks: Mapping[str, int] = _NO_MATCHES
