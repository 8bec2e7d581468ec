"""Small workloads for the engine, and a run of them on a virtual clock."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field

from headrace.simulator.engine import Engine, EngineSettings, StepReport
from headrace.simulator.request import FinishReason, Limits, Phase, Sequence
from headrace.simulator.timing import StepCost
from headrace.simulator.tokens import Writer

# One millisecond a step and one a prefill token: times are easy to say exactly.
PLAIN_COST = StepCost(
    step_milliseconds=1.0,
    prefill_microseconds_per_token=1000.0,
    prefill_nanoseconds_per_context_token=0,
    decode_microseconds_per_sequence=0,
    decode_nanoseconds_per_context_token=0,
    lora_load_milliseconds=0,
)


def sequence(
    prompt: list[int], max_tokens: int = 1, adapter: str | None = None, *, seed: int = 0, pooling: bool = False
) -> Sequence:
    return Sequence(
        prompt=array("I", prompt),
        adapter=adapter,
        writer=Writer(seed),
        limits=Limits(max_tokens=max_tokens),
        pooling=pooling,
    )


@dataclass(frozen=True)
class Job:
    """One request of a workload."""

    arrival: float
    prompt: tuple[int, ...]
    max_tokens: int
    adapter: str | None = None
    leaves_after: float | None = None
    """Seconds after its arrival when its client disconnects."""


@dataclass
class Run:
    """What became of a workload."""

    engine: Engine
    sequences: list[Sequence] = field(default_factory=list)
    reports: list[StepReport] = field(default_factory=list)


def check_invariants(run: Run) -> None:
    """What must hold between any two steps."""
    engine, settings = run.engine, run.engine.settings
    held = Counter(block for one in run.sequences for block in one.blocks)
    assert engine.blocks.num_used == len(held), "a block is in use that no sequence holds, or the other way round"
    state = engine.state()
    phases = Counter(one.phase for one in run.sequences)
    assert state.num_running == phases[Phase.RUNNING] <= settings.max_num_seqs
    assert state.num_waiting == phases[Phase.WAITING]
    for one in run.sequences:
        assert len(one.blocks) == len(set(one.blocks))
        if one.phase is Phase.RUNNING:
            assert len(one.blocks) * settings.block_size >= one.num_computed
        else:
            assert not one.blocks, "only running sequences hold blocks"
        if one.phase is Phase.WAITING:
            assert one.num_computed == one.num_cached_blocks == 0


def play(settings: EngineSettings, jobs: list[Job], max_steps: int = 20_000) -> Run:
    """Run a workload to its end, jumping from one event to the next, with the invariants checked at each."""
    run = Run(Engine(settings))
    arriving = sorted(jobs, key=lambda job: job.arrival)
    leaving: list[tuple[float, Sequence]] = []
    now = 0.0
    for _ in range(max_steps):
        due = run.engine.due
        times = [due] if due is not None else []
        times += [arriving[0].arrival] if arriving else []
        times += [min(leaving, key=lambda pair: pair[0])[0]] if leaving else []
        if not times:
            assert run.engine.idle, "work is left but no step is planned"
            return run
        now = max(now, min(times))
        while arriving and arriving[0].arrival <= now:
            job = arriving.pop(0)
            added = sequence(list(job.prompt), job.max_tokens, job.adapter, seed=len(run.sequences))
            run.engine.add(added, now)
            run.sequences.append(added)
            if job.leaves_after is not None:
                leaving.append((now + job.leaves_after, added))
        for pair in [pair for pair in leaving if pair[0] <= now]:
            leaving.remove(pair)
            run.engine.finish(pair[1], FinishReason.ABORT, now)
        report = run.engine.step(now)
        if report:
            run.reports.append(report)
        check_invariants(run)
    raise AssertionError(f"not finished after {max_steps} steps: {run.engine.state()}")
