"""Decisions and their books: deadline and failure mode, prefixes, refusals, the decision log, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest
from prometheus_client import generate_latest

from headrace.core import Decision, Endpoint, FailureMode, Refusal, RefusalReason, Request
from headrace.epp.composition import Components
from headrace.epp.director import Director, Pick
from headrace.epp.metrics import Metrics, PoolCollector
from headrace.extproc.events import PickNeeded
from headrace.flowcontrol import FlowControlConfig
from headrace.scheduling import EndpointState, Facts, SchedulingConfig


class Clock:
    """A clock that the test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def director(**changes: Any) -> Components:
    fields: dict[str, Any] = {
        "config": SchedulingConfig(),
        "flow_control": FlowControlConfig(),
        "metrics": Metrics("pool"),
        "clock": Clock(),
        "rng": Random(1),
        "pick_deadline": 0.05,
        "decisions_kept": 10,
        **changes,
    }
    return Components(**fields)


def endpoints(count: int) -> tuple[Endpoint, ...]:
    return tuple(
        Endpoint(namespace="n", pod_name=f"pod-{n}", address=f"10.0.0.{n}", port=8000) for n in range(1, count + 1)
    )


def needed(covers_response: bool = True, **request: Any) -> PickNeeded:
    return PickNeeded(Request(**{"request_id": "r", **request}), covers_response)


async def test_a_pick_is_counted_logged_and_ended() -> None:
    picked_keys: list[str] = []
    d = director(on_pick=picked_keys.append)
    d.pool.endpoints_changed(endpoints(2), FailureMode.CLOSE)
    picked = await d.director.decide(needed(model="m", prompt=b"x" * 600, body_size=600))
    assert isinstance(picked.answer, Decision)
    (key,) = picked.answer.endpoints
    assert picked_keys == [key]
    record = d.pool.store.get(key)
    assert record is not None
    assert record.in_flight == 1
    assert d.index.entries(key) == 2
    (logged,) = d.decisions.find(request_id="r")
    assert (logged["winner"], logged["model"], logged["candidate_count"]) == (key, "m", 2)
    assert "queue-scorer" in logged["candidates"][0]["scores"]
    assert "prompt" not in {name for name in logged if name != "prompt_blocks"}
    assert picked.entry is not None
    d.pool.finished(picked.entry)
    d.pool.finished(picked.entry)
    assert record.in_flight == 0
    text = generate_latest(d.metrics.registry).decode()
    assert 'inference_objective_request_total{model_name="m",priority="0",target_model_name="m"} 1.0' in text
    assert 'inference_objective_request_duration_seconds_count{model_name="m",target_model_name="m"} 1.0' in text


async def test_the_same_prefix_goes_where_it_went() -> None:
    d = director()
    d.pool.endpoints_changed(endpoints(5), FailureMode.CLOSE)
    prompts = [bytes([n]) * 2000 for n in range(5)]
    homes = []
    for prompt in prompts:
        picked = await d.director.decide(needed(model="m", prompt=prompt))
        assert picked.entry is not None
        homes.append(picked.entry.endpoint)
        d.pool.finished(picked.entry)
    for prompt, home in zip(prompts, homes, strict=True):
        picked = await d.director.decide(needed(model="m", prompt=prompt + b"more" * 100))
        assert picked.entry is not None
        assert picked.entry.endpoint == home
        d.pool.finished(picked.entry)


async def test_a_burst_is_spread_without_any_metrics() -> None:
    d = director()
    d.pool.endpoints_changed(endpoints(4), FailureMode.CLOSE)
    for number in range(40):
        await d.director.decide(needed(request_id=str(number)))
    assert [state.in_flight for state in d.pool.store.snapshot()] == [10] * 4


@pytest.mark.parametrize(("count", "subset"), [(0, None), (2, ()), (2, ("10.9.9.9",))])
async def test_nowhere_to_go_is_503(count: int, subset: tuple[str, ...] | None) -> None:
    d = director()
    d.pool.endpoints_changed(endpoints(count), FailureMode.OPEN)
    picked = await d.director.decide(needed(subset=subset))
    assert isinstance(picked.answer, Refusal)
    assert (picked.answer.status, picked.answer.reason) == (503, RefusalReason.NO_ENDPOINTS)
    assert "10." not in picked.answer.message
    (logged,) = d.decisions.find()
    assert logged["refused"] == {"status": 503, "reason": "rejected-no-endpoints"}


async def test_a_pool_that_is_not_known_in_time_ends_in_the_failure_mode() -> None:
    d = director()
    picked = await d.director.decide(needed())
    assert isinstance(picked.answer, Refusal)
    assert (picked.answer.status, picked.answer.reason) == (503, RefusalReason.PICK_DEADLINE)
    d.pool.failure_mode = FailureMode.OPEN
    picked = await d.director.decide(needed())
    assert picked.answer == Decision(())
    picked = await d.director.decide(needed(subset=("10.0.0.1",)))
    assert isinstance(picked.answer, Refusal)


async def test_a_pick_waits_for_the_pool() -> None:
    d = director(pick_deadline=10.0)
    waiting = asyncio.create_task(d.director.decide(needed()))
    await asyncio.sleep(0)
    assert not waiting.done()
    d.pool.endpoints_changed(endpoints(1), FailureMode.CLOSE)
    assert (await waiting).answer == Decision(("10.0.0.1:8000",))


@pytest.mark.parametrize("mode", list(FailureMode))
async def test_a_fault_in_a_pick_ends_in_the_failure_mode(mode: FailureMode, monkeypatch: pytest.MonkeyPatch) -> None:
    d = director()
    d.pool.endpoints_changed(endpoints(2), mode)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(d.index, "matches", fail)
    picked = await d.director.decide(needed(subset=("10.0.0.2",), prompt=b"x" * 600))
    if mode is FailureMode.OPEN:
        assert picked.answer == Decision(("10.0.0.2:8000",))
    else:
        assert isinstance(picked.answer, Refusal)
        assert picked.answer.status == 503


