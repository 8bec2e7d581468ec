"""The picker without I/O: every object that a decision needs, built once, each given what it needs."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random

from headrace.core import Request
from headrace.datalayer.ledger import Ledger
from headrace.datalayer.memory import PickMemory
from headrace.datalayer.pool_state import PoolState
from headrace.datalayer.store import EndpointStore
from headrace.epp.decisions import DecisionLog
from headrace.epp.director import Director, Pick, PickObserver
from headrace.epp.metrics import Metrics
from headrace.epp.observers import AdmissionObserver, MetricsObserver
from headrace.epp.policies import Policies
from headrace.flowcontrol import FlowControlConfig, FlowController
from headrace.prefixes.approximate import PrefixIndex
from headrace.prefixes.kv_events import Batch
from headrace.prefixes.precise import PreciseIndex
from headrace.prefixes.tokenizer import TokenProducer
from headrace.replicas.journal import Journal
from headrace.replicas.peer_accounts import PeerAccounts
from headrace.scheduling import SchedulingConfig
from headrace.scheduling.producer import Producers

logger = logging.getLogger(__name__)

Tokenize = Callable[[Request], Awaitable[tuple[int, ...] | None]]


@dataclass(frozen=True)
class Replicas:
    """What other replicas are told, and what they have told."""

    journal: Journal
    accounts: PeerAccounts


@dataclass(frozen=True)
class Components:
    """The parts of one picker. Belongs to one event loop."""

    metrics: Metrics
    pool: PoolState
    director: Director
    policies: Policies
    decisions: DecisionLog
    flow: FlowController
    producers: Producers
    memory: PickMemory
    index: PrefixIndex
    # Where servers report their caches.
    precise: PreciseIndex | None
    # Where other replicas serve the pool too.
    replicas: Replicas | None

    def reconfigure(self, config: SchedulingConfig, flow_control: FlowControlConfig) -> None:
        """Pick and admit by another configuration from now on. Nothing that is known or waits is lost, but for prefixes
        where blocks have another size."""
        self.director.reconfigure(config)
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
        self.pool.expire()
        for replica in self.replicas.accounts.expire() if self.replicas is not None else ():
            logger.warning("replica %s is silent: its requests are not counted any more", replica)
            self.flow.changed()


def compose(
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
    replica: tuple[str, str] | None = None,
    observers: Sequence[PickObserver] = (),
) -> Components:
    """The parts of a picker. `clock` gives seconds that only go forward. `on_pick` is told the endpoint of each pick,
    of other replicas' too. `kv_events`: servers report their caches; `tokenize` has the tokens of text prompts then.
    `replica`: our id among replicas, and our name for people. `observers` get every pick that is over."""
    store = EndpointStore()
    index = PrefixIndex(config.prefix)
    memory = PickMemory()
    precise = PreciseIndex() if kv_events else None
    producers = Producers(
        [store.adapters, index, *([precise] if precise is not None else []), memory], config.plugins.values()
    )
    policies = Policies(rng, metrics.rewritten)
    decisions = DecisionLog(decisions_kept)
    counted = MetricsObserver(metrics)
    flow = FlowController(flow_control, states=store.snapshot, clock=clock, rng=rng, observer=metrics.flow_control)
    journal = Journal(replica[0], index, clock=clock, name=replica[1]) if replica else None
    ledger = Ledger(store, [journal] if journal else [])
    replicas = None
    if journal is not None:
        accounts = PeerAccounts(store, ledger, index, me=journal.replica, clock=clock, on_pick=on_pick)
        replicas = Replicas(journal, accounts)
    pool = PoolState(
        store,
        ledger,
        clock=clock,
        followers=[producers, *([replicas.accounts] if replicas else [])],
        observers=[counted, AdmissionObserver(flow)],
    )

    def tell_replicas(pick: Pick) -> None:
        if journal is not None and pick.entry is not None and pick.facts is not None:
            journal.sent(pick.entry.endpoint, pick.facts.prefix_hashes)

    def tell_of_endpoint(pick: Pick) -> None:
        if pick.entry is not None:
            on_pick(pick.entry.endpoint)

    told = [tell_replicas] if journal else []
    director = Director(
        config,
        pool,
        policies=policies,
        admission=flow,
        producers=producers,
        memory=memory,
        rng=rng,
        pick_deadline=pick_deadline,
        request_producers=[TokenProducer(tokenize, precise)] if tokenize and precise is not None else [],
        observers=[counted.decided, decisions.add, tell_of_endpoint, *told, *observers],
        stopwatch=metrics.plugins.of_next,
    )
    return Components(
        metrics=metrics,
        pool=pool,
        director=director,
        policies=policies,
        decisions=decisions,
        flow=flow,
        producers=producers,
        memory=memory,
        index=index,
        precise=precise,
        replicas=replicas,
    )
