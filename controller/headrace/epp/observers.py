"""What metrics and admission learn of a pool's requests."""

from __future__ import annotations

from headrace.core import Endpoint, Refusal, Request
from headrace.datalayer.ledger import InFlight
from headrace.datalayer.pool_state import PoolObserver, ResponseTotals
from headrace.epp.director import Pick
from headrace.epp.metrics import Metrics
from headrace.flowcontrol import FlowController
from headrace.scheduling.tokens import BYTES_A_TOKEN, input_tokens, output_tokens


class MetricsObserver(PoolObserver):
    """Counts picks and the course of requests."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def decided(self, pick: Pick) -> None:
        """A pick was made, or not."""
        metrics, facts = self._metrics, pick.facts
        if pick.failure is not None:
            metrics.failure_mode_answers.labels(pick.failure.mode.value, pick.failure.cause).inc()
        if isinstance(pick.answer, Refusal):
            metrics.not_picked(pick.request, pick.answer.status, pick.answer.reason.value)
        elif pick.entry is not None and pick.entry.record is not None:
            metrics.picked(pick.request, pick.entry.record.endpoint)
        if pick.outcome.state is not None and facts is not None:
            metrics.scheduling_seconds.observe(pick.seconds)
            if facts.prefix_blocks:
                matched = facts.prefix_matches.get(pick.outcome.state.key, 0)
                metrics.prefix_hit_ratio.observe(matched / facts.prefix_blocks)
                metrics.prefix_hit_bytes.observe(matched * facts.block_tokens * BYTES_A_TOKEN)

    def endpoint_removed(self, endpoint: Endpoint) -> None:
        self._metrics.forget(endpoint)

    def answered(self, entry: InFlight, status: int, *, elsewhere: bool) -> None:
        if elsewhere:
            self._metrics.served_elsewhere.inc()
        self._metrics.answered(entry, status)

    def first_token(self, entry: InFlight, seconds: float) -> None:
        self._metrics.first_token(entry, seconds)

    def responded(self, entry: InFlight, response: ResponseTotals, seconds: float, decode: float | None) -> None:
        self._metrics.responded(entry, response.size, response.usage, seconds, decode)

    def finished(self, entry: InFlight, seconds: float) -> None:
        self._metrics.ended(entry, seconds)

    def unobserved(self, entry: InFlight) -> None:
        self._metrics.unobserved.inc()


class AdmissionObserver(PoolObserver):
    """Charges flows for what they get, and has admission look again when load changes."""

    def __init__(self, flow: FlowController) -> None:
        self._flow = flow

    def load_changed(self) -> None:
        self._flow.changed()

    def started(self, entry: InFlight, request: Request) -> None:
        if self._flow.config.enabled:
            entry.flow, entry.priority = request.fairness_id, request.priority
            entry.output_tokens = output_tokens(request)
            self._flow.charge(entry.priority, entry.flow, input_tokens(request), 0)

    def finished(self, entry: InFlight, seconds: float) -> None:
        self._flow.charge(entry.priority, entry.flow, 0, entry.output_tokens)
