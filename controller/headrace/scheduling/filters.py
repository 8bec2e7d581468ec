"""Filters: which candidates stay in the race.

Source of those under upstream names: Gateway API Inference Extension v1.5.0 and llm-d-router, plugin documentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from itertools import chain
from operator import eq, ge, gt, le, lt, ne
from typing import ClassVar, Literal

from msgspec import field

from headrace.config.decode import AnyNumber, Number, Parameters, Refused, Share, Text, Whole
from headrace.core import split_key
from headrace.core.endpoint import InvalidAddress
from headrace.protocol import http
from headrace.scheduling.facts import EndpointState, Facts


class AdapterAffinityFilter(Parameters, frozen=True):
    """Keeps an adapter's requests on the servers that have it, while these are not much longer queued than the rest.

    Where none has it, those with a free adapter slot stay, then those with a slot whose adapter others have too.
    Requests for anything that is not known to be an adapter pass unfiltered. `queue_slack` is by how many waiting
    requests a server with the adapter may exceed the least queued one: loading an adapter costs about what a few
    requests' waiting does."""

    type_name: ClassVar[str] = "adapter-affinity-filter"
    queue_slack: Whole = 8

    def keep(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[EndpointState]:
        if not facts.is_adapter:
            return states
        model = facts.request.model
        limit = min(state.waiting for state in states) + self.queue_slack
        near = [state for state in states if state.waiting <= limit]
        having = [state for state in near if model in state.resident_adapters]
        if having:
            return having
        # A server that has not had an adapter's request yet does not say how many it takes: as many as the others.
        most = max(state.max_adapters for state in states)
        rows = [(s, s.running_adapters | s.resident_adapters, s.max_adapters or most) for s in near]
        # A page may list as running what ended since, and what takes turns with others in a slot.
        running = [row for row in rows if model in row[0].running_adapters]
        at_home = [s for s, held, slots in running if len(held) <= slots]
        free = at_home or [s for s, held, slots in rows if len(held) < slots]
        if free:
            return free
        # Before two take turns in one slot: the slot of one that other servers hold as well, best one at rest.
        homes = Counter(chain.from_iterable(held for _, held, _ in rows))
        doubled = [row for row in rows if sum(homes[name] == 1 for name in row[1]) < row[2]]
        return _at_rest(doubled) or [s for s, _, _ in doubled or running] or _at_rest(rows) or near


def _at_rest(rows: Sequence[tuple[EndpointState, Set[str], int]]) -> list[EndpointState]:
    """Those with a slot whose adapter nobody uses just now. A row: a server, the adapters it holds, its slots."""
    return [state for state, _, slots in rows if len(state.running_adapters) < slots]


class PrefixCacheAffinityFilter(Parameters, frozen=True):
    """Keeps the endpoints whose cache should have at least `affinity_threshold` of the prompt's blocks; all, where none
    has, at random with `exploration_probability`, or where waiting for the best of them costs too much: its prefill
    work in flight takes `max_ttft_penalty_ms` longer than that of the best other endpoint.

    Time is tokens in flight / `peak_prefill_throughput` (tokens a second)."""

    type_name: ClassVar[str] = "prefix-cache-affinity-filter"
    affinity_threshold: Share = 0.8
    exploration_probability: Share = 0.0
    max_ttft_penalty_ms: Number = field(default=18_000.0, name="maxTTFTPenaltyMs")
    peak_prefill_throughput: Number = 15_928.0
    # Nothing predicts latencies here.
    ttft_source: Literal["prefillThroughput"] = "prefillThroughput"

    def __post_init__(self) -> None:
        if self.max_ttft_penalty_ms and not self.peak_prefill_throughput:
            raise Refused("peakPrefillThroughput", "give tokens a second, over 0, or maxTTFTPenaltyMs: 0")

    def keep(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[EndpointState]:
        blocks, matches = facts.prefix_blocks, facts.prefix_matches
        if len(states) <= 1 or self.affinity_threshold <= 0 or not blocks or not matches:
            return states
        if self.exploration_probability and facts.rng.random() < self.exploration_probability:
            return states
        enough = self.affinity_threshold * blocks
        having = [state for state in states if matches.get(state.key, 0) >= enough]
        if not having or len(having) == len(states):
            return states
        if self.max_ttft_penalty_ms:
            others = [state for state in states if matches.get(state.key, 0) < enough]
            tokens = min(s.in_flight_tokens for s in having) - min(s.in_flight_tokens for s in others)
            if tokens / self.peak_prefill_throughput * 1000.0 > self.max_ttft_penalty_ms:
                return states
        return having


_HOLDS: Mapping[str, Callable[[float, float], bool]] = {
    "LessThan": lt,
    "LessThanOrEqual": le,
    "GreaterThan": gt,
    "GreaterThanOrEqual": ge,
    "Equal": eq,
    "NotEqual": ne,
}


class _Comparison(Parameters, frozen=True):
    operator: Literal["LessThan", "LessThanOrEqual", "GreaterThan", "GreaterThanOrEqual", "Equal", "NotEqual"]
    value: AnyNumber = 0.0


class _Threshold(Parameters, frozen=True):
    type: Literal["threshold"]
    threshold: _Comparison


class EndpointAttributeFilter(Parameters, frozen=True):
    """Keeps endpoints whose metric of the configuration's own compares as asked with a value."""

    type_name: ClassVar[str] = "endpoint-attribute-filter"
    attribute: Text
    algorithm: _Threshold
    on_missing: Literal["Pass", "Fail"] = "Pass"
    fallback_on_empty: bool = False

    def keep(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[EndpointState]:
        wanted = self.algorithm.threshold
        holds, passes = _HOLDS[wanted.operator], self.on_missing == "Pass"
        found = [(state, state.custom.get(self.attribute)) for state in states]
        kept = [state for state, value in found if (passes if value is None else holds(value, wanted.value))]
        return states if not kept and self.fallback_on_empty else kept


class HeaderBasedTestingFilter(Parameters, frozen=True):
    """For conformance tests: keeps what a request header names, `ip` or `ip:port`, comma separated, in that order.
    Nothing without the header."""

    type_name: ClassVar[str] = "header-based-testing-filter"

    def keep(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[EndpointState]:
        named = [
            _normal(entry.strip()) for entry in facts.request.headers.get(http.CONFORMANCE_SELECTION, "").split(",")
        ]
        order = {entry: at for at, entry in reversed(list(enumerate(named))) if entry}
        found = [
            (min(order.get(s.key, len(named)), order.get(s.endpoint.address, len(named))), at, s)
            for at, s in enumerate(states)
        ]
        return [state for place, _, state in sorted(found, key=lambda f: f[:2]) if place < len(named)]


class SubsetFilter:
    """The gateway's subset hint: endpoints named as `ip:port`, or by `ip` alone. Not configurable: always the first."""

    type_name: ClassVar[str] = "subset-filter"

    def keep(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[EndpointState]:
        subset = facts.request.subset
        if subset is None:
            return states
        allowed = {_normal(entry) for entry in subset}
        return [state for state in states if state.key in allowed or state.endpoint.address in allowed]


def _normal(entry: str) -> str:
    """An entry as keys and addresses are written here; brackets around a lone IPv6 address are dropped."""
    try:
        address, port = split_key(entry)
    except InvalidAddress:
        return entry.strip("[]")
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
