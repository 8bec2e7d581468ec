"""From a request to a decision, and what follows from it for the account of what is in flight.

The one place where conversation, scheduling and data layer meet. Belongs to one event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Protocol

from headrace.core import Decision, Endpoint, FailureMode, Refusal, RefusalReason, Request
from headrace.datalayer.ledger import InFlight, Ledger
from headrace.datalayer.memory import PickMemory
from headrace.datalayer.store import EndpointRecord, EndpointStore
from headrace.epp.decisions import DecisionLog
from headrace.epp.metrics import Metrics
from headrace.epp.policies import Policies
from headrace.extproc import Usage
from headrace.extproc.events import PickNeeded
from headrace.flowcontrol import FlowControlConfig, FlowController
from headrace.prefixes.approximate import PrefixIndex, block_hashes
from headrace.prefixes.kv_events import Batch
from headrace.prefixes.precise import PreciseIndex, in_common
from headrace.replicas.journal import Journal
from headrace.replicas.peer_accounts import PeerAccounts
from headrace.scheduling import EndpointState, Facts, Outcome, Profile, SchedulingConfig, run
from headrace.scheduling.filters import SubsetFilter
from headrace.scheduling.plugin import BindSession, ColdPick
from headrace.scheduling.tokens import BYTES_A_TOKEN, given_tokens, input_tokens, output_tokens

if TYPE_CHECKING:
    from headrace.epp.tracing import Tracer

logger = logging.getLogger(__name__)

_NO_OUTCOME = Outcome((), (), (), {}, "")
_SUBSET = SubsetFilter()


class Admission(Protocol):
    """Decides whether and when a request may be picked for. Its waiting does not count against the pick deadline."""

    async def admit(self, request: Request) -> Refusal | None:
        """Returns when the request may go on (None), or is to be refused. The pick follows at once."""


@dataclass(frozen=True, slots=True)
class Picked:
    """The outcome for the conversation, and the in-flight entry to end later (None where nothing was sent)."""

    outcome: Decision | Refusal
    entry: InFlight | None
    # The request as it was picked for, and among how many endpoints; for traces.
    request: Request | None = None
    candidates: int = 0


@dataclass(slots=True)
class ResponseTotals:
    """A response's body so far: its bytes, when its first piece came (streamed ones only), the usage it reported."""

    size: int = 0
    first_at: float | None = None
    usage: Usage | None = None


