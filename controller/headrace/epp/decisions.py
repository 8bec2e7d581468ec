"""The last decisions, for people who ask why a request went where it went. No prompt text is kept."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple

from headrace.core import Refusal
from headrace.datalayer.health import SUSPECT
from headrace.epp.director import Pick
from headrace.scheduling import Outcome, Profile, explain
from headrace.scheduling.health import VERDICT

# Of endpoints that were not good.
_MOST_SHOWN = 64
_MOST_TEXT = 256
_ALL_GOOD: Mapping[str, int] = MappingProxyType({})


# Of the request, as they are shown.
_REQUEST = ("request_id", "model", "asked_model", "objective", "priority", "path", "body_bytes", "prompt_blocks")


class _Kept(NamedTuple):
    """One decision. `wall_time` is seconds since 1970, `seconds` is what the decision took."""

    wall_time: float
    # The values of _REQUEST.
    request: tuple[str | int, ...]
    prefix_matches: Mapping[str, int]
    profile: Profile
    outcome: Outcome
    pod: str
    refusal: Refusal | None
    reason: str
    seconds: float
    # Of the endpoints that were not good then, how many requests they might have at once.
    verdict: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        """The record for people."""
        outcome, refusal = self.outcome, self.refusal
        weighed = outcome.weigh()
        return {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.wall_time)),
            **dict(zip(_REQUEST, self.request, strict=True)),
            "profile": self.profile.name,
            "winner": outcome.picks[0] if outcome.picks else None,
            "winner_pod": self.pod,
            "fallbacks": list(outcome.picks[1:]),
            "reason": self.reason or explain(self.profile, outcome),
            "refused": None if refusal is None else {"status": refusal.status, "reason": refusal.reason.value},
            "candidate_count": outcome.candidate_count,
            "not_good": {key: _standing(allowed) for key, allowed in islice(self.verdict.items(), _MOST_SHOWN)},
            "candidates": [
                {
                    "endpoint": key,
                    "total": round(weighed.totals[at], 6),
                    "scores": {name: round(values[at], 6) for name, values in weighed.scores.items()},
                    "prefix_blocks_matched": self.prefix_matches.get(key, 0),
                }
                for at, key in enumerate(weighed.candidates)
            ],
            "decision_seconds": round(self.seconds, 6),
        }


class DecisionLog:
    """A ring of the last decisions, oldest dropped first."""

    def __init__(self, size: int) -> None:
        self._kept: deque[_Kept] = deque(maxlen=size)

    def add(self, pick: Pick) -> None:
        """Keep one decision."""
        request, facts, outcome = pick.request, pick.facts, pick.outcome
        if pick.answer is None:
            return
        record = pick.entry.record if pick.entry is not None else None
        refusal = pick.answer if isinstance(pick.answer, Refusal) else None
        reason = outcome.reason if refusal is None else refusal.message
        asked, path = request.asked_model or request.model, request.path.partition("?")[0]
        blocks, matches = (facts.prefix_blocks, facts.prefix_matches) if facts is not None else (0, {})
        shown = (request.objective[:_MOST_TEXT], request.priority, path[:_MOST_TEXT], request.body_size, blocks)
        pod = record.endpoint.pod_name if record is not None else ""
        self._kept.append(
            _Kept(
                time.time(),
                (request.request_id, request.model, asked, *shown),
                matches,
                pick.profile,
                outcome,
                pod,
                refusal,
                reason,
                pick.seconds,
                facts.attributes.get(VERDICT, _ALL_GOOD) if facts is not None else _ALL_GOOD,
            )
        )

    def find(self, *, request_id: str = "", limit: int = 100) -> list[dict[str, Any]]:
        """The newest decisions first; with a request id, those of that request."""
        found = []
        for kept in reversed(self._kept):
            if request_id and kept.request[0] != request_id:
                continue
            found.append(kept.as_json())
            if len(found) >= limit:
                break
        return found


def _standing(allowed: int) -> str:
    """What an endpoint was taken for."""
    return f"trial, {allowed} at once" if allowed > 0 else "suspect" if allowed == SUSPECT else "out"
