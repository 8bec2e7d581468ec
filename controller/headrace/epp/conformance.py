"""The conformance suite's way of picking: a request header names the endpoints to choose from. Behind a flag.

Source: Gateway API Inference Extension v1.6.0, conformance suite; its weights and ranks tests send one list to pickers
of several pools."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import count
from typing import ClassVar

from headrace.core import Request
from headrace.protocol import http
from headrace.scheduling import Facts, Profile, SchedulingConfig
from headrace.scheduling.filters import HeaderBasedTestingFilter
from headrace.scheduling.plugin import Scored

_MAX_ENDPOINTS = 10_000


class LongestAgoPicker:
    """The endpoint that was picked longest ago. Endpoints that another request's list names too take no more than their
    share of either, and a new endpoint does not have to catch up."""

    type_name: ClassVar[str] = "longest-ago-picker"

    def __init__(self) -> None:
        self._turns = count(1)
        self._last_turn: dict[str, int] = {}

    def pick(self, scored: Sequence[Scored], facts: Facts) -> Sequence[Scored]:
        chosen = min(scored, key=lambda candidate: self._last_turn.get(candidate[1].key, 0))
        if len(self._last_turn) >= _MAX_ENDPOINTS:
            self._last_turn.clear()
        self._last_turn[chosen[1].key] = next(self._turns)
        return [chosen]


class SelectionHandler:
    """A profile handler: requests with the header are picked by a profile of their own, the others as configured."""

    type_name: ClassVar[str] = "conformance-profile-handler"

    def __init__(self, config: SchedulingConfig) -> None:
        self._config = config
        self._selected = Profile(http.CONFORMANCE_SELECTION, (HeaderBasedTestingFilter(),), (), LongestAgoPicker())

    def choose(self, request: Request, profiles: Mapping[str, Profile]) -> Profile | None:
        if request.headers.get(http.CONFORMANCE_SELECTION, "").strip(" ,"):
            return self._selected
        return self._config.choose(request)


def with_selection(config: SchedulingConfig) -> SchedulingConfig:
    """The configuration, with requests that carry the header picked by it."""
    profiles = config.profiles or {config.profile.name: config.profile}
    return dataclasses.replace(config, handler=SelectionHandler(config), profiles=profiles)
