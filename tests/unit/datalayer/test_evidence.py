"""Whose fault failed answers are."""

from __future__ import annotations

import pytest

from headrace.datalayer.evidence import PROMPTS, WINDOW_SECONDS, Evidence, Origin

A, B, C = "10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000"


@pytest.fixture
def evidence() -> Evidence:
    return Evidence()


def against(evidence: Evidence, server: str, now: float = 100.0) -> bool:
    """Whether the server's failures are its own."""
    return evidence.verdicts(now).get(server, False)


def fails_for(evidence: Evidence, server: str, flows: int, now: float = 100.0) -> None:
    for number in range(flows):
        evidence.failed(server, Origin(f"flow-{number}"), now)


def answered_for(evidence: Evidence, server: str, flows: int, now: float = 100.0) -> None:
    for number in range(flows):
        evidence.answered(server, Origin(f"flow-{number}"), now)


@pytest.mark.parametrize(("flows", "guilty"), [(2, False), (3, True), (5, True)])
def test_three_flows_that_another_server_answers_well_speak_against_one(
    evidence: Evidence, flows: int, guilty: bool
) -> None:
    fails_for(evidence, A, flows)
    assert not against(evidence, A, 100.0), "nobody answered them well"
    answered_for(evidence, B, flows)
    assert against(evidence, A, 100.0) is guilty
    assert not against(evidence, B, 100.0)


def test_an_answer_of_its_own_is_none_of_another(evidence: Evidence) -> None:
    fails_for(evidence, A, 3)
    answered_for(evidence, A, 3)
    answered_for(evidence, B, 2)
    assert not against(evidence, A, 100.0)


def test_one_client_whose_requests_all_fail_speaks_against_nobody(evidence: Evidence) -> None:
    for second in range(100):
        for server in (A, B, C):
            evidence.failed(server, Origin("bad client", second), float(second))
            answered_for(evidence, server, 5, float(second))
            assert not against(evidence, server, float(second))


@pytest.mark.parametrize(("prompts", "guilty"), [(PROMPTS - 1, False), (PROMPTS, True)])
def test_of_few_flows_ten_different_prompts_are_needed(evidence: Evidence, prompts: int, guilty: bool) -> None:
    for number in range(prompts):
        evidence.failed(A, Origin("only", number), 100.0)
        evidence.failed(A, Origin("only", 0), 100.0)
        evidence.answered(B, Origin("only", number), 100.0)
    assert against(evidence, A, 100.0) is guilty


def test_prompts_do_not_count_where_there_are_flows_enough(evidence: Evidence) -> None:
    answered_for(evidence, C, 5)
    for number in range(PROMPTS):
        evidence.failed(A, Origin("only", number), 100.0)
        evidence.answered(B, Origin("only", number), 100.0)
    assert not against(evidence, A, 100.0)


def test_servers_that_fail_alike_are_not_at_fault(evidence: Evidence) -> None:
    for server in (A, B):
        fails_for(evidence, server, 5)
        answered_for(evidence, server, 5)
    assert not against(evidence, A, 100.0)
    assert not against(evidence, B, 100.0)
    for _ in range(10):
        answered_for(evidence, B, 5)
    assert against(evidence, A, 100.0), "B fails a tenth as often"


def test_a_pool_whose_servers_fail_in_part_names_those(evidence: Evidence) -> None:
    for server in (A, B):
        fails_for(evidence, server, 3)
    for server in (C, "10.0.0.4:8000"):
        answered_for(evidence, server, 3)
    assert evidence.verdicts(100.0) == {A: True, B: True}
    fails_for(evidence, C, 3)
    assert evidence.verdicts(100.0) == {A: False, B: False, C: False}


def test_evidence_is_forgotten(evidence: Evidence) -> None:
    fails_for(evidence, A, 3)
    answered_for(evidence, B, 3)
    assert against(evidence, A, 100.0 + WINDOW_SECONDS)
    assert not against(evidence, A, 100.1 + WINDOW_SECONDS)
    assert evidence.verdicts(100.1 + WINDOW_SECONDS) == {}
    fails_for(evidence, A, 3, 200.0)
    answered_for(evidence, B, 3, 200.0)
    assert against(evidence, A, 200.0)
    evidence.forget(A)
    assert not against(evidence, A, 200.0)


def test_names_of_clients_do_not_fill_the_memory(evidence: Evidence) -> None:
    for number in range(5000):
        evidence.failed(A, Origin(f"flow-{number}", number), 100.0)
        for server in range(10):
            evidence.answered(f"10.0.1.{server}:8000", Origin(f"flow-{number}", number), 100.0)
    assert len(evidence._answered) == len(evidence._seen) == 1024
    assert max(map(len, evidence._answered.values())) == 4
    assert len(evidence._failures[A]) == 64
