"""How long a pick that nobody observes counts: it depends on whether anybody would."""

from __future__ import annotations

from headrace.core import Request
from headrace.datalayer.ledger import UNOBSERVED_SECONDS, UNOBSERVED_SECONDS_WITHOUT_OBSERVERS, Ledger
from headrace.datalayer.store import EndpointStore


def picked() -> Ledger:
    ledger = Ledger(EndpointStore())
    ledger.start(Request("request", model="model", body_size=100), "10.0.0.1:8000", 0.0, attached=False)
    return ledger


def test_without_observers_a_pick_counts_for_a_long_answer() -> None:
    ledger = picked()
    assert not ledger.expire(UNOBSERVED_SECONDS + 1)
    assert ledger.expire(UNOBSERVED_SECONDS_WITHOUT_OBSERVERS)


def test_where_observers_are_announced_an_unobserved_pick_is_over_soon() -> None:
    ledger = picked()
    ledger.expect_observers()
    assert not ledger.expire(UNOBSERVED_SECONDS - 1)
    assert len(ledger.expire(UNOBSERVED_SECONDS)) == 1
    assert len(ledger) == 0
