"""From a request to a decision. The Director only picks: what is known of the pool is `PoolState`'s, what is known of a
prompt comes from data producers, and what follows from a decision is its observers' affair."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from random import Random
from typing import NamedTuple, Protocol

from msgspec import Struct, field

from headrace.core import Decision, FailureMode, Refusal, RefusalReason, Request
from headrace.datalayer.ledger import InFlight
from headrace.datalayer.memory import PickMemory
from headrace.datalayer.pool_state import PoolState
from headrace.epp.policies import Policies
from headrace.extproc.events import PickNeeded
from headrace.scheduling import Facts, Outcome, Profile, SchedulingConfig, run
from headrace.scheduling.filters import SubsetFilter
from headrace.scheduling.outcome import Weighed
from headrace.scheduling.producer import Producers, RequestProducer
from headrace.scheduling.profile import Stopwatch

logger = logging.getLogger(__name__)

_NO_OUTCOME = Outcome()
_SUBSET = SubsetFilter()


class Failure(NamedTuple):
    """A pick that was not made in time ("deadline"), or failed ("fault"), and was answered by the failure mode."""

    mode: FailureMode
    cause: str


class Pick(Struct, eq=False):
    """One decision, as its steps fill it in; observers get it when it is over."""

    # As it is picked for.
    request: Request
    profile: Profile
    # Whether the stream that asks for it sees the response too.
    covers_response: bool = False
    # Nanoseconds since 1970.
    began_at: int = field(default_factory=time.time_ns)
    facts: Facts | None = None
    outcome: Outcome = _NO_OUTCOME
    # The in-flight entry to end later; None where nothing was sent.
    entry: InFlight | None = None
    # None: the client went before there was one.
    answer: Decision | Refusal | None = None
    failure: Failure | None = None
    # What scheduling took.
    seconds: float = 0.0


# Called with each pick that is over, in the request's path: takes a note, and no more.
PickObserver = Callable[[Pick], None]


class Admission(Protocol):
    """Decides whether and when a request may be picked for. Its waiting does not count against the pick deadline."""

    @property
    def may_wait(self) -> bool:
        """Whether `admit` may have to wait."""

    def admit_at_once(self, request: Request) -> Refusal | None:
        """`admit` where it does not have to wait."""

    async def admit(self, request: Request) -> Refusal | None:
        """Returns when the request may go on (None), or is to be refused. The pick follows at once."""

    def picked(self) -> None:
        """The request that was let go is in flight now, or was refused."""


@dataclass(eq=False)
class Director:
    """Picks an endpoint for each request. `request_producers` prepare a request before admission, `producers` its facts
    after it. `refuses` gives the answer to a request that is to go nowhere. `stopwatch` gives what measures the next
    decision's plugins, None for most."""

    config: SchedulingConfig
    pool: PoolState
    _: KW_ONLY
    policies: Policies
    admission: Admission
    producers: Producers
    memory: PickMemory
    rng: Random
    pick_deadline: float
    request_producers: Sequence[RequestProducer] = ()
    observers: Sequence[PickObserver] = ()
    stopwatch: Callable[[], Stopwatch | None] = lambda: None
    refuses: Callable[[Request], Refusal | None] = lambda request: None

    def reconfigure(self, config: SchedulingConfig) -> None:
        """Pick by another configuration from now on."""
        self.config = config

    async def decide(self, needed: PickNeeded) -> Pick:
        """The decision for one request: its `answer`. Never raises for what the request or the pool is like.

        A pick that takes longer than the deadline (the pool is not known yet, say), or fails, ends in the pool's
        failure mode."""
        pick = Pick(needed.request, self.config.profile, needed.covers_response)
        try:
            await self._decide(pick)
        finally:
            self._tell(pick)
        return pick

    def decide_at_once(self, needed: PickNeeded) -> Pick | None:
        """The decision where nothing has to be waited for. None where something may have to: then `decide`."""
        if not self.pool.synced or self.request_producers or self.admission.may_wait:
            return None
        pick = Pick(needed.request, self.config.profile, needed.covers_response)
        try:
            if self._apply_policies(pick):
                self._admitted(pick, self.admission.admit_at_once(pick.request))
        except Exception:  # noqa: BLE001 (logged there)
            self._failed(pick)
        finally:
            self._tell(pick)
        return pick

    def refused(self, request: Request, refusal: Refusal) -> None:
        """The stream refused a request by itself: observers learn of that too."""
        self._tell(Pick(request, self.config.profile, answer=refusal))

    def _tell(self, pick: Pick) -> None:
        for observe in self.observers:
            try:
                observe(pick)
            except Exception:  # the request has its answer
                logger.exception("an observer of picks failed", extra={"request_id": pick.request.request_id})

    async def _decide(self, pick: Pick) -> None:
        if not self._apply_policies(pick):
            return
        try:
            if not self.pool.synced:
                await self._pool_known()
            for producer in self.request_producers:
                # Before admission: who is admitted is picked for at once.
                pick.request = await producer.prepare_request(pick.request)
            self._admitted(pick, await self.admission.admit(pick.request))
        except TimeoutError:
            self._by_failure_mode(pick, "deadline", "the pool's endpoints are not known yet")
        except Exception:  # noqa: BLE001 (logged there)
            self._failed(pick)

    def _apply_policies(self, pick: Pick) -> bool:
        """Whether the policies let the request go on, which they may have changed."""
        applied = self.policies.apply(pick.request)
        if isinstance(applied, Refusal):
            pick.answer = applied
            return False
        pick.request = applied
        pick.answer = self.refuses(applied)
        return pick.answer is None

    def _admitted(self, pick: Pick, refusal: Refusal | None) -> None:
        """Admission has answered: pick, unless it refused."""
        pick.answer = refusal
        if refusal is None:
            self._pick(pick)
            self.admission.picked()

    def _failed(self, pick: Pick) -> None:
        """An exception is being handled. A fault of ours must end one pick, not the stream."""
        logger.exception("a pick failed", extra={"request_id": pick.request.request_id})
        self._by_failure_mode(pick, "fault", "the pick failed")

    async def _pool_known(self) -> None:
        """Waits for the pool's endpoints. Raises TimeoutError."""
        async with asyncio.timeout(self.pick_deadline):
            await self.pool.wait_synced()

    def _pick(self, pick: Pick) -> None:
        """Schedule, and send the request on its way."""
        started = time.perf_counter()
        profile = self.config.choose(pick.request)
        if profile is None:
            pick.answer = Refusal(400, RefusalReason.BAD_REQUEST, "there is no such scheduling profile")
            return
        pick.profile = profile
        pick.facts = facts = self._schedule(pick)
        pick.answer = self._send(pick, facts) if pick.outcome.picks else _no_pick(pick.outcome)
        pick.seconds = time.perf_counter() - started

    def _schedule(self, pick: Pick) -> Facts:
        """Filter, score and pick by the profile, among the endpoints as they are now. Gives what it went by."""
        store, profile, stopwatch = self.pool.store, pick.profile, self.stopwatch()
        facts = Facts(pick.request, self.pool.clock(), self.rng)
        columns = store.columns()
        self.producers.prepare(facts, store.snapshot)
        # Plugins are measured one by one.
        outcome = profile.quick.pick(columns, facts) if profile.quick is not None and stopwatch is None else None
        pick.outcome = run(profile, store.snapshot(), facts, stopwatch) if outcome is None else outcome
        return facts

    def _send(self, pick: Pick, facts: Facts) -> Decision:
        """Count the request for the endpoint that was picked, and have everyone learn from it."""
        outcome = pick.outcome
        assert outcome.state is not None
        key = outcome.state.key
        self._start(pick, key, facts.uncached_tokens(key))
        self.producers.picked(outcome.state, facts)
        headers = self.memory.remember(pick.profile, outcome.state, facts) if pick.profile.note_takers else ()
        return _decision(pick.request, outcome.picks, headers)

    def _start(self, pick: Pick, key: str, tokens: int = 0) -> None:
        pick.entry = self.pool.started(pick.request, key, attached=pick.covers_response, tokens=tokens)

    def _by_failure_mode(self, pick: Pick, cause: str, why: str) -> None:
        """FailClose: 503. FailOpen: any endpoint that is allowed, or, with none known, the gateway's own choice."""
        request, mode = pick.request, self.pool.failure_mode
        pick.failure = Failure(mode, cause)
        if pick.entry is not None:
            self.pool.finished(pick.entry)
        pick.entry, pick.facts, pick.outcome = None, None, _NO_OUTCOME
        if mode is FailureMode.CLOSE:
            reason = RefusalReason.PICK_DEADLINE if cause == "deadline" else RefusalReason.INTERNAL
            pick.answer = Refusal(503, reason, f"no endpoint was picked: {why}")
            return
        allowed = _SUBSET.keep(self.pool.store.snapshot(), Facts(request, self.pool.clock(), self.rng))
        if not allowed and request.subset is not None:
            pick.answer = Refusal(503, RefusalReason.NO_ENDPOINTS, "no ready endpoint is in the gateway's subset")
            return
        picks = (self.rng.choice(list(allowed)).key,) if allowed else ()
        for key in picks:
            self._start(pick, key)
        weighed = Weighed(picks, (0.0,) * len(picks))
        text = f"any endpoint, by the failure mode: {why}"
        pick.outcome = Outcome(picks, text, candidate_count=len(picks), weigh=lambda: weighed)
        pick.answer = _decision(request, picks)


def _decision(request: Request, picks: tuple[str, ...], headers: tuple[tuple[str, str], ...] = ()) -> Decision:
    """Where the request goes, under the name it was given by a rewrite, if any."""
    return Decision(picks, request.model if request.asked_model else None, headers)


def _no_pick(outcome: Outcome) -> Refusal:
    """Why there is no endpoint for a request: a full pool is worth another try, one without endpoints is not."""
    if outcome.saturated:
        return Refusal(429, RefusalReason.SATURATED, f"all model servers are busy: {outcome.reason}", 1)
    return Refusal(503, RefusalReason.NO_ENDPOINTS, f"no model server can take the request: {outcome.reason}")
