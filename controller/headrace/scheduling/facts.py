"""What a decision is made from: the state of each endpoint, and what is known of the request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from types import MappingProxyType
from typing import Any, NamedTuple

from msgspec import Struct

from headrace.core import Endpoint, Request
from headrace.scheduling.tokens import input_tokens, token_count


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
    # How many tokens its KV cache holds; 0: unknown.
    cache_tokens: int = 0

    def has_adapter_slot(self) -> bool:
        """Whether one more adapter fits beside those in use and queued."""
        return len(self.running_adapters | self.waiting_adapters) < self.max_adapters


class Binding(NamedTuple):
    """Where a session's last request went: a Pod as `namespace/name-rank-N`, and when (the picker's clock). It is kept
    for `ttl_seconds`."""

    pod: str
    used_at: float
    ttl_seconds: float = 0.0


class Facts(Struct, eq=False):
    """One request, and what data producers have prepared for it; made for each pick, as states are. Producers write it;
    filters, scorers and pickers only read it. `now` is in seconds, on any clock that only goes forward."""

    request: Request
    now: float
    rng: Random
    # The request's model is known to be an adapter.
    is_adapter: bool = False
    # By endpoint key, how many of the prompt's first `prefix_blocks` blocks its cache should hold; endpoints with none
    # are left out.
    prefix_blocks: int = 0
    prefix_matches: Mapping[str, int] = {}
    # Tokens in a prefix block.
    block_tokens: int = 64
    # Sessions by their identifier.
    sessions: Mapping[str, Binding] = {}
    # For endpoints that were picked for a prompt no cache had: the number of the last such pick, higher is later.
    cold_picks: Mapping[str, int] = {}
    # The hashes of the prompt's blocks of bytes, and its first tokens where they are known.
    prefix_hashes: Sequence[int] = ()
    tokens: Sequence[int] | None = None
    # In tokens, once somebody has asked.
    length: int | None = None
    # What other producers prepare, by a name that they choose: of the request, or by endpoint key.
    attributes: dict[str, Any] = {}

    def uncached_tokens(self, key: str) -> int:
        """About how many tokens of the prompt an endpoint has to compute."""
        if self.length is None:
            request, tokens = self.request, self.tokens
            self.length = input_tokens(request) if tokens is None else token_count(request, tokens)
        return max(0, self.length - self.prefix_matches.get(key, 0) * self.block_tokens)
