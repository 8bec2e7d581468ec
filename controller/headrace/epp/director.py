"""From a request to a decision, and what follows from it for the account of what is in flight.

The one place where conversation, scheduling and data layer meet. Belongs to one event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Protocol

from headrace.core import Decision, Endpoint, FailureMode, Refusal, RefusalReason, Request
from headrace.datalayer.ledger import InFlight, Ledger
from headrace.datalayer.prefix import PrefixIndex, block_hashes
from headrace.datalayer.store import EndpointStore
from headrace.epp.decisions import DecisionLog
from headrace.epp.metrics import Metrics
from headrace.epp.policies import Policies
from headrace.extproc import Usage
from headrace.extproc.events import PickNeeded
from headrace.scheduling import EndpointState, Facts, Outcome, Profile, SchedulingConfig, run
from headrace.scheduling.filters import SubsetFilter

logger = logging.getLogger(__name__)

_NO_OUTCOME = Outcome((), (), (), {}, "")
_SUBSET = SubsetFilter()


class Admission(Protocol):
    """Decides whether and when a request may be picked for. Its waiting does not count against the pick deadline."""

    async def admit(self, request: Request) -> Refusal | None:
        """Returns when the request may go on (None), or is to be refused."""


class Selection(Protocol):
    """Another way to pick, for the requests that it is meant for."""

    def pick(self, request: Request, states: Sequence[EndpointState]) -> Outcome | None:
        """The pick among the pool's endpoints; None where the request is not for this way."""


class AdmitAll:
    """No admission control."""

    async def admit(self, request: Request) -> Refusal | None:
        """At once."""
        return None


@dataclass(frozen=True, slots=True)
class Picked:
    """The outcome for the conversation, and the in-flight entry to end later (None where nothing was sent)."""

    outcome: Decision | Refusal
    entry: InFlight | None


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
        admission: Admission | None = None,
        selection: Selection | None = None,
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
        self._profile = config.profile
        self._rng = rng
        self._deadline = pick_deadline
        self._admission = admission
        self._selection = selection
        self._synced = asyncio.Event()

    @property
    def profile(self) -> Profile:
        """The profile in use."""
        return self._profile

    @property
    def synced(self) -> bool:
        """Whether the pool's endpoints are known."""
        return self._synced.is_set()

    def replace_endpoints(self, endpoints: tuple[Endpoint, ...], failure_mode: FailureMode) -> None:
        """The pool is this from now on."""
        self.failure_mode = failure_mode
        came, gone = self.store.replace(endpoints)
        for endpoint in gone:
            self.index.remove(endpoint.key)
            self.metrics.forget(endpoint)
        for endpoint in came:
            self.index.add(endpoint.key)
        if came or gone:
            logger.info(
                "the pool has %d endpoints",
                len(endpoints),
                extra={"came": [e.key for e in came][:50], "gone": [e.key for e in gone][:50]},
            )
        self._synced.set()

    async def decide(self, needed: PickNeeded) -> Picked:
        """The decision for one request. Never raises for what the request or the pool is like.

        A pick that takes longer than the deadline (the pool is not known yet, say), or fails, ends in the pool's
        failure mode."""
        request = self.policies.apply(needed.request)
        if request is not needed.request:
            needed = replace(needed, request=request)
        if self._admission is not None:
            refusal = await self._admission.admit(request)
            if refusal is not None:
                return self._refused(request, refusal, _NO_OUTCOME, 0.0)
        try:
            if not self._synced.is_set():
                async with asyncio.timeout(self._deadline):
                    await self._synced.wait()
            return self._pick(needed)
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
        matches = index.matches(hashes)
        now = self.clock()
        states = self.store.snapshot()
        facts = Facts(request, now, self._rng, self.store.is_adapter(request.model), len(hashes), matches)
        outcome = self._selection.pick(request, states) if self._selection is not None else None
        if outcome is None:
            outcome = run(self._profile, states, facts)
        if not outcome.picks:
            refusal = Refusal(
                503, RefusalReason.NO_ENDPOINTS, f"no model server can take the request: {outcome.reason}"
            )
            return self._refused(request, refusal, outcome, time.perf_counter() - started)
        key = outcome.picks[0]
        entry = self._start(needed, key, now)
        index.insert(hashes, key)
        endpoint = entry.record.endpoint if entry.record is not None else None
        seconds = time.perf_counter() - started
        self.metrics.scheduling_seconds.observe(seconds)
        if hashes:
            matched = matches.get(key, 0)
            self.metrics.prefix_hit_ratio.observe(matched / len(hashes))
            self.metrics.prefix_hit_bytes.observe(matched * index.settings.block_bytes)
        self.decisions.add(
            request,
            self._profile,
            outcome,
            prompt_blocks=len(hashes),
            prefix_matches=matches,
            refusal=None,
            pod=endpoint.pod_name if endpoint is not None else "",
            seconds=seconds,
            reason=outcome.reason,
        )
        return Picked(_decision(request, outcome.picks), entry)

    def _start(self, needed: PickNeeded, key: str, now: float) -> InFlight:
        request = needed.request
        entry = self.ledger.start(
            request.request_id,
            key,
            request.model,
            request.body_size,
            now,
            attached=needed.covers_response,
            asked=request.asked,
        )
        if entry.record is not None:
            self.metrics.picked(request, entry.record.endpoint)
        self.on_pick(key)
        return entry

    def _refused(self, request: Request, refusal: Refusal, outcome: Outcome, seconds: float) -> Picked:
        self.metrics.not_picked(request, refusal.status, refusal.reason.value)
        self.decisions.add(
            request,
            self._profile,
            outcome,
            prompt_blocks=0,
            prefix_matches={},
            refusal=refusal,
            pod="",
            seconds=seconds,
            reason=refusal.message,
        )
        return Picked(refusal, None)

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
            return Picked(_decision(request, (key,)), self._start(needed, key, self.clock()))
        if request.subset is not None:
            refusal = Refusal(503, RefusalReason.NO_ENDPOINTS, "no ready endpoint is in the gateway's subset")
            return self._refused(request, refusal, _NO_OUTCOME, 0.0)
        return Picked(_decision(request, ()), None)

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
        self.metrics.first_token(entry, self.clock() - entry.started_at)

    def responded(self, entry: InFlight, response: ResponseTotals) -> None:
        """The response is complete, and its body was seen. Tell it before `finish`."""
        now = self.clock()
        decode = None if response.first_at is None else now - response.first_at
        self.metrics.responded(entry, response.size, response.usage, now - entry.started_at, decode)

    def finish(self, entry: InFlight) -> None:
        """The request is over, however it ended. May be told twice."""
        now = self.clock()
        if self.ledger.finish(entry, now):
            self.metrics.ended(entry, now - entry.started_at)

    def expire(self) -> None:
        """End what nobody will tell the end of. Call it about once a second."""
        for entry in self.ledger.expire(self.clock()):
            self.metrics.unobserved.inc()
            logger.debug("a pick was never observed", extra={"request_id": entry.request_id})


def _decision(request: Request, picks: tuple[str, ...]) -> Decision:
    """Where the request goes, under the name it was given by a rewrite, if any."""
    return Decision(picks, request.model if request.asked_model else None)
