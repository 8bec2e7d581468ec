"""The simulated inference engine: vLLM's V1 scheduler over a model that is a table of costs.

Pure and deterministic: no I/O, no clock, no randomness. `step(now)` ends the step in flight and plans the next one; the
caller waits until `due` and calls again. What is modelled, after vLLM's `v1/core/sched/scheduler.py`:

- continuous batching: running sequences first, in the order they started, then waiting ones first come first served,
  up to `max_num_seqs` sequences and `max_num_batched_tokens` tokens a step; long prompts are computed in chunks;
- KV cache blocks; a running sequence that finds none preempts the one that started last, which is computed again later;
- the prefix cache: a sequence that starts takes the cached blocks of its prefix, but computes at least its last token;
- at most `max_loras` adapters in a step: waiting sequences of another adapter are passed over, and stay in order.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from headrace.config.flags import flag, whole
from headrace.simulator.blocks import BlockPool, block_hashes
from headrace.simulator.request import FinishReason, Phase, Sequence
from headrace.simulator.timing import StepCost


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """The engine's size, named as vLLM's flags. Raises ValueError, naming the flag, for what cannot work."""

    max_num_seqs: int = flag(256, "sequences in a batch", whole(1))
    max_num_batched_tokens: int = flag(8192, "tokens in a step", whole(1))
    num_gpu_blocks: int = flag(27_000, "KV cache blocks", whole(2), "--num-gpu-blocks --num-gpu-blocks-override")
    """54 GB of KV cache at 128 KiB a token: an 8B model on a GPU of 80 GB."""
    block_size: int = flag(16, "tokens of a KV cache block", whole(1))
    max_model_len: int | None = flag(
        None, "longest prompt and answer together, in tokens (default: 131072, or what the KV cache holds)", whole(2)
    )
    """Longest prompt and answer together; None: 131072, or what the KV cache holds if that is less."""
    max_loras: int = flag(2, "adapters in a batch", whole(1))
    enable_prefix_caching: bool = flag(True, "reuse KV blocks of prefixes", action=argparse.BooleanOptionalAction)
    cost: StepCost = field(default_factory=StepCost)

    def __post_init__(self) -> None:
        for name, least in (
            ("max_num_seqs", 1),
            ("max_num_batched_tokens", 1),
            ("num_gpu_blocks", 2),
            ("block_size", 1),
            ("max_loras", 1),
        ):
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"--{name.replace('_', '-')} {value}: give {least} or more")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"--max-num-batched-tokens {self.max_num_batched_tokens}: less than --max-num-seqs "
                f"{self.max_num_seqs}, so a full batch could not decode; raise the first or lower the second"
            )
        if self.max_model_len is not None and not 2 <= self.max_model_len <= self.kv_cache_tokens:
            raise ValueError(
                f"--max-model-len {self.max_model_len}: give 2 to {self.kv_cache_tokens}, which is what "
                f"--num-gpu-blocks {self.num_gpu_blocks} of --block-size {self.block_size} hold"
            )

    @property
    def kv_cache_tokens(self) -> int:
        """Tokens the KV cache holds; one block is reserved."""
        return (self.num_gpu_blocks - 1) * self.block_size

    @property
    def context_length(self) -> int:
        """The longest prompt and answer together."""
        return min(131_072, self.kv_cache_tokens) if self.max_model_len is None else self.max_model_len


@dataclass(frozen=True)
class StepReport:
    """What a finished step did."""

    started: float
    ended: float
    prefill_tokens: int
    generated: tuple[Sequence, ...]
    """Sequences that got one more token, in batch order; those that are finished now say so."""
    started_sequences: tuple[Sequence, ...]
    """Sequences scheduled for the first time (or again, after a preemption) in this step."""
    preempted: tuple[Sequence, ...]
    adapters: tuple[str, ...]
    """Adapters of the step's batch, in batch order."""

    @property
    def num_tokens(self) -> int:
        """Tokens the step computed and wrote: `vllm:iteration_tokens_total`."""
        return self.prefill_tokens + len(self.generated)


@dataclass(frozen=True)
class EngineState:
    """The engine's gauges."""

    num_running: int
    num_waiting_capacity: int
    num_waiting_deferred: int
    kv_cache_usage: float

    @property
    def num_waiting(self) -> int:
        """All waiting sequences."""
        return self.num_waiting_capacity + self.num_waiting_deferred


@dataclass(frozen=True)
class _Plan:
    """The step in flight."""

    started: float
    due: float
    prefill_tokens: int
    work: tuple[tuple[Sequence, int], ...]
    """Sequences and how many of their tokens the step computes."""
    started_sequences: tuple[Sequence, ...]
    preempted: tuple[Sequence, ...]
    adapters: tuple[str, ...]


