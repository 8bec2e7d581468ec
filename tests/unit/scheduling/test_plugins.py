"""What each filter keeps, and what plugins want remembered; worked out by hand from the reference picker's text."""

from __future__ import annotations

import base64
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from headrace.config.decode import decode
from headrace.core import Endpoint, Request
from headrace.scheduling import Binding, EndpointState, Facts, run
from headrace.scheduling.affinity import (
    MAX_SESSION_LENGTH,
    HeaderLabelAffinityScorer,
    IdentifiedSession,
    SessionAffinityFilter,
    SessionAffinityScorer,
    TokenSession,
)
from headrace.scheduling.filters import (
    EndpointAttributeFilter,
    HeaderBasedTestingFilter,
    PrefixCacheAffinityFilter,
)
from headrace.scheduling.labels import ROLES, ByLabelFilter, ContextLengthAware, LabelSelectorFilter, Requirement
from headrace.scheduling.pickers import MaxScorePicker
from headrace.scheduling.plugin import AddResponseHeader, BindSession, ColdPick, Filter
from headrace.scheduling.profile import Profile
from headrace.scheduling.saturation import ConcurrencyDetector, Condition, UtilizationDetector, UtilizationFilter
from headrace.scheduling.scorers import NoHitLruScorer

from .states import facts, state

K1, K2, K3 = (f"10.0.0.{n}:8000" for n in (1, 2, 3))


def labelled(number: int, **labels: str) -> EndpointState:
    made = state(number)
    endpoint = replace(made.endpoint, labels={name.replace("_", "-"): value for name, value in labels.items()})
    return made._replace(endpoint=endpoint)


def by_attribute(operator: str, value: float, **fields: object) -> EndpointAttributeFilter:
    algorithm = {"type": "threshold", "threshold": {"operator": operator, "value": value}}
    return decode({"attribute": "x", "algorithm": algorithm, **fields}, EndpointAttributeFilter, "")


