"""The simulated engine: exact times on small cases, invariants on any workload."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.simulator.engine import Engine, EngineSettings
from headrace.simulator.request import FinishReason, Limits, Phase, Sequence
from headrace.simulator.timing import StepCost

from .workloads import PLAIN_COST, Job, Run, play, sequence

PLAIN = EngineSettings(
    max_num_seqs=4, max_num_batched_tokens=64, num_gpu_blocks=101, block_size=4, max_loras=2, cost=PLAIN_COST
)


def finish_times(run: Run) -> list[float]:
    return [round(one.finished_at or -1, 6) for one in run.sequences]


# ---- exact cases


def test_the_first_token_comes_with_the_prefill_and_then_one_a_step() -> None:
    run = play(PLAIN, [Job(0.5, tuple(range(10)), 3)])
    (one,) = run.sequences
    assert one.scheduled_at == 0.5
    assert one.first_token_at == pytest.approx(0.5 + 0.011)
    assert one.finished_at == pytest.approx(0.5 + 0.013)
    assert (one.finish_reason, one.num_output_tokens) == (FinishReason.LENGTH, 3)


def test_a_step_does_nothing_before_it_is_due() -> None:
    engine = Engine(PLAIN)
    engine.add(sequence([1, 2, 3]), 0.0)
    assert engine.step(0.0) is None
    assert engine.due == pytest.approx(0.004)
    assert engine.step(0.003) is None
    report = engine.step(0.004)
    assert report is not None
    assert len(report.generated) == 1
    assert engine.idle


def test_a_long_prompt_is_computed_in_chunks_beside_the_others_decode() -> None:
    jobs = [Job(0.0, (1, 2), 9), Job(0.001, tuple(range(100)), 1)]
    run = play(replace(PLAIN, max_num_batched_tokens=32), jobs)
    # One decode and 31 prompt tokens a step.
    assert [report.prefill_tokens for report in run.reports[:5]] == [2, 31, 31, 31, 7]
    assert all(report.generated[0] is run.sequences[0] for report in run.reports[:5])


def test_sequences_beyond_the_batch_wait_for_capacity_in_order() -> None:
    run = play(replace(PLAIN, max_num_seqs=2), [Job(0.0, (number,), 2) for number in range(5)])
    assert finish_times(run) == [0.004, 0.004, 0.008, 0.008, 0.011]


def test_waiting_sequences_are_counted_by_reason() -> None:
    engine = Engine(replace(PLAIN, max_num_seqs=3))
    for adapter in ("a", "b", "c", "a", "a", None):
        engine.add(sequence([1], 5, adapter), 0.0)
    engine.step(0.0)
    state = engine.state()
    assert (state.num_running, state.num_waiting_deferred, state.num_waiting_capacity) == (3, 1, 2)


def test_a_sequence_without_a_lora_slot_is_passed_over_and_starts_when_one_is_free() -> None:
    run = play(replace(PLAIN, max_loras=1), [Job(0, (1,), 3, "a"), Job(0, (1,), 1, "b"), Job(0, (1,), 1, None)])
    first, deferred, base = run.sequences
    assert base.scheduled_at == 0.0
    assert deferred.scheduled_at == first.finished_at
    assert all(len(report.adapters) <= 1 for report in run.reports)


def test_sequences_passed_over_keep_their_order() -> None:
    jobs = [Job(0, (9,), 3, "a"), *(Job(0, (number,), 1, "b") for number in range(3))]
    run = play(replace(PLAIN, max_loras=1, max_num_batched_tokens=4, max_num_seqs=2), jobs)
    starts = [one.scheduled_at or 0.0 for one in run.sequences]
    assert starts[1] == starts[2] < starts[3], "two fit beside each other, the last one must wait"


def test_a_preempted_sequence_starts_again_before_those_that_came_later() -> None:
    # The third comes when the cache is full; it would fit where the second, grown meanwhile, does not.
    jobs = [Job(at, tuple(range(number, number + 8)), 8) for at, number in ((0, 0), (0, 20), (0.0175, 40))]
    run = play(replace(PLAIN, num_gpu_blocks=7), jobs)
    _, preempted, latest = run.sequences
    assert preempted.num_preemptions == 1
    assert latest.scheduled_at is not None
    again = [report.started for report in run.reports if preempted in report.started_sequences]
    assert len(again) == 2
    assert latest.scheduled_at >= again[1]


def test_loading_an_adapter_takes_time_once_while_it_stays_in_its_slot() -> None:
    settings = replace(PLAIN, max_loras=1, cost=replace(PLAIN_COST, lora_load_milliseconds=50.0))
    jobs = [
        Job(at, (number,), 1, adapter) for number, (at, adapter) in enumerate([(0, "a"), (1, "a"), (2, "b"), (3, "a")])
    ]
    run = play(settings, jobs)
    assert [round(report.ended - report.started, 6) for report in run.reports] == [0.052, 0.002, 0.052, 0.052]


def test_a_full_cache_preempts_the_youngest_which_is_computed_again() -> None:
    # 6 blocks of 4: two prompts of 8 fill four, and each needs two more to write 8 tokens.
    run = play(replace(PLAIN, num_gpu_blocks=7), [Job(0, tuple(range(8)), 8), Job(0, tuple(range(20, 28)), 8)])
    old, young = run.sequences
    assert (old.num_preemptions, young.num_preemptions) == (0, 1)
    assert sum(len(report.preempted) for report in run.reports) == 1
    assert young.finished_at is not None
    assert old.finished_at is not None
    assert young.finished_at > old.finished_at
    assert young.num_output_tokens == 8


def test_a_cached_prefix_is_not_computed_again_but_the_last_token_is() -> None:
    prompt = tuple(range(12))
    run = play(PLAIN, [Job(0, prompt, 1), Job(1, prompt, 1), Job(2, (*prompt, 99), 1), Job(3, (0, 1, 2, 3, 77), 1)])
    assert [one.num_prefix_hits for one in run.sequences] == [0, 8, 12, 4]
    assert [report.prefill_tokens for report in run.reports] == [12, 4, 1, 1]


def test_the_next_turn_finds_the_answers_blocks() -> None:
    first = play(PLAIN, [Job(0, tuple(range(6)), 10)])
    told = tuple(first.sequences[0].tokens)
    second = sequence([*told, 5, 5, 5], 1)
    first.engine.add(second, 9.0)
    first.engine.step(9.0)
    # The last token written was never computed: 15 of 16 tokens have KV, three whole blocks.
    assert second.num_prefix_hits == 12


def test_adapters_do_not_share_kv() -> None:
    prompt = tuple(range(12))
    run = play(PLAIN, [Job(0, prompt, 1), Job(1, prompt, 1, "a"), Job(2, prompt, 1, "b"), Job(3, prompt, 1, "a")])
    assert [one.num_prefix_hits for one in run.sequences] == [0, 0, 0, 8]


def test_without_prefix_caching_nothing_is_found() -> None:
    settings = replace(PLAIN, enable_prefix_caching=False)
    run = play(settings, [Job(0, tuple(range(12)), 1), Job(1, tuple(range(12)), 1)])
    assert run.sequences[1].num_prefix_hits == 0


def test_a_sequence_that_leaves_in_the_middle_of_a_step_frees_everything() -> None:
    run = play(PLAIN, [Job(0, tuple(range(9)), 50, leaves_after=0.0125)])
    (one,) = run.sequences
    assert (one.phase, one.finish_reason, one.num_output_tokens) == (Phase.FINISHED, FinishReason.ABORT, 3)
    assert run.engine.blocks.num_used == 0
    assert run.engine.finish(one, FinishReason.ABORT, 1.0) is False


def test_an_embedding_ends_with_its_prompt() -> None:
    engine = Engine(PLAIN)
    one = sequence([1, 2, 3, 4, 5], 0, pooling=True)
    engine.add(one, 0.0)
    engine.step(0.0)
    engine.step(1.0)
    assert (one.finish_reason, one.num_output_tokens, engine.idle) == (FinishReason.STOP, 0, True)


@pytest.mark.parametrize(("limits", "written", "reason"), [
    (Limits(max_tokens=5, natural_tokens=3), 3, FinishReason.STOP),
    (Limits(max_tokens=3, natural_tokens=5), 3, FinishReason.LENGTH),
    (Limits(max_tokens=9, stop_token_ids=frozenset(range(2**32 - 1, 2**32))), 9, FinishReason.LENGTH),
])  # fmt: skip
def test_what_ends_an_answer(limits: Limits, written: int, reason: FinishReason) -> None:
    engine = Engine(PLAIN)
    one = sequence([1, 2, 3], 1)
    one.limits = limits
    engine.add(one, 0.0)
    while not engine.idle:
        engine.step(engine.due or 0.0)
    assert (one.num_output_tokens, one.finish_reason) == (written, reason)


def test_a_stop_token_ends_an_answer_after_min_tokens() -> None:
    written = play(PLAIN, [Job(0, (1,), 6)]).sequences[0].output
    for least in (0, 4):
        one = sequence([1], 6)
        one.limits = Limits(max_tokens=6, stop_token_ids=frozenset(written), min_tokens=least)
        engine = Engine(PLAIN)
        engine.add(one, 0.0)
        while not engine.idle:
            engine.step(engine.due or 0.0)
        assert (one.num_output_tokens, one.finish_reason) == (max(1, least), FinishReason.STOP)


def test_the_context_bounds_an_answer_and_a_prompt() -> None:
    settings = replace(PLAIN, max_model_len=10)
    run = play(settings, [Job(0, tuple(range(7)), 99)])
    assert (run.sequences[0].num_output_tokens, run.sequences[0].finish_reason) == (3, FinishReason.LENGTH)
    with pytest.raises(ValueError, match="10 tokens exceeds 10"):
        Engine(settings).add(sequence(list(range(10))), 0.0)


def test_costs_add_up() -> None:
    cost = StepCost(
        step_milliseconds=8,
        prefill_microseconds_per_token=100,
        prefill_nanoseconds_per_context_token=10,
        decode_microseconds_per_sequence=50,
        decode_nanoseconds_per_context_token=100,
        lora_load_milliseconds=30,
        speedup=10,
        slowdown=2,
    )
    seconds = cost.seconds(
        prefill_tokens=100, prefill_context=1000, decode_sequences=4, decode_context=10_000, lora_loads=1
    )
    assert seconds == pytest.approx((0.008 + 0.010 + 0.00001 + 0.0002 + 0.001 + 0.030) * 2 / 10)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_num_seqs": 0}, "--max-num-seqs 0"),
        ({"num_gpu_blocks": 1}, "--num-gpu-blocks 1"),
        ({"max_num_batched_tokens": 3}, "--max-num-batched-tokens 3"),
        ({"max_model_len": 401}, "--max-model-len 401: give 2 to 400"),
        ({"max_loras": 0}, "--max-loras 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(PLAIN, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes", [{"speedup": 0}, {"slowdown": -1}, {"step_milliseconds": -1}, {"step_milliseconds": 0}]
)
def test_costs_that_cannot_work_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="--" + next(iter(changes)).replace("_", "-")):
        replace(PLAIN_COST, **changes)


def test_prompts_and_limits_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        sequence([])
    with pytest.raises(ValueError, match="max_tokens 0"):
        sequence([1], 0)


# ---- any workload

jobs = st.lists(
    st.builds(
        Job,
        arrival=st.floats(0, 0.2),
        # Few different tokens and prefixes, so that prompts share some.
        prompt=st.builds(
            lambda prefix, rest: (*[prefix] * (prefix * 3), *rest),
            st.integers(0, 4),
            st.lists(st.integers(0, 2), min_size=1, max_size=20).map(tuple),
        ),
        max_tokens=st.integers(1, 30),
        adapter=st.sampled_from([None, None, "a", "b", "c"]),
        leaves_after=st.none() | st.floats(0, 0.1),
    ),
    max_size=25,
)
settings = st.builds(
    EngineSettings,
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.integers(6, 40),
    num_gpu_blocks=st.integers(20, 60),  # the longest sequence, 12 + 20 + 30 tokens, fits 19 blocks of 4
    block_size=st.sampled_from([4, 8]),
    max_loras=st.integers(1, 3),
    enable_prefix_caching=st.booleans(),
    cost=st.just(PLAIN_COST),
)


@given(settings, jobs)
def test_every_request_finishes_and_no_block_is_lost(chosen: EngineSettings, workload: list[Job]) -> None:
    run = play(chosen, workload)
    assert run.engine.blocks.num_used == 0
    assert len(run.sequences) == len(workload)
    for one, job in zip(run.sequences, sorted(workload, key=lambda job: job.arrival), strict=True):
        assert one.phase is Phase.FINISHED
        if one.finish_reason is FinishReason.ABORT:
            assert job.leaves_after is not None
            continue
        assert one.finish_reason is FinishReason.LENGTH
        assert one.num_output_tokens == job.max_tokens
        assert one.arrival <= one.scheduled_at < one.first_token_at <= one.last_token_at == one.finished_at  # type: ignore[operator]
        assert one.num_prefix_hits % chosen.block_size == 0
        assert one.num_prefix_hits < len(one.prompt)


@given(settings, jobs)
def test_no_step_exceeds_its_limits(chosen: EngineSettings, workload: list[Job]) -> None:
    for report in play(chosen, workload).reports:
        assert report.prefill_tokens <= chosen.max_num_batched_tokens
        assert len(report.generated) <= chosen.max_num_seqs
        assert len(report.adapters) <= chosen.max_loras
        assert report.ended > report.started


@given(settings, jobs)
def test_sequences_of_one_adapter_start_first_come_first_served(chosen: EngineSettings, workload: list[Job]) -> None:
    run = play(chosen, workload)
    started = list(dict.fromkeys(one for report in run.reports for one in report.started_sequences))
    order = {one: number for number, one in enumerate(run.sequences)}
    for adapter in (None, "a", "b", "c"):
        numbers = [order[one] for one in started if one.adapter == adapter]
        assert numbers == sorted(numbers)


@given(settings, jobs)
def test_the_same_workload_gives_the_same_run(chosen: EngineSettings, workload: list[Job]) -> None:
    one, other = play(chosen, workload), play(chosen, workload)
    assert [(r.started, r.ended, r.prefill_tokens) for r in one.reports] == [
        (r.started, r.ended, r.prefill_tokens) for r in other.reports
    ]
    assert [list(s.tokens) for s in one.sequences] == [list(s.tokens) for s in other.sequences]


@given(settings, jobs)
def test_what_is_written_does_not_depend_on_batching_or_caching(chosen: EngineSettings, workload: list[Job]) -> None:
    stay = [replace(job, leaves_after=None) for job in workload]
    crowded = play(chosen, stay)
    alone = play(replace(PLAIN, max_num_seqs=64, num_gpu_blocks=5000, max_loras=9), stay)
    assert [list(s.output) for s in crowded.sequences] == [list(s.output) for s in alone.sequences]


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=24), min_size=1, max_size=12), st.integers(1, 5))
def test_prefix_hits_are_the_longest_shared_whole_blocks(prompts: list[list[int]], block_size: int) -> None:
    """Against brute force, where the cache is large and requests come one after the other."""
    chosen = replace(PLAIN, block_size=block_size, num_gpu_blocks=1000)
    run = play(chosen, [Job(float(number), tuple(prompt), 1) for number, prompt in enumerate(prompts)])
    for number, one in enumerate(run.sequences):
        shared = 0
        for before in prompts[:number]:
            common = next(
                (i for i, (a, b) in enumerate(zip(before, one.prompt, strict=False)) if a != b),
                min(len(before), len(one.prompt)),
            )
            shared = max(shared, common)
        assert one.num_prefix_hits == min(shared, len(one.prompt) - 1) // block_size * block_size


def test_the_engine_is_fast_enough_to_drive_full_batches() -> None:
    """Hundreds of sequences with long prompts in one engine: a bound on hangs, not on speed."""
    big = EngineSettings()
    run_engine = Engine(big)
    for number in range(600):
        one = Sequence(
            prompt=sequence([number, *range(2000)]).prompt,
            writer=sequence([1]).writer,
            limits=Limits(max_tokens=20),
        )
        run_engine.add(one, 0.0)
    steps = 0
    while not run_engine.idle:
        run_engine.step(run_engine.due or 0.0)
        steps += 1
        assert steps < 2000
    assert run_engine.blocks.num_used == 0
