"""Keeps a model of each server in step with what the keeper of the pool sees, and predicts for picks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

from headrace.core import Request
from headrace.datalayer.ledger import InFlight
from headrace.datalayer.pool_state import PoolObserver
from headrace.datalayer.store import EndpointRecord, EndpointStore
from headrace.prediction.server import Errors, ServerModel
from headrace.prediction.steps import Group, StepTimes, weighted_tokens
from headrace.protocol.objects import ENGINE_LABELS, INSTANCE_LABEL
from headrace.scheduling import EndpointState, Facts, SchedulingConfig
from headrace.scheduling.latency import PREDICTED, LatencyScorer, Predicted, Predictions, SloHeadroomTierFilter
from headrace.scheduling.tokens import input_tokens

# Where the mean error is more than the mean time, picks do not go by predictions.
_WRONG = 1.0


def goes_by_predictions(config: SchedulingConfig) -> bool:
    """Whether a profile goes by predicted latency."""
    profiles = config.profiles.values() if config.profiles else (config.profile,)
    steps = [step for profile in profiles for step in (*profile.filters, *(one.scorer for one in profile.scorers))]
    return any(isinstance(step, LatencyScorer | SloHeadroomTierFilter) for step in steps)


@dataclass(eq=False)
class LatencyWatch(PoolObserver):
    """A data producer, and an observer of the pool. `clock` is the store's. `wanted`: picks go by it."""

    store: EndpointStore
    _: KW_ONLY
    clock: Callable[[], float]
    wanted: bool = False

    def __post_init__(self) -> None:
        self.errors = Errors()
        self._groups: dict[tuple[str, ...], Group] = {}
        self._servers: dict[str, ServerModel] = {}

    @property
    def wrong(self) -> bool:
        """Whether predictions are too wrong to go by."""
        return self.errors.ratio > _WRONG

    def step_times(self) -> Iterator[tuple[str, StepTimes]]:
        """What each endpoint's steps take, as far as it is learnt."""
        return ((key, server.steps.times) for key, server in self._servers.items())

    # ---- a data producer

    def prepare(self, facts: Facts, states: Sequence[EndpointState]) -> None:
        """Whoever goes by predictions asks for those of the endpoints that are left."""
        if self.wanted and not self.wrong:
            facts.attributes[PREDICTED] = Predictions(self._predict)

    def _predict(self, state: EndpointState, facts: Facts) -> Predicted:
        uncached = facts.uncached_tokens(state.key)
        tokens = weighted_tokens(uncached, (facts.length or 0) - uncached)
        requests = state.waiting + state.running
        return self._servers[state.key].predict(tokens, requests, self._others(state), facts.now)

    def _others(self, state: EndpointState) -> float:
        record = self.store.get(state.key)
        if record is None or not record.of_peers:
            return 1.0
        return record.in_flight / max(1, record.in_flight - record.of_peers)

    def add(self, key: str) -> None:
        """An endpoint joins the pool."""
        record = self.store.get(key)
        labels = record.endpoint.labels if record is not None else {}
        # Servers of one engine and one deployment have the same hardware.
        group = tuple(labels.get(name, "") for name in (*ENGINE_LABELS, INSTANCE_LABEL))
        self._servers[key] = ServerModel(self._groups.setdefault(group, Group()), self.errors)

    def remove(self, key: str) -> None:
        """An endpoint leaves it."""
        self._servers.pop(key, None)
        groups = {id(server.group) for server in self._servers.values()}
        self._groups = {labels: group for labels, group in self._groups.items() if id(group) in groups}

    # ---- requests

    def started(self, entry: InFlight, request: Request) -> None:
        server, record = self._servers.get(entry.endpoint), entry.record
        if self.wanted and server is not None and record is not None:
            tokens = weighted_tokens(entry.tokens, max(0, input_tokens(request) - entry.tokens))
            server.sent(entry, entry.tokens, tokens, record.in_flight - 1, self.clock())

    def answered(self, entry: InFlight, status: int, *, elsewhere: bool = False) -> None:
        if elsewhere:
            self._drop(entry.picked_for, entry)

    def first_token(self, entry: InFlight, seconds: float) -> None:
        server = self._servers.get(entry.endpoint)
        if server is not None:
            server.began(entry, seconds)

    def finished(self, entry: InFlight, seconds: float) -> None:
        if not self.wanted:
            return
        self._drop(entry.endpoint, entry)
        record, server = entry.record, self._servers.get(entry.endpoint)
        if server is not None and record is not None and not record.in_flight:
            server.idle()

    def unobserved(self, entry: InFlight) -> None:
        self._drop(entry.endpoint, entry)

    def expire(self) -> None:
        """Forget requests whose end nobody has told: another replica accounts for them. Call it about once a second."""
        for server in self._servers.values():
            for entry in [entry for entry in server.queue.prompts if entry.over]:
                server.queue.drop(entry)

    def _drop(self, key: str, entry: InFlight) -> None:
        server = self._servers.get(key)
        if server is not None:
            server.queue.drop(entry)

    # ---- pages

    def scraped(self, record: EndpointRecord) -> None:
        metrics, server = record.metrics, self._servers.get(record.endpoint.key)
        if server is not None and metrics is not None and record.scraped_at is not None:
            # Of a page that was cut off, what it counts may be missing in part.
            work = None if record.scrape_error else metrics.work
            server.page(work, metrics.waiting or 0, metrics.running or 0, record.scraped_at)
