"""The endpoint store and the in-flight ledger: load between scrapes, and accounts that always come out even."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Endpoint, Request
from headrace.datalayer.adapters import AdapterNames
from headrace.datalayer.ledger import InFlight, Ledger
from headrace.datalayer.metrics_page import ServerMetrics
from headrace.datalayer.store import EndpointStore


def endpoint(number: int, uid: str = "u") -> Endpoint:
    return Endpoint(namespace="n", pod_name=f"pod-{number}", address=f"10.0.0.{number}", port=8000, uid=uid)


def store_of(count: int) -> tuple[EndpointStore, Ledger]:
    store = EndpointStore()
    store.replace(endpoint(number) for number in range(1, count + 1))
    return store, Ledger(store)


K1, K2 = endpoint(1).key, endpoint(2).key


def scrape(store: EndpointStore, key: str, asked_at: float, **metrics: object) -> None:
    record = store.get(key)
    assert record is not None
    record.scraped(replace(ServerMetrics(waiting=0, running=0, kv_usage=0.0), **metrics), asked_at)  # type: ignore[arg-type]


def load(store: EndpointStore, key: str) -> tuple[int, int, int]:
    (found,) = [state for state in store.snapshot() if state.key == key]
    return found.waiting, found.running, found.in_flight


def test_load_is_the_scrape_corrected_by_what_was_sent_and_finished_since() -> None:
    store, ledger = store_of(1)
    scrape(store, K1, 10.0, waiting=2, running=3)
    assert load(store, K1) == (2, 3, 0)
    first = ledger.start(Request("a", model="m", body_size=100), K1, 11.0, attached=True)
    second = ledger.start(Request("b", model="m", body_size=100), K1, 12.0, attached=True)
    assert load(store, K1) == (4, 3, 2)
    # The page asked for at 11.5 has seen the first, not the second.
    scrape(store, K1, 11.5, waiting=0, running=4)
    assert load(store, K1) == (1, 4, 2)
    ledger.finish(first, 13.0)
    assert load(store, K1) == (0, 4, 1)
    ledger.finish(second, 14.0)
    assert load(store, K1) == (0, 3, 0)
    scrape(store, K1, 15.0)
    assert load(store, K1) == (0, 0, 0)


def test_without_metrics_the_pickers_own_count_is_the_load() -> None:
    store, ledger = store_of(2)
    scrape(store, K2, 1.0, running=3)
    for number in range(5):
        ledger.start(Request(str(number), model="m", body_size=1), K1, 2.0, attached=True)
    # Three of its five are taken as running, as on the other server.
    assert load(store, K1) == (2, 3, 5)
    record = store.get(K2)
    assert record is not None
    ledger.start(Request("x", model="m", body_size=1), K2, 2.0, attached=True)
    record.scrape_failed("refused", stale=False)
    assert load(store, K2) == (1, 3, 1)
    record.scrape_failed("refused", stale=True)
    assert load(store, K2) == (1, 0, 1)
    assert not store.snapshot()[1].fresh


def test_what_a_fresh_page_does_not_count_is_load_all_the_same() -> None:
    # A server that is asleep or hangs answers its metrics page, and counts nothing that it was sent.
    store, ledger = store_of(1)
    for number in range(3):
        ledger.start(Request(str(number), model="m", body_size=1), K1, 1.0, attached=True)
    scrape(store, K1, 5.0)
    assert load(store, K1) == (3, 0, 3)
    scrape(store, K1, 6.0, running=1)
    assert load(store, K1) == (2, 1, 3)
    # What other clients sent there counts as well, not instead.
    scrape(store, K1, 7.0, running=4, waiting=1)
    assert load(store, K1) == (1, 4, 3)


def test_an_end_that_the_page_knew_of_already_is_counted_once() -> None:
    store, ledger = store_of(1)
    first = ledger.start(Request("1", model="m", body_size=1), K1, 1.0, attached=True)
    ledger.start(Request("2", model="m", body_size=1), K1, 1.0, attached=True)
    # The server was done with the first when it wrote the page; its end is seen here later.
    scrape(store, K1, 5.0, running=1)
    ledger.finish(first, 5.1)
    assert sum(load(store, K1)[:2]) == 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("start", "finish", "page")), st.integers(0, 9), st.integers(0, 9), st.floats(0.0, 1.0)
        ),
        max_size=40,
    )
)
def test_load_is_never_less_than_what_is_in_flight(steps: list[tuple[str, int, int, float]]) -> None:
    store, ledger = store_of(1)
    scrape(store, K1, 0.0)
    entries: list[InFlight] = []
    now = 1.0
    for what, first, second, age in steps:
        now += 0.3
        if what == "start":
            entries.append(ledger.start(Request(str(now), model="m", body_size=1), K1, now, attached=True))
        elif what == "finish" and entries:
            ledger.finish(entries.pop(first % len(entries)), now)
        elif what == "page":
            scrape(store, K1, now - age, running=first, waiting=second)
        waiting, running, in_flight = load(store, K1)
        assert waiting >= 0 <= running
        assert waiting + running >= in_flight == len(entries)


def test_metrics_that_are_not_fresh_say_nothing_of_cache_and_adapters() -> None:
    store, _ = store_of(3)
    adapters = frozenset({"a"})
    scrape(store, K1, 1.0, kv_usage=0.9, running_adapters=adapters, known_adapters=adapters, max_adapters=4)
    scrape(store, K2, 1.0, kv_usage=0.2)
    scrape(store, endpoint(3).key, 1.0, kv_usage=0.4)
    record = store.get(K1)
    assert record is not None
    record.scrape_failed("refused", stale=True)
    state = store.snapshot()[0]
    assert (state.running_adapters, state.waiting_adapters, state.max_adapters) == (frozenset(), frozenset(), 0)
    # Neither full nor empty: as the pool's other servers are.
    assert state.kv_usage == pytest.approx(0.3)
    assert store.snapshot()[1].kv_usage == 0.2


def test_adapters_sent_count_as_in_use_before_the_server_says_so() -> None:
    store, ledger = store_of(1)
    known = frozenset({"a", "b", "c"})
    scrape(store, K1, 1.0, max_adapters=2, running_adapters=frozenset({"a"}), known_adapters=known)
    entry = ledger.start(Request("1", model="b", body_size=1), K1, 2.0, attached=True)
    ledger.start(Request("2", model="base", body_size=1), K1, 2.0, attached=True)
    state = store.snapshot()[0]
    assert state.running_adapters == {"a", "b"}
    assert not state.has_adapter_slot()
    assert "b" in store.adapters.names
    assert "base" not in store.adapters.names
    # Done, it is still loaded, until others have pushed it out.
    ledger.finish(entry, 3.0)
    assert store.snapshot()[0].running_adapters == {"a"}
    assert store.snapshot()[0].resident_adapters == {"b"}
    for name in ("c", "a"):
        ledger.finish(ledger.start(Request(name, model=name, body_size=1), K1, 4.0, attached=True), 5.0)
    assert store.snapshot()[0].resident_adapters == {"a", "c"}


def test_adapters_are_known_while_a_server_that_reports_them_is_there() -> None:
    store, _ = store_of(2)
    scrape(store, K1, 1.0, known_adapters=frozenset({"a", "b"}))
    scrape(store, K2, 1.0, known_adapters=frozenset({"b", "c"}))
    store.snapshot()
    assert store.adapters.names == {"a", "b", "c"}
    scrape(store, K1, 2.0, known_adapters=frozenset({"a"}))
    store.snapshot()
    assert store.adapters.names == {"a", "b", "c"}
    store.replace([endpoint(1)])
    assert store.adapters.names == {"a"}
    assert "b" not in store.adapters.names
    # Another Pod under the same address.
    store.replace([endpoint(1, uid="new")])
    assert store.adapters.names == set()


NAMES = st.frozensets(st.sampled_from("abcdefgh"))


@given(st.lists(st.tuples(st.sampled_from("123"), NAMES)), st.integers(0, 8))
def test_names_of_adapters_are_those_of_present_servers_up_to_a_number(
    reports: list[tuple[str, frozenset[str]]], most: int
) -> None:
    adapters = AdapterNames(most)
    for key, names in reports:
        adapters.report(key, names)
    expected = frozenset().union(*dict(reports).values())
    assert adapters.names <= expected
    assert len(adapters.names) <= most
    if most == 8:
        assert adapters.names == expected
    for key in "123":
        adapters.report(key, frozenset())
    assert not adapters.names


def test_endpoints_come_and_go() -> None:
    store, ledger = store_of(2)
    entry = ledger.start(Request("1", model="m", body_size=1), K1, 1.0, attached=True)
    came, gone = store.replace([endpoint(1), endpoint(3)])
    assert ([e.pod_name for e in came], [e.pod_name for e in gone]) == (["pod-3"], ["pod-2"])
    assert load(store, K1)[2] == 1
    # Another Pod under the same address starts from nothing, and old requests do not touch its account.
    came, gone = store.replace([endpoint(1, uid="new"), endpoint(3)])
    assert ([e.uid for e in came], [e.uid for e in gone]) == (["new"], ["u"])
    assert load(store, K1) == (0, 0, 0)
    ledger.finish(entry, 2.0)
    assert load(store, K1) == (0, 0, 0)
    store.replace([])
    assert store.snapshot() == ()
    assert len(ledger) == 0


def test_an_unchanged_pool_gives_the_same_snapshot() -> None:
    store, ledger = store_of(3)
    before = store.snapshot()
    assert store.snapshot() is before
    ledger.start(Request("1", model="m", body_size=1), K1, 1.0, attached=True)
    after = store.snapshot()
    assert after is not before
    assert after[1:] == before[1:]


def test_observation_joins_by_request_and_destination() -> None:
    store, ledger = store_of(2)
    first = ledger.start(Request("same-id", model="m", body_size=1), K1, 1.0, attached=False)
    second = ledger.start(Request("same-id", model="m", body_size=1), K2, 1.0, attached=False)
    assert ledger.observe("same-id", K2, 1.1) is second
    assert ledger.observe("same-id", f"{K1},{K2}", 1.1) is first
    assert ledger.observe("same-id", "10.9.9.9:1", 1.1) is None
    # Another replica's pick counts here from when it is seen.
    other = ledger.observe("elsewhere", K1, 1.2)
    assert other is not None
    assert load(store, K1)[2] == 2
    assert ledger.expire(1000.0) == []
    for entry in (first, second, other):
        assert ledger.finish(entry, 2.0)
        assert not ledger.finish(entry, 2.0)
    assert len(ledger) == 0
    assert ledger.by_model() == {}


@pytest.mark.parametrize(("observers", "seconds"), [(True, 5.0), (False, 60.0)])
def test_what_is_never_observed_expires(observers: bool, seconds: float) -> None:
    store, ledger = store_of(1)
    if observers:
        ledger.observe("x", "", 0.0)
    ledger.start(Request("attached", model="m", body_size=1), K1, 0.0, attached=True)
    lost = ledger.start(Request("lost", model="m", body_size=1), K1, 1.0, attached=False)
    assert ledger.expire(0.9 + seconds) == []
    assert ledger.expire(1.0 + seconds) == [lost]
    assert load(store, K1)[2] == 1


def test_a_request_served_elsewhere_moves() -> None:
    store, ledger = store_of(2)
    entry = ledger.start(Request("1", model="m", body_size=5), K1, 1.0, attached=True)
    assert ledger.move(entry, K2, 2.0)
    assert not ledger.move(entry, K2, 2.0)
    assert (load(store, K1)[2], load(store, K2)[2]) == (0, 1)
    assert ledger.move(entry, "10.9.9.9:80", 2.0)
    assert (load(store, K1)[2], load(store, K2)[2]) == (0, 0)
    ledger.finish(entry, 3.0)
    assert len(ledger) == 0


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["start", "observe", "move", "finish", "scrape", "pool"]), st.integers(0, 3), st.integers(0, 9)
    ),
    max_size=60,
)


@given(STEPS)
def test_whatever_happens_the_account_comes_out_even(steps: list[tuple[str, int, int]]) -> None:
    store, ledger = store_of(3)
    entries: list[InFlight] = []
    now = 0.0
    for what, number, pick in steps:
        now += 0.5
        key = endpoint(number + 1).key
        if what == "start":
            entries.append(
                ledger.start(
                    Request(f"r{pick % 3}", model=f"m{pick}", body_size=pick), key, now, attached=pick % 2 == 0
                )
            )
        elif what == "observe":
            found = ledger.observe(f"r{pick % 3}", key, now)
            if found is not None and found not in entries:
                entries.append(found)
        elif what == "move" and entries:
            ledger.move(entries[pick % len(entries)], key, now)
        elif what == "finish" and entries:
            ledger.finish(entries.pop(pick % len(entries)), now)
        elif what == "scrape" and store.get(key) is not None:
            scrape(store, key, now - 0.2, waiting=pick, running=number)
        elif what == "pool":
            store.replace(endpoint(n + 1, uid=str(pick % 2)) for n in range(number + 1))
        for state in store.snapshot():
            assert state.in_flight >= 0
            assert state.in_flight_bytes >= 0
            assert state.waiting >= 0
            assert state.running >= 0
        ledger.expire(now)
    for entry in entries:
        ledger.finish(entry, now)
    assert len(ledger) == 0
    assert all(state.in_flight == 0 and state.in_flight_bytes == 0 for state in store.snapshot())


def test_who_listens_is_told_of_what_another_replica_picked_and_we_describe() -> None:
    class Heard(list[tuple[str, InFlight]]):
        def started(self, entry: InFlight) -> None:
            self.append(("started", entry))

        def changed(self, entry: InFlight) -> None:
            self.append(("changed", entry))

        def finished(self, entry: InFlight) -> None:
            self.append(("finished", entry))

    store, _ = store_of(1)
    heard = Heard()
    ledger = Ledger(store, [heard])
    entry = InFlight("r", K1, "m", 1, 0.0, attached=True, record=store.get(K1))
    ledger.described(entry)
    assert heard == [("started", entry)]


def test_what_a_server_no_longer_has_and_nobody_observes_is_over() -> None:
    store, ledger = store_of(2)
    record = store.get(K1)
    assert record is not None
    lost = [
        ledger.start(Request(f"lost{n}", model="m", body_size=1), K1, float(n), attached=False, tokens=10)
        for n in range(3)
    ]
    observed = ledger.start(Request("observed", model="m", body_size=1), K1, 3.0, attached=False)
    ledger.observe("observed", K1, 3.1)
    attached = ledger.start(Request("attached", model="m", body_size=1), K1, 3.5, attached=True)
    elsewhere = ledger.start(Request("elsewhere", model="m", body_size=1), K2, 0.0, attached=False)
    recent = ledger.start(Request("recent", model="m", body_size=1), K1, 9.8, attached=False)
    # Two of the six that must have arrived are gone. The one just sent need not be counted yet.
    scrape(store, K1, 10.0, waiting=1, running=2)
    assert ledger.reconcile(record, 3, 10.0, 10.1) == lost[:2]
    assert [entry.over for entry in (lost[2], observed, attached, elsewhere, recent)] == [False] * 5
    assert record.in_flight == 4
    # The page has not counted them any more: the load it tells is not corrected by their end. The recent one is load.
    assert load(store, K1) == (2, 2, 4)
    assert record.in_flight_tokens == 10
    assert ledger.reconcile(record, 3, 10.0, 10.1) == []
    # What is observed is not ended by a page, whatever it counts.
    scrape(store, K1, 20.0)
    assert ledger.reconcile(record, 0, 20.0, 20.1) == [lost[2], recent]
    assert record.in_flight == 2
    # A late observation brings its request back.
    back = ledger.observe("lost0", K1, 21.0)
    assert back is not None
    assert record.in_flight == 3
    ledger.finish(back, 22.0)
    assert record.in_flight == 2


def test_a_server_with_requests_of_others_ends_none_of_ours() -> None:
    store, ledger = store_of(1)
    record = store.get(K1)
    assert record is not None
    ledger.start(Request("ours", model="m", body_size=1), K1, 0.0, attached=False)
    scrape(store, K1, 10.0, waiting=0, running=7)
    assert ledger.reconcile(record, 7, 10.0, 10.0) == []
