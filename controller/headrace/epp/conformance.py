"""The conformance suite's way of picking: a request header names the endpoints to choose from. Behind a flag.

Source: Gateway API Inference Extension v1.6.0, conformance suite; its weights and ranks tests send one list to pickers
of several pools."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.core import Request
from headrace.protocol import http
from headrace.scheduling import EndpointState, Outcome
from headrace.scheduling.filters import named


class SelectionByHeader:
    """Picks among the pool's endpoints that the header names, each in its turn, whatever their load.

    In turn means: the one that was picked longest ago. Endpoints that another request's list names too take no more
    than their share of either, and a new endpoint does not have to catch up."""

    def __init__(self) -> None:
        self._turn = 0
        self._last_turn: dict[str, int] = {}

    def pick(self, request: Request, states: Sequence[EndpointState]) -> Outcome | None:
        """The pick; without one where the header names nothing of this pool; None for a request without the header."""
        header = request.headers.get(http.CONFORMANCE_SELECTION, "")
        wanted = tuple(part.strip() for part in header.split(",") if part.strip())
        if not wanted:
            return None
        allowed = named(states, wanted) if request.subset is None else named(named(states, request.subset), wanted)
        if not allowed:
            return Outcome((), (), (), {}, f"header {http.CONFORMANCE_SELECTION} names no ready endpoint of this pool")
        chosen = min(allowed, key=lambda state: self._last_turn.get(state.key, 0)).key
        self._turn += 1
        self._last_turn = {
            state.key: self._last_turn[state.key] for state in states if state.key in self._last_turn
        } | {chosen: self._turn}
        keys = tuple(state.key for state in allowed)
        return Outcome((chosen,), keys, (0.0,) * len(keys), {}, f"header {http.CONFORMANCE_SELECTION}")