KEPT: list[tuple[Filter, list[dict[str, Any]], dict[str, Any], list[int]]] = [
    # below 5 waiting and 0.8 of KV cache, with usable metrics; all, if none is
    (UtilizationDetector(), [{"waiting": 4}, {"waiting": 5}, {"kv_usage": 0.8}, {"fresh": False}], {}, [1]),
    (UtilizationDetector(headroom=0.2), [{"waiting": 5}, {"waiting": 6}, {"kv_usage": 0.9}], {}, [1, 3]),
    (UtilizationDetector(), [{"waiting": 5}, {"waiting": 9}], {}, [1, 2]),
    # below 100 in flight; nobody, if none is
    (ConcurrencyDetector(), [{"in_flight": 99}, {"in_flight": 100}], {}, [1]),
    (ConcurrencyDetector(headroom=0.5), [{"in_flight": 149}, {"in_flight": 150}], {}, [1]),
    (ConcurrencyDetector(max_requests=1), [{"in_flight": 1}], {}, []),
    (ConcurrencyDetector("tokens", max_tokens=10), [{"in_flight": 999, "in_flight_tokens": 9}], {}, [1]),
    (
        ConcurrencyDetector("hybrid", max_requests=2, max_tokens=10),
        [{"in_flight": 2}, {"in_flight_tokens": 10}, {"in_flight": 1, "in_flight_tokens": 9}],
        {},
        [3],
    ),
    (
        UtilizationFilter((Condition("waiting-queue", 2.0), Condition("kv-cache-utilization", 0.5))),
        [{"waiting": 2, "kv_usage": 0.5}, {"waiting": 3}, {"kv_usage": 0.6}],
        {},
        [1],
    ),
    (UtilizationFilter((Condition("active-requests", 0.0),)), [{"in_flight": 1}], {}, []),
    (UtilizationFilter((Condition("running-requests", 0.0),), fallback_on_empty=True), [{"running": 1}], {}, [1]),
    # at least 0.8 of the blocks; all, where none has that
    (PrefixCacheAffinityFilter(), [{}, {}, {}], {"matches": {K1: 8, K2: 7}, "blocks": 10}, [1]),
    (PrefixCacheAffinityFilter(), [{}, {}], {"matches": {K1: 7}, "blocks": 10}, [1, 2]),
    (PrefixCacheAffinityFilter(), [{}, {}], {}, [1, 2]),
    (PrefixCacheAffinityFilter(), [{}, {}], {"matches": {K1: 1}, "blocks": 1}, [1]),
    (PrefixCacheAffinityFilter(0.0), [{}, {}], {"matches": {K1: 9}, "blocks": 9}, [1, 2]),
    # unless its tokens in flight take over 18 s longer than another's: at 15928 a second, more than 286704
    (
        PrefixCacheAffinityFilter(),
        [{"in_flight_tokens": 286_704}, {}],
        {"matches": {K1: 9}, "blocks": 9},
        [1],
    ),
    (
        PrefixCacheAffinityFilter(),
        [{"in_flight_tokens": 286_705}, {}],
        {"matches": {K1: 9}, "blocks": 9},
        [1, 2],
    ),
    (
        PrefixCacheAffinityFilter(max_ttft_penalty_ms=0.0),
        [{"in_flight_tokens": 10**9}, {}],
        {"matches": {K1: 9}, "blocks": 9},
        [1],
    ),
    (
        PrefixCacheAffinityFilter(exploration_probability=1.0),
        [{}, {}],
        {"matches": {K1: 9}, "blocks": 9},
        [1, 2],
    ),
    # by a metric of the configuration's own
    (by_attribute("LessThan", 2.0), [{"custom": {"x": 1.0}}, {"custom": {"x": 2.0}}, {}], {}, [1, 3]),
    (
        by_attribute("GreaterThanOrEqual", 2.0, onMissing="Fail"),
        [{"custom": {"x": 2.0}}, {}],
        {},
        [1],
    ),
    (by_attribute("Equal", 5.0), [{"custom": {"x": 2.0}}], {}, []),
    (by_attribute("NotEqual", 2.0, fallbackOnEmpty=True), [{"custom": {"x": 2.0}}], {}, [1]),
    # what the header names, in its order
    (HeaderBasedTestingFilter(), [{}, {}, {}], {}, []),
    (
        HeaderBasedTestingFilter(),
        [{}, {}, {}],
        {"headers": {"test-epp-endpoint-selection": "10.0.0.3:8000, 10.0.0.1,10.9.9.9,"}},
        [3, 1],
    ),
    (HeaderBasedTestingFilter(), [{}], {"headers": {"test-epp-endpoint-selection": "10.0.0.1:9"}}, []),
]


@pytest.mark.parametrize(("step", "states", "request_facts", "kept"), KEPT)
def test_what_is_kept(
    step: Filter, states: list[dict[str, Any]], request_facts: dict[str, Any], kept: list[int]
) -> None:
    candidates = [state(number, **fields) for number, fields in enumerate(states, 1)]
    found = step.keep(candidates, facts(**request_facts))
    assert [s.key for s in found] == [f"10.0.0.{number}:8000" for number in kept]


@pytest.mark.parametrize(
    ("detector", "states", "saturation"),
    [
        (UtilizationDetector(), [], 1.0),
        (UtilizationDetector(), [{"waiting": 2}, {"kv_usage": 0.2}], (2 / 5 + 0.2 / 0.8) / 2),
        (UtilizationDetector(), [{"waiting": 9, "fresh": False}, {}], 0.5),
        (ConcurrencyDetector(max_requests=10), [], 1.0),
        (ConcurrencyDetector(max_requests=10), [{"in_flight": 3}, {"in_flight": 4}], 7 / 20),
        (ConcurrencyDetector("tokens", max_tokens=100), [{"in_flight_tokens": 30}, {}, {}], 30 / 300),
        (
            ConcurrencyDetector("hybrid", max_requests=10, max_tokens=100),
            [{"in_flight": 3, "in_flight_tokens": 10}, {"in_flight": 1, "in_flight_tokens": 70}],
            (0.3 + 0.7) / 2,
        ),
    ],
)
def test_saturation(
    detector: UtilizationDetector | ConcurrencyDetector, states: list[dict[str, Any]], saturation: float
) -> None:
    candidates = [state(number, **fields) for number, fields in enumerate(states, 1)]
    assert detector.saturation(candidates) == pytest.approx(saturation)