async def test_admission_may_hold_and_refuse_and_its_time_is_its_own() -> None:
    released = asyncio.Event()
    refusal = Refusal(429, RefusalReason.SATURATED, "full")

    class Gate:
        may_wait = True

        def admit_at_once(self, request: Request) -> Refusal | None:
            raise AssertionError("it may have to wait")

        async def admit(self, request: Request) -> Refusal | None:
            await released.wait()
            return refusal if request.model == "refused" else None

        def picked(self) -> None:
            pass

    d = director()
    d.pool.endpoints_changed(endpoints(1), FailureMode.CLOSE)
    gated = Director(
        SchedulingConfig(),
        d.pool,
        policies=d.policies,
        admission=Gate(),
        producers=d.producers,
        memory=d.memory,
        rng=Random(1),
        pick_deadline=0.01,
    )
    held = [asyncio.create_task(gated.decide(needed(model=model))) for model in ("admitted", "refused")]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in held)
    released.set()
    admitted, refused = await asyncio.gather(*held)
    assert admitted.answer == Decision(("10.0.0.1:8000",))
    assert refused.answer == refusal
    assert refused.entry is None


async def test_a_faulty_observer_costs_no_request() -> None:
    seen: list[Pick] = []

    def fail(pick: Pick) -> None:
        raise ZeroDivisionError

    d = director(observers=[fail, seen.append])
    d.pool.endpoints_changed(endpoints(1), FailureMode.CLOSE)
    pick = await d.director.decide(needed())
    assert pick.answer == Decision(("10.0.0.1:8000",))
    assert seen == [pick]


async def test_a_pick_that_fails_after_it_was_counted_is_counted_no_more() -> None:
    class Faulty:
        def prepare(self, facts: Facts, states: Sequence[EndpointState]) -> None:
            pass

        def picked(self, state: EndpointState, facts: Facts) -> None:
            raise ZeroDivisionError

    d = director(config=SchedulingConfig(plugins={"faulty": Faulty()}))
    d.pool.endpoints_changed(endpoints(2), FailureMode.OPEN)
    pick = await d.director.decide(needed())
    assert isinstance(pick.answer, Decision)
    assert [record.in_flight for record in d.pool.store.records()].count(1) == len(d.pool.ledger) == 1
    assert pick.entry is not None
    d.pool.finished(pick.entry)
    assert len(d.pool.ledger) == 0


async def test_endpoints_that_leave_take_their_prefixes_and_series_along() -> None:
    d = director()
    d.pool.endpoints_changed(endpoints(1), FailureMode.CLOSE)
    await d.director.decide(needed(prompt=b"x" * 600))
    assert 'pod_name="pod-1"' in generate_latest(d.metrics.registry).decode()
    d.pool.endpoints_changed((), FailureMode.CLOSE)
    assert len(d.index) == 0
    assert 'pod_name="pod-1"' not in generate_latest(d.metrics.registry).decode()


async def test_large_pools_keep_the_winner_only() -> None:
    d = director()
    d.pool.endpoints_changed(endpoints(200), FailureMode.CLOSE)
    await d.director.decide(needed())
    (logged,) = d.decisions.find()
    assert logged["candidate_count"] == 200
    assert [candidate["endpoint"] for candidate in logged["candidates"]] == [logged["winner"]]
    assert "200 candidates" in logged["reason"]


async def test_expiry_and_observation() -> None:
    clock = Clock()
    d = director(clock=clock)
    d.pool.endpoints_changed(endpoints(2), FailureMode.CLOSE)
    seen = await d.director.decide(needed(False, request_id="seen"))
    await d.director.decide(needed(False, request_id="lost"))
    assert seen.entry is not None
    entry = d.pool.observed("seen", seen.entry.endpoint)
    assert entry is seen.entry
    other = next(state.key for state in d.pool.store.snapshot() if state.key != entry.endpoint)
    d.pool.answered(entry, other, 500)
    assert entry.endpoint == other
    clock.now += 10
    d.expire()
    assert len(d.pool.ledger) == 1
    d.pool.finished(entry)
    assert len(d.pool.ledger) == 0
    text = generate_latest(d.metrics.registry).decode()
    assert "headrace_epp_served_elsewhere_total 1.0" in text
    assert "headrace_epp_unobserved_requests_total 1.0" in text
    assert 'inference_objective_request_error_total{error_code="500"' in text


async def test_the_pools_gauges() -> None:
    d = director()
    d.metrics.registry.register(PoolCollector("pool", d.pool.store, d.pool.ledger, d.index))
    d.pool.endpoints_changed(endpoints(2), FailureMode.CLOSE)
    await d.director.decide(needed(model="m"))
    text = generate_latest(d.metrics.registry).decode()
    for line in (
        'inference_pool_ready_pods{name="pool"} 2.0',
        'inference_pool_average_queue_size{name="pool"} 0.5',
        "headrace_epp_ledger_requests 1.0",
        'inference_objective_running_requests{model_name="m"} 1.0',
        'inference_pool_per_pod_queue_size{model_server_pod="pod-1",name="pool"}',
    ):
        assert line in text


def test_every_metric_has_help() -> None:
    text = generate_latest(Metrics("p").registry).decode()
    helps: Callable[[str], list[str]] = lambda kind: [line for line in text.splitlines() if line.startswith(kind)]  # noqa: E731
    assert len(helps("# HELP")) == len(helps("# TYPE")) > 10
