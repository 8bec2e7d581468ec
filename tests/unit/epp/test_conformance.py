"""The conformance suite's selection header: within the pool, within the gateway's subset, each match in its turn."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Decision, Endpoint, FailureMode, Refusal, RefusalReason, Request
from headrace.epp.conformance import with_selection
from headrace.scheduling import EndpointState, Facts, Outcome, SchedulingConfig, run

from .test_director import director, needed

HEADER = "test-epp-endpoint-selection"


def rank(pod: int, port: int = 3000) -> Endpoint:
    return Endpoint(namespace="n", pod_name=f"pod-{pod}", address=f"10.0.0.{pod}", port=port, rank=port - 3000)


def states(*endpoints: Endpoint) -> list[EndpointState]:
    return [EndpointState(endpoint.key, endpoint) for endpoint in endpoints]


def request(header: str, **fields: Any) -> Request:
    return Request("r", headers={HEADER: header}, **fields)


class Hook:
    """The flag's configuration, with a pool."""

    def __init__(self) -> None:
        self.config = with_selection(SchedulingConfig())

    def pick(self, request: Request) -> Outcome:
        profile = self.config.choose(request)
        assert profile is not None
        return run(profile, POOL, Facts(request, 0.0, Random(1)))


POOL = states(*(rank(pod, port) for pod in (1, 2, 3) for port in (3000, 3002, 3004)))


@pytest.mark.parametrize(
    ("header", "matches"),
    [
        ("10.0.0.2", {"10.0.0.2:3000", "10.0.0.2:3002", "10.0.0.2:3004"}),
        ("10.0.0.2:3002", {"10.0.0.2:3002"}),
        ("10.0.0.1:3000, 10.0.0.3:3004", {"10.0.0.1:3000", "10.0.0.3:3004"}),
        (",10.0.0.1:3000,,10.1.0.9,nonsense,10.0.0.9:3000", {"10.0.0.1:3000"}),
    ],
)
def test_the_header_names_addresses_and_endpoints(header: str, matches: set[str]) -> None:
    hook = Hook()
    picked = Counter(hook.pick(request(header)).picks for _ in range(60))
    assert set(picked) == {(key,) for key in matches}
    assert set(picked.values()) == {60 // len(matches)}


@given(st.lists(st.sets(st.integers(0, len(POOL) - 1), min_size=1), min_size=1, max_size=60))
def test_an_endpoint_is_not_picked_again_while_another_match_waits_longer(lists: list[set[int]]) -> None:
    hook = Hook()
    waiting = {state.key: 0 for state in POOL}
    for turn, chosen in enumerate(lists, 1):
        keys = [POOL[at].key for at in chosen]
        (key,) = hook.pick(request(",".join(keys))).picks
        assert waiting[key] == min(waiting[other] for other in keys)
        waiting[key] = turn


def test_without_the_header_the_profile_picks() -> None:
    config = SchedulingConfig()
    for asked in (Request("r"), request(" , ")):
        assert with_selection(config).choose(asked) is config.profile


def test_the_gateways_subset_holds_too() -> None:
    hook = Hook()
    outcome = hook.pick(request("10.0.0.1,10.0.0.2", subset=("10.0.0.2:3000", "10.0.0.3:3000")))
    assert outcome.picks == ("10.0.0.2:3000",)
    assert not hook.pick(request("10.0.0.1", subset=())).picks


async def test_a_list_of_another_pools_endpoints_is_refused() -> None:
    d = director(config=with_selection(SchedulingConfig()))
    d.pool.endpoints_changed((rank(1), rank(2)), FailureMode.OPEN)
    picked = await d.director.decide(needed(headers={HEADER: "10.9.9.9"}))
    assert isinstance(picked.answer, Refusal)
    assert (picked.answer.status, picked.answer.reason) == (503, RefusalReason.NO_ENDPOINTS)
    assert picked.entry is None


async def test_picks_are_counted_and_explained_as_any_other() -> None:
    d = director(config=with_selection(SchedulingConfig()))
    d.pool.endpoints_changed((rank(1), rank(2)), FailureMode.CLOSE)
    picked = await d.director.decide(needed(headers={HEADER: "10.0.0.2"}))
    assert picked.answer == Decision(("10.0.0.2:3000",))
    assert picked.entry is not None
    assert len(d.pool.ledger) == 1
    (record,) = d.decisions.find()
    assert (record["winner"], record["profile"]) == ("10.0.0.2:3000", HEADER)
    d.pool.finished(picked.entry)
    assert len(d.pool.ledger) == 0


async def test_without_the_flag_the_header_means_nothing() -> None:
    d = director()
    d.pool.endpoints_changed((rank(1),), FailureMode.CLOSE)
    picked = await d.director.decide(needed(headers={HEADER: "10.9.9.9"}))
    assert picked.answer == Decision(("10.0.0.1:3000",))