def test_labels() -> None:
    pods = [labelled(1, tier="gold"), labelled(2, tier="silver"), labelled(3)]

    def kept(step: Filter) -> list[str]:
        return [s.key for s in step.keep(pods, facts())]

    assert kept(ByLabelFilter("tier", frozenset({"gold"}))) == [K1]
    assert kept(ByLabelFilter("tier", frozenset({"gold"}), allows_no_label=True)) == [K1, K3]
    gold, either = frozenset({"gold"}), frozenset({"gold", "silver"})
    for requirement, expected in [
        (Requirement("tier", "In", either), [K1, K2]),
        (Requirement("tier", "NotIn", gold), [K2, K3]),
        (Requirement("tier", "Exists"), [K1, K2]),
        (Requirement("tier", "DoesNotExist"), [K3]),
    ]:
        assert kept(LabelSelectorFilter(match_expressions=(requirement,))) == expected
    assert kept(LabelSelectorFilter()) == [K1, K2, K3]
    assert kept(
        LabelSelectorFilter(match_expressions=(Requirement("tier", "Exists"), Requirement("tier", "NotIn", gold)))
    ) == [K2]


def test_roles_cover_what_a_pod_without_a_role_does() -> None:
    values, no_label = ROLES["decode-filter"]
    assert "decode" in values
    assert no_label
    assert not ROLES["prefill-filter"][1]


@pytest.mark.parametrize(
    ("text", "tokens", "score", "fits"),
    [
        # 0.3 + 0.7 * (0.7 / (1 + width / 10000) + 0.3 * headroom / width)
        ("0-10000", 2500, 0.3 + 0.7 * (0.7 / 2 + 0.3 * 0.75), True),
        ("100-100", 100, 1.0, True),
        # 0.3 / (1 + distance / 1000)
        ("0-1000", 3000, 0.3 / 3, False),
        ("5000-9000", 4000, 0.3 / 2, False),
        ("nonsense", 10, 0.0, False),
        ("9-1", 5, 0.0, False),
        (None, 10, 0.5, True),
    ],
)
def test_context_length(text: str | None, tokens: int, score: float, fits: bool) -> None:
    pod = state(1)
    labels = {} if text is None else {"llm-d.ai/context-length-range": text}
    pod = pod._replace(endpoint=replace(pod.endpoint, labels=labels))
    asked = facts(prompt=b"x" * 4 * tokens)
    assert ContextLengthAware().score([pod], asked) == [pytest.approx(score)]
    assert ContextLengthAware().keep([pod], asked) == [pod]
    assert list(ContextLengthAware(filtering=True).keep([pod], asked)) == ([pod] if fits else [])


def test_a_header_names_a_label() -> None:
    pods = [labelled(1, tenant="a"), labelled(2, tenant="b"), labelled(3)]
    scorer = HeaderLabelAffinityScorer("x-tenant", "tenant")
    assert scorer.score(pods, facts(headers={"x-tenant": "b"})) == [0.0, 1.0, 0.0]
    assert scorer.score(pods, facts()) == [0.0, 0.0, 0.0]


# Sessions.


def pod_facts(
    headers: dict[str, str] | None = None, sessions: dict[str, Binding] | None = None, now: float = 0.0
) -> Facts:
    return Facts(Request(request_id="r", headers=headers or {}), now, Random(1), sessions=sessions or {})


def token(name: str) -> str:
    return base64.b64encode(name.encode()).decode()