class Engine:
    """The engine's whole state, and the only code that changes it."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.blocks = BlockPool(settings.num_gpu_blocks)
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._plan: _Plan | None = None
        self._deferred: list[Sequence] = []  # passed over by the last plan
        self._resident: OrderedDict[str, None] = OrderedDict()  # adapters in GPU slots, least recently used first
        # Faults: every step takes so many times as long; vLLM's level of sleep, 0 for awake.
        self.slowness = 1.0
        self.sleep_level = 0

    @property
    def due(self) -> float | None:
        """When the step in flight ends; None while there is none."""
        return self._plan.due if self._plan else None

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._plan or self._running or self._waiting)

    def state(self) -> EngineState:
        """The gauges of this moment."""
        deferred = sum(sequence.deferred for sequence in self._waiting)
        return EngineState(len(self._running), len(self._waiting) - deferred, deferred, self.blocks.usage)

    def add(self, sequence: Sequence, now: float) -> None:
        """Queue a sequence. Raises ValueError when it could never be served: the caller checks lengths first."""
        if len(sequence.prompt) + (0 if sequence.pooling else 1) > self.settings.context_length:
            raise ValueError(f"a prompt of {len(sequence.prompt)} tokens exceeds {self.settings.context_length}")
        sequence.arrival = now
        self._waiting.append(sequence)

    def finish(self, sequence: Sequence, reason: FinishReason, now: float) -> bool:
        """End a sequence early and free all it holds. False when it was finished already.

        The client left (ABORT), or a stop string, which the engine knows nothing of, was found in its text (STOP).
        """
        if sequence.phase is Phase.FINISHED:
            return False
        if sequence.phase is Phase.RUNNING:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
        self._finish(sequence, reason, now)
        return True

    def reset_prefix_cache(self) -> bool:
        """Forget all cached prefixes; False, and nothing done, while a sequence runs."""
        return self.blocks.reset_prefix_cache()

    def forget_adapter(self, adapter: str) -> None:
        """Give an unloaded adapter's GPU slot back."""
        self._resident.pop(adapter, None)

    def step(self, now: float) -> StepReport | None:
        """End the step in flight, if it is due at `now`, and plan the next one from what is queued.

        Returns what the ended step did; None when none ended. Afterwards `due` says when to call again.
        """
        report = None
        if self._plan:
            if now < self._plan.due:
                return None
            report = self._complete(self._plan)
        self._plan = self._schedule(now)
        return report

    # ---- planning a step

    def _schedule(self, now: float) -> _Plan | None:
        budget = self.settings.max_num_batched_tokens
        work: list[tuple[Sequence, int]] = []
        preempted: list[Sequence] = []
        index = 0
        while index < len(self._running) and budget:
            sequence = self._running[index]
            count = min(len(sequence.tokens) - sequence.num_computed, budget)
            if not self._make_room(sequence, count, preempted):
                break  # it had to preempt itself: it was the last one running
            work.append((sequence, count))
            budget -= count
            index += 1
        started = [] if preempted else self._start_waiting(now, budget, work)
        if not work:
            return None
        return self._plan_of(now, work, started, preempted)

    def _make_room(self, sequence: Sequence, count: int, preempted: list[Sequence]) -> bool:
        """Give a running sequence the blocks for its next `count` tokens, preempting from the end of the batch."""
        needed = self._blocks_for(sequence.num_computed + count) - len(sequence.blocks)
        while needed > self.blocks.num_free:
            victim = self._running.pop()
            self._preempt(victim)
            preempted.append(victim)
            if victim is sequence:
                return False
        if needed > 0:
            sequence.blocks.extend(self.blocks.allocate(needed))
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.blocks.free(sequence.blocks)
        sequence.blocks = []
        sequence.num_computed = 0
        sequence.num_cached_blocks = 0
        sequence.num_preemptions += 1
        sequence.phase = Phase.WAITING
        self._waiting.appendleft(sequence)

    def _start_waiting(self, now: float, budget: int, work: list[tuple[Sequence, int]]) -> list[Sequence]:
        adapters = {sequence.adapter for sequence, _ in work if sequence.adapter is not None}
        started: list[Sequence] = []
        for sequence in self._deferred:
            sequence.deferred = False
        passed_over: list[Sequence] = []
        while self._waiting and budget and len(self._running) < self.settings.max_num_seqs:
            sequence = self._waiting[0]
            adapter = sequence.adapter
            if adapter is not None and adapter not in adapters and len(adapters) >= self.settings.max_loras:
                sequence.deferred = True
                passed_over.append(self._waiting.popleft())
                continue
            hits = self._cached_blocks(sequence)
            num_hits = len(hits) * self.settings.block_size
            count = min(len(sequence.tokens) - num_hits, budget)
            needed = self._blocks_for(num_hits + count) - len(hits)
            if needed + self.blocks.num_unused(hits) > self.blocks.num_free:
                break
            self._waiting.popleft()
            self.blocks.acquire(hits)
            sequence.blocks = [*hits, *self.blocks.allocate(needed)]
            sequence.num_computed = num_hits
            sequence.num_cached_blocks = len(hits)
            sequence.phase = Phase.RUNNING
            if sequence.scheduled_at is None:
                sequence.scheduled_at = max(now, sequence.arrival)
                sequence.num_prefix_hits = num_hits
            if adapter is not None:
                adapters.add(adapter)
            self._running.append(sequence)
            started.append(sequence)
            work.append((sequence, count))
            budget -= count
        self._waiting.extendleft(reversed(passed_over))
        self._deferred = passed_over
        return started

    def _plan_of(
        self, now: float, work: list[tuple[Sequence, int]], started: list[Sequence], preempted: list[Sequence]
    ) -> _Plan:
        prefill_tokens = prefill_context = decode_sequences = decode_context = 0
        adapters: dict[str, None] = {}
        for sequence, count in work:
            if sequence.adapter is not None:
                adapters[sequence.adapter] = None
            if count == 1 and sequence.num_output_tokens:
                decode_sequences += 1
                decode_context += len(sequence.tokens)
            else:
                prefill_tokens += count
                # Token i attends to the i before it: the sum over this chunk.
                prefill_context += count * sequence.num_computed + count * (count - 1) // 2
        seconds = self.settings.cost.seconds(
            prefill_tokens=prefill_tokens,
            prefill_context=prefill_context,
            decode_sequences=decode_sequences,
            decode_context=decode_context,
            lora_loads=self._load_adapters(adapters),
        )
        due = now + seconds * self.slowness
        return _Plan(now, due, prefill_tokens, tuple(work), tuple(started), tuple(preempted), tuple(adapters))

    def _load_adapters(self, adapters: dict[str, None]) -> int:
        loads = 0
        for adapter in adapters:
            if adapter not in self._resident:
                loads += 1
            self._resident[adapter] = None
            self._resident.move_to_end(adapter)
        while len(self._resident) > self.settings.max_loras:
            self._resident.popitem(last=False)
        return loads

    # ---- ending a step

    def _complete(self, plan: _Plan) -> StepReport:
        generated: list[Sequence] = []
        for sequence, count in plan.work:
            if sequence.phase is not Phase.RUNNING:
                continue  # aborted while the step was computed
            sequence.num_computed += count
            self._cache_full_blocks(sequence)
            if sequence.num_computed == len(sequence.tokens):
                self._write(sequence, plan.due)
                generated.append(sequence)
        finished = {id(sequence) for sequence in generated if sequence.phase is Phase.FINISHED}
        if finished:
            self._running = [sequence for sequence in self._running if id(sequence) not in finished]
        return StepReport(
            plan.started,
            plan.due,
            plan.prefill_tokens,
            tuple(generated),
            plan.started_sequences,
            plan.preempted,
            plan.adapters,
        )

    def _write(self, sequence: Sequence, now: float) -> None:
        """Add the next token of an answer, or end it."""
        if sequence.first_token_at is None:
            sequence.first_token_at = now
        elif sequence.last_token_at is not None:
            sequence.token_interval = now - sequence.last_token_at
        sequence.last_token_at = now
        if sequence.pooling:
            self._finish(sequence, FinishReason.STOP, now)
            return
        token = sequence.writer.next_token()
        sequence.tokens.append(token)
        limits, written = sequence.limits, sequence.num_output_tokens
        stopped = token in limits.stop_token_ids and written >= limits.min_tokens
        if stopped or written == limits.natural_tokens:
            self._finish(sequence, FinishReason.STOP, now)
        elif written >= limits.max_tokens or len(sequence.tokens) >= self.settings.context_length:
            self._finish(sequence, FinishReason.LENGTH, now)

    def _finish(self, sequence: Sequence, reason: FinishReason, now: float) -> None:
        """Free what a sequence holds. Taking it out of its queue is the caller's part."""
        self.blocks.free(sequence.blocks)
        sequence.blocks = []
        sequence.phase = Phase.FINISHED
        sequence.finish_reason = reason
        sequence.finished_at = now

    # ---- blocks

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.settings.block_size)

    def _extend_hashes(self, sequence: Sequence) -> None:
        known = sequence.hashes
        size = self.settings.block_size
        if (len(known) + 1) * size <= len(sequence.tokens):
            parent = known[-1] if known else None
            known.extend(block_hashes(sequence.tokens, size, parent, len(known), sequence.adapter))

    def _cached_blocks(self, sequence: Sequence) -> list[int]:
        """Cached blocks of a sequence's prefix; never all of it, as its last token must be computed to go on."""
        if not self.settings.enable_prefix_caching:
            return []
        self._extend_hashes(sequence)
        most = (len(sequence.tokens) - 1) // self.settings.block_size
        return self.blocks.cached_prefix(sequence.hashes[:most])

    def _cache_full_blocks(self, sequence: Sequence) -> None:
        full = sequence.num_computed // self.settings.block_size
        if full <= sequence.num_cached_blocks or not self.settings.enable_prefix_caching:
            return
        self._extend_hashes(sequence)
        for index in range(sequence.num_cached_blocks, full):
            self.blocks.cache(sequence.blocks[index], sequence.hashes[index])
        sequence.num_cached_blocks = full
