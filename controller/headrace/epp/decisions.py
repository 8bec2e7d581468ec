"""The last decisions, for people who ask why a request went where it went. No prompt text is kept."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headrace.core import Refusal, Request
from headrace.scheduling import Outcome, Profile, explain

# Of larger pools only the winner's scores are kept: a thousand decisions among a thousand endpoints are 40 MB.
_MOST_CANDIDATES = 64


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """One decision. `wall_time` is seconds since 1970, `seconds` is what the decision took."""

    wall_time: float
    request_id: str
    model: str
    path: str
    body_size: int
    prompt_blocks: int
    prefix_matches: Mapping[str, int]
    profile: Profile
    outcome: Outcome
    refusal: Refusal | None
    pod: str
    candidate_count: int
    reason: str
    seconds: float
    asked_model: str = ""
    objective: str = ""
    priority: int = 0

    def as_json(self) -> dict[str, Any]:
        """The record for people."""
        outcome = self.outcome
        candidates = [
            {
                "endpoint": key,
                "total": round(outcome.totals[at], 6),
                "scores": {name: round(values[at], 6) for name, values in outcome.scores.items()},
                "prefix_blocks_matched": self.prefix_matches.get(key, 0),
            }
            for at, key in enumerate(outcome.candidates)
        ]
        return {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.wall_time)),
            "request_id": self.request_id,
            "model": self.model,
            "asked_model": self.asked_model,
            "objective": self.objective,
            "priority": self.priority,
            "path": self.path,
            "body_bytes": self.body_size,
            "prompt_blocks": self.prompt_blocks,
            "profile": self.profile.name,
            "winner": outcome.picks[0] if outcome.picks else None,
            "winner_pod": self.pod,
            "fallbacks": list(outcome.picks[1:]),
            "reason": self.reason or explain(self.profile, outcome),
            "refused": None
            if self.refusal is None
            else {"status": self.refusal.status, "reason": self.refusal.reason.value},
            "candidate_count": self.candidate_count,
            "candidates": candidates,
            "decision_seconds": round(self.seconds, 6),
        }


class DecisionLog:
    """A ring of the last decisions, oldest dropped first."""

    def __init__(self, size: int) -> None:
        self._kept: deque[DecisionRecord] = deque(maxlen=size)

    def add(
        self,
        request: Request,
        profile: Profile,
        outcome: Outcome,
        *,
        prompt_blocks: int,
        prefix_matches: Mapping[str, int],
        refusal: Refusal | None,
        pod: str,
        seconds: float,
        reason: str = "",
    ) -> None:
        """Keep one decision. `reason` replaces the explanation that scores give."""
        count = len(outcome.candidates)
        if len(outcome.candidates) > _MOST_CANDIDATES and outcome.picks:
            at = outcome.candidates.index(outcome.picks[0])
            reason = reason or explain(profile, outcome)
            outcome = Outcome(
                picks=outcome.picks,
                candidates=outcome.candidates[at : at + 1],
                totals=outcome.totals[at : at + 1],
                scores={name: values[at : at + 1] for name, values in outcome.scores.items()},
                reason=outcome.reason,
            )
        path = request.path.partition("?")[0][:256]
        self._kept.append(
            DecisionRecord(
                time.time(),
                request.request_id,
                request.model,
                path,
                request.body_size,
                prompt_blocks,
                prefix_matches,
                profile,
                outcome,
                refusal,
                pod,
                count,
                reason,
                seconds,
                request.asked_model or request.model,
                request.objective[:256],
                request.priority,
            )
        )

    def find(self, *, request_id: str = "", limit: int = 100) -> list[dict[str, Any]]:
        """The newest decisions first; with a request id, those of that request."""
        found = []
        for record in reversed(self._kept):
            if request_id and record.request_id != request_id:
                continue
            found.append(record.as_json())
            if len(found) >= limit:
                break
        return found