@pytest.mark.parametrize(
    ("value", "scores"),
    [
        ("", [0.0, 0.0, 0.0]),
        (token("default/pod-2-rank-0"), [0.0, 1.0, 0.0]),
        # Without a rank, any port of the Pod.
        (token("default/pod-2"), [0.0, 1.0, 1.0]),
        (token("default/pod-2-rank-1"), [0.0, 0.0, 1.0]),
        (token("other/pod-2"), [0.0, 0.0, 0.0]),
        ("not base64!", [0.0, 0.0, 0.0]),
        (base64.b64encode(b"\xff\xfe").decode(), [0.0, 0.0, 0.0]),
        ("A" * 5000, [0.0, 0.0, 0.0]),
    ],
)
def test_a_token_brings_a_session_back(value: str, scores: list[float]) -> None:
    second_port = Endpoint(namespace="default", pod_name="pod-2", address="10.0.0.2", port=8001, rank=1)
    states = [state(1), state(2), EndpointState(second_port.key, second_port)]
    asked = pod_facts({"x-session-token": value})
    assert SessionAffinityScorer().score(states, asked) == scores
    bound = [s for s, score in zip(states, scores, strict=True) if score]
    assert SessionAffinityFilter().keep(states, asked) == (bound or states)


@given(st.text())
def test_any_token_is_harmless(value: str) -> None:
    assert SessionAffinityScorer().score([state(1)], pod_facts({"x-session-token": value})) == [0.0]


def test_the_client_is_told_its_token() -> None:
    (note,) = SessionAffinityScorer(TokenSession("x-mine")).notes(state(2), pod_facts())
    assert isinstance(note, AddResponseHeader)
    assert note.name == "x-mine"
    assert SessionAffinityScorer(TokenSession("x-mine")).score(
        [state(1), state(2)], pod_facts({"x-mine": note.value})
    ) == [0.0, 1.0]


def test_a_named_session_goes_where_it_went_until_its_time_is_over() -> None:
    scorer = SessionAffinityScorer(IdentifiedSession(("x-a", "x-b"), ttl_seconds=10.0))
    states = [state(1), state(2)]
    asked = pod_facts({"x-b": " s1 "})
    assert scorer.score(states, asked) == [0.0, 0.0]
    (note,) = scorer.notes(states[1], asked)
    assert isinstance(note, BindSession)
    known = {note.session: Binding(note.pod, 5.0)}
    assert scorer.score(states, pod_facts({"x-b": "s1"}, known, now=15.0)) == [0.0, 1.0]
    assert scorer.score(states, pod_facts({"x-b": "s1"}, known, now=15.1)) == [0.0, 0.0]
    assert scorer.score(states, pod_facts({"x-a": "s1"}, known, now=5.0)) == [0.0, 0.0], (
        "another header, another session"
    )
    assert scorer.notes(states[0], pod_facts()) == ()
    assert scorer.notes(states[0], pod_facts({"x-a": "s" * (MAX_SESSION_LENGTH + 1)})) == ()


def test_cold_prompts_are_spread() -> None:
    scorer = NoHitLruScorer(lru_size=7)
    states = [state(1), state(2), state(3)]
    asked = facts()
    # Never picked first, in their order; then the longest ago.
    assert scorer.score(states, structs.replace(asked, cold_picks={K1: 5, K2: 4})) == [0.0, 0.5, 1.0]
    assert scorer.score(states, asked) == [1.0, 0.5, 0.0]
    assert scorer.score(states[:1], asked) == [1.0]
    warm = facts(matches={K2: 1}, blocks=3)
    assert scorer.score(states, warm) == [0.5] * 3
    # A match of an endpoint that is no candidate is none.
    assert scorer.score([states[0], states[2]], warm) == [1.0, 0.0]
    assert scorer.notes(states[0], asked) == (ColdPick(K1, 7),)
    assert scorer.notes(states[1], warm) == ()


def test_a_profile_knows_who_takes_notes() -> None:
    affinity = SessionAffinityFilter()
    assert Profile("p", (affinity,), (), MaxScorePicker()).note_takers == (affinity,)
    assert Profile("p", (), (), MaxScorePicker()).note_takers == ()


def test_a_full_pool_is_told_from_one_that_does_not_fit() -> None:
    full = Profile("p", (ConcurrencyDetector(max_requests=1),), (), MaxScorePicker())
    outcome = run(full, [state(1, in_flight=1)], facts())
    assert (outcome.picks, outcome.saturated) == ((), True)
    unfit = Profile("p", (ByLabelFilter("a", frozenset("b")),), (), MaxScorePicker())
    outcome = run(unfit, [state(1)], facts())
    assert (outcome.picks, outcome.saturated) == ((), False)