class Director:
    """Picks, and keeps the books. `clock` gives seconds that only go forward."""

    def __init__(
        self,
        *,
        config: SchedulingConfig,
        metrics: Metrics,
        clock: Callable[[], float],
        rng: Random,
        pick_deadline: float,
        decisions_kept: int,
        flow_control: FlowControlConfig | None = None,
        admission: Admission | None = None,
    ) -> None:
        self.store = EndpointStore()
        self.ledger = Ledger(self.store)
        self.index = PrefixIndex(config.prefix)
        self.decisions = DecisionLog(decisions_kept)
        self.metrics = metrics
        self.clock = clock
        self.failure_mode = FailureMode.CLOSE
        self.on_pick: Callable[[str], None] = lambda key: None
        self.policies = Policies(rng, metrics.rewritten)
        self.memory = PickMemory()
        # What servers tell of their caches; None where nobody listens to them.
        self.precise: PreciseIndex | None = None
        # Tells the tokens of a text prompt, in bounded time, or None.
        self.tokenize: Callable[[Request], Awaitable[tuple[int, ...] | None]] | None = None
        self.flow = FlowController(
            flow_control or FlowControlConfig(),
            states=self.store.snapshot,
            clock=clock,
            rng=rng,
            observer=metrics.flow_control,
        )
        # Where picks are traced.
        self.tracer: Tracer | None = None
        # Where other replicas serve the pool too: what they are told, and what they have told.
        self.journal: Journal | None = None
        self.peers: PeerAccounts | None = None
        self._config = config
        self._rng = rng
        self._deadline = pick_deadline
        self._admission = admission or self.flow
        self._synced = asyncio.Event()

    def join_peers(self, journal: Journal, peers: PeerAccounts) -> None:
        """Other replicas serve the pool too: they are told of our requests, and we of theirs."""
        self.journal, self.peers = journal, peers
        self.ledger.listener = journal
        peers.on_pick = lambda key: self.on_pick(key)

    @property
    def profile(self) -> Profile:
        """The profile in use; the first, where there are several."""
        return self._config.profile

    @property
    def synced(self) -> bool:
        """Whether the pool's endpoints are known."""
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        """Until they are."""
        await self._synced.wait()

    def reconfigure(self, config: SchedulingConfig, flow_control: FlowControlConfig) -> None:
        """Pick and admit by another configuration from now on. Nothing that is known or waits is lost, but for prefixes
        where blocks have another size."""
        self._config = config
        self.index.reconfigure(config.prefix)
        self.flow.reconfigure(flow_control)

    def kv_events(self, key: str, batch: Batch) -> None:
        """A server tells what its cache holds."""
        if self.precise is not None and self.precise.apply(key, batch):
            # Of text prompts only this much can be learnt from it: what was sent there is no longer there.
            self.index.empty(key)

    def kv_disconnected(self, key: str) -> None:
        """The connection to a server that tells what its cache holds broke."""
        if self.precise is not None:
            self.precise.disconnected(key)

    def replace_endpoints(self, endpoints: tuple[Endpoint, ...], failure_mode: FailureMode) -> None:
        """The pool is this from now on."""
        self.failure_mode = failure_mode
        came, gone = self.store.replace(endpoints)
        for endpoint in gone:
            self.index.remove(endpoint.key)
            self.memory.remove(endpoint.key)
            if self.precise is not None:
                self.precise.remove(endpoint.key)
            self.metrics.forget(endpoint)
        for endpoint in came:
            self.index.add(endpoint.key)
            if self.precise is not None:
                self.precise.add(endpoint.key)
            if self.peers is not None:
                self.peers.endpoint_came(endpoint.key, self.clock())
        if came or gone:
            logger.info(
                "the pool has %d endpoints",
                len(endpoints),
                extra={"came": [e.key for e in came][:50], "gone": [e.key for e in gone][:50]},
            )
        self._synced.set()
        self.flow.changed()

    async def decide(self, needed: PickNeeded) -> Picked:
        """The decision for one request. Never raises for what the request or the pool is like.

        A pick that takes longer than the deadline (the pool is not known yet, say), or fails, ends in the pool's
        failure mode."""
        tracer = self.tracer
        span = None if tracer is None else tracer.start(needed.request.headers)
        if tracer is None or span is None:
            return await self._decide(needed)
        try:
            picked = await self._decide(needed)
        except BaseException:
            # The client went while its request waited.
            tracer.end(span, self.metrics.pool_name, needed.request, None)
            raise
        record = picked.entry.record if picked.entry is not None else None
        pod = record.endpoint.pod_name if record is not None else ""
        request = picked.request or needed.request
        tracer.end(span, self.metrics.pool_name, request, picked.outcome, picked.candidates, pod)
        return picked

    async def _decide(self, needed: PickNeeded) -> Picked:
        request = self.policies.apply(needed.request)
        if isinstance(request, Refusal):
            return self._refused(needed.request, request, _NO_OUTCOME, 0.0)
        if request is not needed.request:
            needed = replace(needed, request=request)
        try:
            if not self._synced.is_set():
                async with asyncio.timeout(self._deadline):
                    await self._synced.wait()
            if self.tokenize is not None and self.precise is not None and self.precise.block_sizes():
                # Before admission: who is admitted is picked for at once.
                request = replace(request, tokens=await self.tokenize(request), body=b"")
                needed = replace(needed, request=request)
            refusal = await self._admission.admit(request)
            if refusal is not None:
                return self._refused(request, refusal, _NO_OUTCOME, 0.0)
            picked = self._pick(needed)
            self.flow.picked()
            return picked
        except TimeoutError:
            return self._by_failure_mode(needed, "deadline", "the pool's endpoints are not known yet")
        except Exception:  # a fault of ours must end one pick, not the stream
            logger.exception("a pick failed", extra={"request_id": request.request_id})
            return self._by_failure_mode(needed, "fault", "the pick failed")

    def _pick(self, needed: PickNeeded) -> Picked:
        started = time.perf_counter()
        request = needed.request
        index = self.index
        hashes = block_hashes(request.model, request.prompt, index.settings) if request.prompt else []
        matches: Mapping[str, int] = index.matches(hashes)
        blocks, block_tokens = len(hashes), index.settings.block_tokens
        now = self.clock()
        is_adapter = self.store.is_adapter(request.model)
        adapter = request.model if is_adapter else ""
        tokens = given_tokens(request) if self.precise is not None else None
        if self.precise is not None and tokens is not None:
            block_tokens, blocks, matches = in_common(self.precise, adapter, tokens, now, matches, block_tokens)
        profile = self._config.choose(request)
        if profile is None:
            refusal = Refusal(400, RefusalReason.BAD_REQUEST, "there is no such scheduling profile")
            return self._refused(request, refusal, _NO_OUTCOME, time.perf_counter() - started)
        states = self.store.snapshot()
        facts = Facts(
            request,
            now,
            self._rng,
            is_adapter,
            blocks,
            matches,
            block_tokens,
            self.memory.sessions,
            self.memory.cold_picks,
        )
        outcome = run(profile, states, facts, self.metrics.plugins.of_next())
        if not outcome.picks:
            return self._refused(request, _no_pick(outcome), outcome, time.perf_counter() - started)
        key = outcome.picks[0]
        matched = matches.get(key, 0)
        length = input_tokens(request) if tokens is None else len(tokens)
        entry = self._start(needed, key, now, max(0, length - matched * block_tokens))
        if self.precise is not None and tokens is not None:
            self.precise.expect(key, adapter, tokens, now)
        metrics = entry.record.metrics if entry.record is not None else None
        index.insert(hashes, key, cache_tokens=metrics.cache_tokens if metrics is not None else 0)
        if self.journal is not None:
            self.journal.sent(key, hashes)
        headers = self._remember(profile, key, states, facts) if profile.note_takers else ()
        endpoint = entry.record.endpoint if entry.record is not None else None
        seconds = time.perf_counter() - started
        self.metrics.scheduling_seconds.observe(seconds)
        if blocks:
            self.metrics.prefix_hit_ratio.observe(matched / blocks)
            self.metrics.prefix_hit_bytes.observe(matched * block_tokens * BYTES_A_TOKEN)
        self.decisions.add(
            request,
            profile,
            outcome,
            prompt_blocks=blocks,
            prefix_matches=matches,
            refusal=None,
            pod=endpoint.pod_name if endpoint is not None else "",
            seconds=seconds,
            reason=outcome.reason,
        )
        return Picked(_decision(request, outcome.picks, headers), entry, request, len(outcome.candidates))

    def _remember(
        self, profile: Profile, key: str, states: Sequence[EndpointState], facts: Facts
    ) -> tuple[tuple[str, str], ...]:
        """Keep what the profile's plugins want kept of a pick. Gives the headers they want to tell the client."""
        picked = next(state for state in states if state.key == key)
        headers = []
        for note in (note for plugin in profile.note_takers for note in plugin.notes(picked, facts)):
            if isinstance(note, BindSession):
                self.memory.bind(note, facts.now)
            elif isinstance(note, ColdPick):
                self.memory.cold_pick(note)
            else:
                headers.append((note.name, note.value))
        return tuple(headers)

    def _start(self, needed: PickNeeded, key: str, now: float, tokens: int = 0) -> InFlight:
        request = needed.request
        entry = self.ledger.start(
            request.request_id,
            key,
            request.model,
            request.body_size,
            now,
            attached=needed.covers_response,
            asked=request.asked,
            tokens=tokens,
        )
        if self.flow.config.enabled:
            entry.flow, entry.priority = request.fairness_id, request.priority
            entry.output_tokens = output_tokens(request)
            self.flow.charge(entry.priority, entry.flow, input_tokens(request), 0)
        if entry.record is not None:
            self.metrics.picked(request, entry.record.endpoint)
        self.on_pick(key)
        return entry

    def _refused(self, request: Request, refusal: Refusal, outcome: Outcome, seconds: float) -> Picked:
        self.metrics.not_picked(request, refusal.status, refusal.reason.value)
        self.decisions.add(
            request,
            self._config.profile,
            outcome,
            prompt_blocks=0,
            prefix_matches={},
            refusal=refusal,
            pod="",
            seconds=seconds,
            reason=refusal.message,
        )
        return Picked(refusal, None, request, len(outcome.candidates))

    def _by_failure_mode(self, needed: PickNeeded, cause: str, why: str) -> Picked:
        """FailClose: 503. FailOpen: any endpoint that is allowed, or, with none known, the gateway's own choice."""
        mode = self.failure_mode
        self.metrics.failure_mode_answers.labels(mode.value, cause).inc()
        request = needed.request
        if mode is FailureMode.CLOSE:
            reason = RefusalReason.PICK_DEADLINE if cause == "deadline" else RefusalReason.INTERNAL
            return self._refused(request, Refusal(503, reason, f"no endpoint was picked: {why}"), _NO_OUTCOME, 0.0)
        states = self.store.snapshot()
        allowed = _SUBSET.keep(states, Facts(request, self.clock(), self._rng))
        if allowed:
            key = self._rng.choice(list(allowed)).key
            entry = self._start(needed, key, self.clock())
            return Picked(_decision(request, (key,)), entry, request, len(allowed))
        if request.subset is not None:
            refusal = Refusal(503, RefusalReason.NO_ENDPOINTS, "no ready endpoint is in the gateway's subset")
            return self._refused(request, refusal, _NO_OUTCOME, 0.0)
        return Picked(_decision(request, ()), None, request)

    # What streams tell of a request's course.

    def observed(self, request_id: str, destination: str) -> InFlight | None:
        """An observation stream has begun; the entry it has to end, if it concerns this pool."""
        return self.ledger.observe(request_id, destination, self.clock())

    def response_started(self, entry: InFlight, served: str, status: int) -> None:
        """The response's headers were seen."""
        if served and self.ledger.move(entry, served, self.clock()):
            self.metrics.served_elsewhere.inc()
        self.metrics.answered(entry, status)

    def first_token(self, entry: InFlight) -> None:
        """The first piece of a streamed response went by."""
        self.ledger.prompt_computed(entry)
        self.metrics.first_token(entry, self.clock() - entry.started_at)

    def responded(self, entry: InFlight, response: ResponseTotals) -> None:
        """The response is complete, and its body was seen. Tell it before `finish`."""
        now = self.clock()
        decode = None if response.first_at is None else now - response.first_at
        if response.usage is not None:
            entry.output_tokens = response.usage.output_tokens
        self.metrics.responded(entry, response.size, response.usage, now - entry.started_at, decode)

    def finish(self, entry: InFlight) -> None:
        """The request is over, however it ended. May be told twice."""
        now = self.clock()
        if self.ledger.finish(entry, now):
            self.metrics.ended(entry, now - entry.started_at)
            self.flow.charge(entry.priority, entry.flow, 0, entry.output_tokens)
            self.flow.changed()

    def scraped(self, record: EndpointRecord) -> None:
        """A server's page has come. What it no longer has, and nobody observes, is over."""
        metrics = record.metrics
        if metrics is None or metrics.running is None or metrics.waiting is None or record.scraped_at is None:
            return
        requests = metrics.running + metrics.waiting
        for _ in self.ledger.reconcile(record, requests, record.scraped_at, self.clock()):
            self.metrics.unobserved.inc()
        self.flow.changed()

    def expire(self) -> None:
        """End what nobody will tell the end of. Call it about once a second."""
        now = self.clock()
        self.memory.expire(now)
        for replica in self.peers.expire(now) if self.peers is not None else ():
            logger.warning("replica %s is silent: its requests are not counted any more", replica)
            self.flow.changed()
        for entry in self.ledger.expire(now):
            self.flow.changed()
            self.metrics.unobserved.inc()
            logger.debug("a pick was never observed", extra={"request_id": entry.request_id})


def _decision(request: Request, picks: tuple[str, ...], headers: tuple[tuple[str, str], ...] = ()) -> Decision:
    """Where the request goes, under the name it was given by a rewrite, if any."""
    return Decision(picks, request.model if request.asked_model else None, headers)


def _no_pick(outcome: Outcome) -> Refusal:
    """Why there is no endpoint for a request: a full pool is worth another try, one without endpoints is not."""
    if outcome.saturated:
        return Refusal(429, RefusalReason.SATURATED, f"all model servers are busy: {outcome.reason}", 1)
    return Refusal(503, RefusalReason.NO_ENDPOINTS, f"no model server can take the request: {outcome.reason}")
