"""How a simulated server is around its engine: its flags."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

from headrace.config.flags import flag, number, whole
from headrace.simulator.engine import EngineSettings
from headrace.simulator.faults import FaultSettings
from headrace.simulator.generation import ModelBehaviour
from headrace.simulator.tokens import MAX_TOKEN_ID


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """The server around the engine."""

    pod_name: str = ""
    """Who answers: header `x-headrace-pod`."""
    engine: EngineSettings = field(default_factory=EngineSettings)
    behaviour: ModelBehaviour = field(default_factory=ModelBehaviour)
    enable_lora: bool = flag(True, "serve LoRA adapters", action=argparse.BooleanOptionalAction)
    runtime_lora: bool = True
    """Whether adapters can be loaded and unloaded over HTTP."""
    load_tracking: bool = flag(
        False,
        "count running requests in /load; otherwise it is always 0",
        names="--enable-server-load-tracking",
        action="store_true",
    )
    """Whether /load counts; it stays 0 otherwise, as vLLM's does."""
    simulates: str = flag(
        "vllm",
        "the engine to be like: sglang has its metrics and /generate, beside the OpenAI API that both have",
        names="--simulate",
        choices=("vllm", "sglang"),
    )
    """The engine that it is like: vllm, or sglang."""
    error_rate: float = flag(0.0, "share of requests answered with 500", number(0, 1), metavar="SHARE")
    """The share of inference requests that is answered with 500, chosen by the seed."""
    runner: str = flag(
        "auto",
        "what the model is: generate (and auto) answers prompts, pooling makes embeddings; the other's routes are 404",
        choices=("auto", "generate", "pooling"),
    )
    vocab_size: int = flag(MAX_TOKEN_ID + 1, "a prompt's token ids are below this, or refused", whole(1))
    enable_auto_tool_choice: bool = flag(
        False, "take chats with tools, which are refused without it; none is ever called", action="store_true"
    )
    faults: FaultSettings = field(default_factory=FaultSettings)

    def __post_init__(self) -> None:
        if not 0 <= self.error_rate <= 1:
            raise ValueError(f"--error-rate {self.error_rate}: give a share from 0 to 1")
