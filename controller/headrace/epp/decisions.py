"""The last decisions, for people who ask why a request went where it went. No prompt text is kept."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple

from headrace.core import Endpoint, Refusal
from headrace.datalayer.health import SUSPECT
from headrace.epp.director import Pick
from headrace.scheduling import Outcome, Profile, explain
from headrace.scheduling.health import VERDICT
from headrace.scheduling.latency import PREDICTED, Predicted, Predictions

# Of endpoints that were not good.
_MOST_SHOWN = 64
_MOST_TEXT = 256
_NONE: Mapping[str, int] = MappingProxyType({})
_NOT_PREDICTED: Mapping[str, Predicted] = MappingProxyType({})


# Of what a request says, as it is kept: enough for its path without the query.
_MOST_RAW = 2048


class _Kept(NamedTuple):
    """One decision, as it was: it is put into words when somebody asks. `wall_time` is seconds since 1970, `seconds` is
    what the decision took."""

    wall_time: float
    request_id: str
    model: str
    asked_model: str
    objective: str
    priority: int
    path: str
    body_bytes: int
    prompt_blocks: int
    prefix_matches: Mapping[str, int]
    profile: Profile
    outcome: Outcome
    endpoint: Endpoint | None
    refusal: Refusal | None
    seconds: float
    # Of the endpoints that were not good then, how many requests they might have at once.
    verdict: Mapping[str, int]
    predicted: Mapping[str, Predicted]

    def as_json(self) -> dict[str, Any]:
        """The record for people."""
        outcome, refusal = self.outcome, self.refusal
        weighed = outcome.weigh()
        reason = outcome.reason if refusal is None else refusal.message
        return {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.wall_time)),
            "request_id": self.request_id,
            "model": self.model,
            "asked_model": self.asked_model or self.model,
            "objective": self.objective[:_MOST_TEXT],
            "priority": self.priority,
            "path": self.path.partition("?")[0][:_MOST_TEXT],
            "body_bytes": self.body_bytes,
            "prompt_blocks": self.prompt_blocks,
            "profile": self.profile.name,
            "winner": outcome.picks[0] if outcome.picks else None,
            "winner_pod": self.endpoint.pod_name if self.endpoint is not None else "",
            "fallbacks": list(outcome.picks[1:]),
            "reason": reason or explain(self.profile, outcome),
            "predicted": self._prediction(),
            "refused": None if refusal is None else {"status": refusal.status, "reason": refusal.reason.value},
            "candidate_count": outcome.candidate_count,
            "not_good": {key: _standing(allowed) for key, allowed in islice(self.verdict.items(), _MOST_SHOWN)},
            "candidates": [
                {
                    "endpoint": key,
                    "total": round(weighed.totals[at], 6),
                    "scores": {name: round(values[at], 6) for name, values in weighed.scores.items()},
                    "prefix_blocks_matched": self.prefix_matches.get(key, 0),
                    **(
                        {"first_token_seconds": round(self.predicted[key].first_token, 4)}
                        if key in self.predicted
                        else {}
                    ),
                }
                for at, key in enumerate(weighed.candidates)
            ],
            "decision_seconds": round(self.seconds, 6),
        }

    def _prediction(self) -> str:
        """In words, what the request was predicted to wait; "" where nothing was predicted."""
        winner = self.predicted.get(self.outcome.picks[0]) if self.outcome.picks else None
        if winner is None:
            return ""
        parts = f"{winner.queue:.2f} queue, {winner.prefill:.2f} prefill, {winner.decode:.2f} decode"
        best = min(one.first_token for one in self.predicted.values())
        return f"first token in {winner.first_token:.2f} s: {parts}; the soonest anywhere is {best:.2f}"


class DecisionLog:
    """A ring of the last decisions, oldest dropped first."""

    def __init__(self, size: int) -> None:
        self._kept: deque[_Kept] = deque(maxlen=size)

    def add(self, pick: Pick) -> None:
        """Keep one decision."""
        request, facts, answer, entry = pick.request, pick.facts, pick.answer, pick.entry
        if answer is None:
            return
        record = entry.record if entry is not None else None
        blocks, matches, verdict, predicted = 0, _NONE, _NONE, _NOT_PREDICTED
        if facts is not None:
            blocks, matches = facts.prefix_blocks, facts.prefix_matches
            verdict = facts.attributes.get(VERDICT, _NONE)
            predictions: Predictions | None = facts.attributes.get(PREDICTED)
            predicted = _NOT_PREDICTED if predictions is None else predictions.found
        self._kept.append(
            _Kept(
                time.time(),
                request.request_id,
                request.model,
                request.asked_model,
                request.objective[:_MOST_RAW],
                request.priority,
                request.path[:_MOST_RAW],
                request.body_size,
                blocks,
                matches,
                pick.profile,
                pick.outcome,
                record.endpoint if record is not None else None,
                answer if isinstance(answer, Refusal) else None,
                pick.seconds,
                verdict,
                predicted,
            )
        )

    def find(self, *, request_id: str = "", limit: int = 100) -> list[dict[str, Any]]:
        """The newest decisions first; with a request id, those of that request."""
        found = []
        for kept in reversed(self._kept):
            if request_id and kept.request_id != request_id:
                continue
            found.append(kept.as_json())
            if len(found) >= limit:
                break
        return found


def _standing(allowed: int) -> str:
    """What an endpoint was taken for."""
    return f"trial, {allowed} at once" if allowed > 0 else "suspect" if allowed == SUSPECT else "out"
