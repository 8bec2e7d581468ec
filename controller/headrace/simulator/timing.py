"""How long a step of the simulated engine takes.

A step is one forward pass over everything that was scheduled. The defaults are derived for an 8-billion-parameter model
in 16 bits on one GPU of the A100 80 GB class (2.0 TB/s, 312 TFLOP/s dense):

- every step reads the weights once: 16 GB at 2.0 TB/s is 8 ms;
- a prompt token costs 2 x 8e9 operations at about 55 % of the peak: 95 us;
- attention of a prompt token over the tokens before it, 4 x 32 layers x 4096 operations per pair: 3 ns;
- a sequence that decodes costs its sampling and scheduling: 50 us;
- and reads its KV cache, 128 KiB per token of context: 65 ns.
These are derived, not measured: they give the right shape (prefill is compute bound, decode is bandwidth bound), not
the figures of one deployment.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from headrace.config.flags import flag, number

_MICRO = 1e-6
_NANO = 1e-9


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Constants of a step's duration, in the units their names say. Raises ValueError for a negative one."""

    step_milliseconds: float = flag(8.0, "every step: reading the weights", number(0), metavar="NUMBER")
    prefill_microseconds_per_token: float = flag(95.0, "a prompt token", number(0), metavar="NUMBER")
    prefill_nanoseconds_per_context_token: float = flag(
        3.0, "a prompt token's attention, for each token before it", number(0), metavar="NUMBER"
    )
    decode_microseconds_per_sequence: float = flag(50.0, "a sequence that writes a token", number(0), metavar="NUMBER")
    decode_nanoseconds_per_context_token: float = flag(
        65.0, "its attention, for each token before it", number(0), metavar="NUMBER"
    )
    lora_load_milliseconds: float = flag(30.0, "copying an adapter into a GPU slot", number(0), metavar="NUMBER")
    """An adapter that is not in a GPU slot is copied there from host memory before the step."""
    speedup: float = flag(1.0, "everything is this many times faster", number(0), metavar="NUMBER")
    """Everything is this many times faster. Metrics are in real seconds, so they shrink with it."""
    slowdown: float = flag(1.0, "everything is this many times slower: a degraded replica", number(0), metavar="NUMBER")
    """Everything is this many times slower: a degraded replica."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            flag = "--" + field.name.replace("_", "-")
            if field.name in ("speedup", "slowdown"):
                if not 0 < value < float("inf"):
                    raise ValueError(f"{flag} {value}: give a number above 0")
            elif not 0 <= value < float("inf"):
                raise ValueError(f"{flag} {value}: give 0 or a positive number")
        if not self.step_milliseconds and not self.decode_microseconds_per_sequence:
            raise ValueError("--step-milliseconds 0: a step must take time; give a positive number")

    def seconds(
        self,
        *,
        prefill_tokens: int,
        prefill_context: int,
        decode_sequences: int,
        decode_context: int,
        lora_loads: int = 0,
    ) -> float:
        """The duration of a step.

        `prefill_tokens` are the prompt tokens computed in it; `prefill_context` is the number of (token, earlier token)
        pairs their attention covers; `decode_context` is the sum of the decoding sequences' lengths.
        """
        total = (
            self.step_milliseconds * 1e-3
            + prefill_tokens * self.prefill_microseconds_per_token * _MICRO
            + prefill_context * self.prefill_nanoseconds_per_context_token * _NANO
            + decode_sequences * self.decode_microseconds_per_sequence * _MICRO
            + decode_context * self.decode_nanoseconds_per_context_token * _NANO
            + lora_loads * self.lora_load_milliseconds * 1e-3
        )
        return total * self.slowdown / self.speedup
