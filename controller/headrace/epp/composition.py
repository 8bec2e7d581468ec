"""The picker without I/O: every object that a decision needs, built once, each given what it needs."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random

from headrace.core import Request
from headrace.datalayer.evidence import Origin
from headrace.datalayer.health_watch import HealthWatch
from headrace.datalayer.killers import Killers
from headrace.datalayer.ledger import InFlight, Ledger
from headrace.datalayer.memory import PickMemory
from headrace.datalayer.pool_state import PoolObserver, PoolState
from headrace.datalayer.store import EndpointStore
from headrace.epp.decisions import DecisionLog
from headrace.epp.director import Director, Pick, PickObserver
from headrace.epp.metrics import Metrics
from headrace.epp.policies import Policies
from headrace.extproc.metadata import last_forwarded
from headrace.flowcontrol import FlowControlConfig, FlowController
from headrace.prediction.watch import LatencyWatch, goes_by_predictions
from headrace.prefixes.approximate import PrefixIndex
from headrace.prefixes.kv_events import Batch
from headrace.prefixes.precise import PreciseIndex
from headrace.prefixes.tokenizer import TokenProducer
from headrace.replicas.journal import Journal
from headrace.replicas.peer_accounts import PeerAccounts
from headrace.scheduling import SchedulingConfig
from headrace.scheduling.producer import FollowsEndpoints, Producer, Producers
from headrace.scheduling.slots import Slots
from headrace.scheduling.tokens import input_tokens, output_tokens

logger = logging.getLogger(__name__)

# Of a prompt too short for a hash of its first block.
_SHORT = 256

Tokenize = Callable[[Request], Awaitable[tuple[int, ...] | None]]


@dataclass(eq=False)
class _Admitted(PoolObserver):
    """Charges flows for what they get, and has admission look again when load changes."""

    flow: FlowController

    def load_changed(self) -> None:
        self.flow.changed()

    def started(self, entry: InFlight, request: Request) -> None:
        if self.flow.config.enabled:
            entry.flow, entry.priority = request.fairness_id, request.priority
            entry.output_tokens = output_tokens(request)
            self.flow.charge(entry.priority, entry.flow, input_tokens(request), 0)

    def finished(self, entry: InFlight, seconds: float) -> None:
        if self.flow.config.enabled:
            self.flow.charge(entry.priority, entry.flow, 0, entry.output_tokens)


@dataclass(eq=False)
class _Sent:
    """Tells the scraper, other replicas and the watch over the servers' health where requests went."""

    on_pick: Callable[[str], None]
    journal: Journal
    health: HealthWatch

    def decided(self, pick: Pick) -> None:
        """A pick is over."""
        if pick.entry is not None:
            self.on_pick(pick.entry.endpoint)
            hashes = pick.facts.prefix_hashes if pick.facts is not None else ()
            if pick.facts is not None:
                self.journal.sent(pick.entry.endpoint, hashes)
            self.health.sent(pick.entry, _origin(pick.request, hashes), pick.outcome.picks)


def _origin(request: Request, hashes: Sequence[int]) -> Origin:
    """Whose request it is: by its fairness id, else by the address that the gateway has seen it come from."""
    flow = request.fairness_id or last_forwarded(request.headers)
    return Origin(flow, hashes[0] if hashes else hash(request.prompt[:_SHORT]))


class Components:
    """The parts of a picker. Belongs to one event loop.

    `clock` gives seconds that only go forward. `on_pick` is told the endpoint of each pick, of other replicas' too.
    `kv_events`: servers report their caches; `tokenize` has the tokens of text prompts then. `replica`: our id among
    replicas, and our name for people. `observers` get every pick that is over. `health_filter`: picks may go by
    the servers' health."""

    def __init__(
        self,
        *,
        config: SchedulingConfig,
        flow_control: FlowControlConfig,
        metrics: Metrics,
        clock: Callable[[], float],
        rng: Random,
        pick_deadline: float,
        decisions_kept: int,
        on_pick: Callable[[str], None] = lambda key: None,
        kv_events: bool = False,
        tokenize: Tokenize | None = None,
        replica: tuple[str, str] = ("", ""),
        observers: Sequence[PickObserver] = (),
        health_filter: bool = True,
    ) -> None:
        slots = Slots()
        store = EndpointStore(slots)
        self.metrics = metrics
        self.policies = Policies(rng, metrics.rewritten)
        self.decisions = DecisionLog(decisions_kept)
        self.flow = FlowController(
            flow_control, states=store.snapshot, clock=clock, rng=rng, observer=metrics.flow_control
        )
        self.memory = PickMemory()
        self.index = PrefixIndex(config.prefix, slots=slots)
        self.precise = PreciseIndex() if kv_events else None
        self.health = HealthWatch(store, clock=clock, tells=health_filter)
        self.killers = Killers(clock)
        self.latency = LatencyWatch(store, clock=clock, wanted=goes_by_predictions(config))
        built_in: list[Producer] = [store.adapters, self.index, self.memory, self.health]
        # The last one goes by what the others say of the prompt.
        built_in += [self.latency] if self.precise is None else [self.precise, self.latency]
        self.producers = Producers(built_in, config.plugins.values())
        self.journal = Journal(replica[0], self.index, clock=clock, name=replica[1])
        ledger = Ledger(store, [self.journal])
        self.health.on_failure = self.journal.failed
        self.accounts = PeerAccounts(
            store, ledger, self.index, me=replica[0], clock=clock, on_pick=on_pick, on_failure=self.health.told
        )
        seeing: list[PoolObserver] = [metrics, _Admitted(self.flow), self.health, self.killers, self.latency]
        followers: list[FollowsEndpoints] = [self.producers, self.accounts, self.killers]
        self.pool = PoolState(store, ledger, clock=clock, followers=followers, observers=seeing)
        sent = _Sent(on_pick, self.journal, self.health)
        self.director = Director(
            config,
            self.pool,
            policies=self.policies,
            refuses=self.killers.refusal,
            admission=self.flow,
            producers=self.producers,
            memory=self.memory,
            rng=rng,
            pick_deadline=pick_deadline,
            request_producers=[TokenProducer(tokenize, self.precise)] if tokenize and self.precise is not None else [],
            observers=[metrics.decided, self.decisions.add, sent.decided, *observers],
            stopwatch=metrics.plugins.of_next,
        )

    def reconfigure(self, config: SchedulingConfig, flow_control: FlowControlConfig) -> None:
        """Pick and admit by another configuration from now on. Nothing that is known or waits is lost, but for prefixes
        where blocks have another size."""
        self.director.reconfigure(config)
        self.latency.wanted = goes_by_predictions(config)
        self.producers.configure(config.plugins.values())
        self.index.reconfigure(config.prefix)
        self.flow.reconfigure(flow_control)

    def kv_events(self, key: str, batch: Batch) -> None:
        """A server reports what its cache holds."""
        if self.precise is not None and self.precise.apply(key, batch):
            # Of text prompts only this much can be learnt from it: what was sent there is no longer there.
            self.index.empty(key)

    def expire(self) -> None:
        """Drop what is too old. Call it about once a second."""
        self.memory.expire(self.pool.clock())
        if self.precise is not None:
            self.precise.expire(self.pool.clock())
        self.pool.expire()
        self.killers.expire()
        self.latency.expire()
        for replica in self.accounts.expire():
            logger.warning("replica %s is silent: its requests are not counted any more", replica)
            self.flow.changed()
