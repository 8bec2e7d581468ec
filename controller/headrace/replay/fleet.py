"""The servers of a replay: the simulator's engine, without its HTTP server."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import xxhash

from headrace.core import Endpoint
from headrace.datalayer.metrics_page import ServerMetrics, Work
from headrace.replay.traces import BLOCK_TOKENS, Arrival
from headrace.simulator.engine import Engine, EngineSettings, StepReport
from headrace.simulator.request import Limits, Phase
from headrace.simulator.request import Sequence as EngineSequence

_HASH_BITS = (1 << 58) - 1


@dataclass(frozen=True, kw_only=True)
class FleetSettings:
    """`slow`: servers by number, and how many times slower each of them is."""

    servers: int = 8
    engine: EngineSettings = field(default_factory=EngineSettings)
    slow: Mapping[int, float] = field(default_factory=dict)


class _Zeros:
    """Writes an answer that says nothing."""

    def next_token(self) -> int:
        return 0


class Server:
    """One server. `start` and `step` give when to call `step` again; None: not before the next `add`."""

    def __init__(self, number: int, settings: EngineSettings) -> None:
        self.number = number
        self.endpoint = Endpoint("default", f"server-{number}", f"10.0.{number >> 8}.{number & 255}", 8000)
        self.engine = Engine(settings)
        self._in_batch: frozenset[str] = frozenset()
        self._adapters: set[str] = set()
        self._open: dict[EngineSequence, None] = {}
        self._work = Work(0, 0, 0, 0, 0)

    def add(self, arrival: Arrival, now: float) -> EngineSequence:
        """Queue a request; `start` it afterwards."""
        sequence = EngineSequence(
            prompt=array("I", bytes(4 * arrival.input_tokens)),
            limits=Limits(max_tokens=arrival.output_tokens),
            writer=_Zeros(),  # type: ignore[arg-type]
            adapter=arrival.adapter or None,
            hashes=hashes_of(arrival, self.engine.settings.block_size),
        )
        self.engine.add(sequence, now)
        self._open[sequence] = None
        return sequence

    def start(self, now: float) -> float | None:
        """Begin a step where none is under way. Gives when it ends, None where one was."""
        if self.engine.due is not None:
            return None
        self.engine.step(now)
        return self.engine.due

    def step(self, now: float) -> tuple[StepReport, float | None]:
        """End the step that is due, and begin the next. Gives what it did, and when the next one ends."""
        report = self.engine.step(now)
        assert report is not None
        if report.adapters:
            self._in_batch = frozenset(report.adapters)
            self._adapters |= self._in_batch
        steps, prompt, written, first_tokens, waited = self._work
        for sequence in report.started_sequences:
            prompt -= 0 if sequence.num_preemptions else sequence.num_prefix_hits
        for sequence in report.generated:
            if sequence.num_output_tokens == 1:
                prompt += len(sequence.prompt)
                first_tokens += 1
                waited += now - sequence.arrival
            if sequence.phase is Phase.FINISHED:
                del self._open[sequence]
        self._work = Work(steps + 1, prompt, written + len(report.generated), first_tokens, waited)
        return report, self.engine.due

    def metrics(self) -> ServerMetrics:
        """What the server's metrics page would say."""
        state, settings = self.engine.state(), self.engine.settings
        return ServerMetrics(
            waiting=state.num_waiting,
            running=state.num_running,
            kv_usage=state.kv_cache_usage,
            running_adapters=self._in_batch if state.num_running else frozenset(),
            max_adapters=settings.max_loras if self._adapters else 0,
            known_adapters=frozenset(self._adapters),
            block_size=settings.block_size,
            num_blocks=settings.num_gpu_blocks,
            work=self._work,
        )

    def seconds_to_first_token(self, arrival: Arrival) -> float:
        """What a request would wait here, were it the last to come: known to the server alone. All prompts that are not
        computed yet go before it, and the answers under way are written on beside them."""
        engine, cost = self.engine, self.engine.settings.cost
        hashes = hashes_of(arrival, engine.settings.block_size)
        cached = len(engine.blocks.cached_prefix(hashes)) * engine.settings.block_size
        tokens = arrival.input_tokens - cached
        context = tokens * cached + tokens * tokens // 2
        decoding = decode_context = 0
        for sequence in self._open:
            if sequence.num_output_tokens:
                decoding += 1
                decode_context += len(sequence.tokens)
                continue
            done = sequence.num_computed
            if sequence.phase is Phase.WAITING:
                done = len(engine.blocks.cached_prefix(sequence.hashes)) * engine.settings.block_size
            left = len(sequence.prompt) - done
            tokens += left
            context += left * done + left * left // 2
        steps = -(-tokens // engine.settings.max_num_batched_tokens)
        beside = cost.seconds(
            prefill_tokens=0, prefill_context=0, decode_sequences=decoding, decode_context=decode_context
        )
        prefill = cost.seconds(
            prefill_tokens=tokens, prefill_context=context, decode_sequences=0, decode_context=0
        ) - cost.seconds(prefill_tokens=0, prefill_context=0, decode_sequences=0, decode_context=0)
        under_way = beside / 2 if engine.due is not None else 0.0
        return prefill + steps * beside + under_way


def servers_of(settings: FleetSettings) -> list[Server]:
    """The fleet, idle."""
    slow, engine = settings.slow, settings.engine
    return [
        Server(
            number, replace(engine, cost=replace(engine.cost, slowdown=engine.cost.slowdown * slow.get(number, 1.0)))
        )
        for number in range(settings.servers)
    ]


def hashes_of(arrival: Arrival, block_size: int) -> list[int]:
    """The hashes of the prompt's full blocks: equal ones for equal beginnings of one adapter's prompts."""
    each, full = BLOCK_TOKENS // block_size, arrival.input_tokens // block_size
    hashes: list[int] = []
    chained = xxhash.xxh3_64_intdigest(arrival.adapter)
    for block in arrival.blocks:
        chained = hash((chained, block)) & _HASH_BITS
        hashes.extend(range(chained << 5, (chained << 5) + each))
    del hashes[full:]
    return hashes
