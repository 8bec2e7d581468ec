"""The flags of `headrace simulate`, and the server they describe. vLLM's names where vLLM has the flag."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Mapping
from importlib import metadata

from headrace.simulator.adapters import Models
from headrace.simulator.engine import EngineSettings
from headrace.simulator.generation import ModelBehaviour
from headrace.simulator.ranges import number, whole_number
from headrace.simulator.server import ModelServer, ServerSettings
from headrace.simulator.timing import StepCost

DEFAULT_MODEL = "meta-llama/Meta-Llama-3-8B-Instruct"
_ENGINE = EngineSettings()
_COST = StepCost()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all flags, in groups."""
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="0.0.0.0", help="address to listen on")
    server.add_argument("--port", type=whole_number(0, 65535), default=8000, help="port to listen on; 0: any free one")
    server.add_argument("--model", default=DEFAULT_MODEL, help="the model to simulate")
    server.add_argument(
        "--served-model-name", nargs="+", action="extend", default=[], metavar="NAME",
        help="names of the base model in requests; metrics use the first (default: the model's own)",
    )  # fmt: skip
    server.add_argument(
        "--lora-adapter", "--lora-modules", nargs="+", action="extend", default=[], metavar="NAME[=PATH]",
        help="adapters that are loaded from the start",
    )  # fmt: skip
    server.add_argument(
        "--enable-lora", action=argparse.BooleanOptionalAction, default=True, help="serve LoRA adapters"
    )
    server.add_argument(
        "--check-lora-paths",
        action="store_true",
        help="refuse with 404 to load an adapter from a path that is not here",
    )
    server.add_argument(
        "--enable-server-load-tracking", action="store_true", help="count running requests in /load, which stays 0 else"
    )

    server.add_argument(
        "--simulate", choices=("vllm", "sglang"), default="vllm",
        help="the engine to be like: sglang has its metrics and /generate, beside the OpenAI API that both have",
    )  # fmt: skip

    engine = parser.add_argument_group("engine")
    engine.add_argument(
        "--max-num-seqs", type=whole_number(1), default=_ENGINE.max_num_seqs, help="sequences in a batch"
    )
    engine.add_argument(
        "--max-num-batched-tokens",
        type=whole_number(1),
        default=_ENGINE.max_num_batched_tokens,
        help="tokens in a step",
    )
    engine.add_argument(
        "--num-gpu-blocks", "--num-gpu-blocks-override", type=whole_number(2), default=_ENGINE.num_gpu_blocks,
        help="KV cache blocks",
    )  # fmt: skip
    engine.add_argument(
        "--block-size", type=whole_number(1), default=_ENGINE.block_size, help="tokens of a KV cache block"
    )
    engine.add_argument(
        "--max-model-len", type=whole_number(2), default=None,
        help="longest prompt and answer together, in tokens (default: 131072, or what the KV cache holds)",
    )  # fmt: skip
    engine.add_argument("--max-loras", type=whole_number(1), default=_ENGINE.max_loras, help="adapters in a batch")
    engine.add_argument(
        "--enable-prefix-caching",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="reuse KV blocks of prefixes",
    )

    timing = parser.add_argument_group("timing", "the defaults are an 8B model in 16 bits on one A100 of 80 GB")
    for name, text in (
        ("step_milliseconds", "every step: reading the weights"),
        ("prefill_microseconds_per_token", "a prompt token"),
        ("prefill_nanoseconds_per_context_token", "a prompt token's attention, for each token before it"),
        ("decode_microseconds_per_sequence", "a sequence that writes a token"),
        ("decode_nanoseconds_per_context_token", "its attention, for each token before it"),
        ("lora_load_milliseconds", "copying an adapter into a GPU slot"),
        ("speedup", "everything is this many times faster"),
        ("slowdown", "everything is this many times slower: a degraded replica"),
    ):
        flag = "--" + name.replace("_", "-")
        timing.add_argument(flag, type=number(0), default=getattr(_COST, name), metavar="NUMBER", help=text)

    behaviour = parser.add_argument_group("behaviour")
    behaviour.add_argument("--seed", type=whole_number(0), default=0, help="of the simulated answers and failures")
    behaviour.add_argument(
        "--mean-answer-tokens", type=whole_number(1), default=ModelBehaviour().mean_answer_tokens,
        help="tokens after which an answer without max_tokens ends by itself, give or take a half",
    )  # fmt: skip
    behaviour.add_argument(
        "--error-rate", type=number(0, 1), default=0.0, metavar="SHARE", help="share of requests answered with 500"
    )
    behaviour.add_argument(
        "--startup-seconds", type=number(0), default=0.0, metavar="SECONDS", help="time before the server listens"
    )
    behaviour.add_argument(
        "--drain-delay-seconds", type=number(0), default=5.0, metavar="SECONDS",
        help="time after SIGTERM in which new requests are still taken, while /health fails",
    )  # fmt: skip
    behaviour.add_argument(
        "--drain-timeout-seconds", type=number(0), default=600.0, metavar="SECONDS",
        help="longest wait for running requests after that",
    )  # fmt: skip


def model_server(args: argparse.Namespace, environment: Mapping[str, str]) -> ModelServer:
    """The server that the flags describe. Raises ValueError, naming the flag, for a combination that cannot work."""
    cost = StepCost(
        step_milliseconds=args.step_milliseconds,
        prefill_microseconds_per_token=args.prefill_microseconds_per_token,
        prefill_nanoseconds_per_context_token=args.prefill_nanoseconds_per_context_token,
        decode_microseconds_per_sequence=args.decode_microseconds_per_sequence,
        decode_nanoseconds_per_context_token=args.decode_nanoseconds_per_context_token,
        lora_load_milliseconds=args.lora_load_milliseconds,
        speedup=args.speedup,
        slowdown=args.slowdown,
    )
    engine = EngineSettings(
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        num_gpu_blocks=args.num_gpu_blocks,
        block_size=args.block_size,
        max_model_len=args.max_model_len,
        max_loras=args.max_loras,
        enable_prefix_caching=args.enable_prefix_caching,
        cost=cost,
    )
    settings = ServerSettings(
        # Kubernetes gives a Pod's containers the Pod's name as host name; POD_NAME (downward API) is for other cases.
        pod_name=environment.get("POD_NAME") or socket.gethostname(),
        engine=engine,
        behaviour=ModelBehaviour(seed=args.seed, mean_answer_tokens=args.mean_answer_tokens),
        enable_lora=args.enable_lora,
        # The real server needs this to be set; the simulator, which is for trying things, only minds a "no".
        runtime_lora=environment.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1").lower() not in ("0", "false", ""),
        load_tracking=args.enable_server_load_tracking,
        simulates=args.simulate,
        error_rate=args.error_rate,
    )
    models = Models(
        model=args.model,
        served_names=tuple(args.served_model_name),
        adapters=_adapters(args),
        check_paths=args.check_lora_paths,
    )
    return ModelServer(settings, models, _version())


def _adapters(args: argparse.Namespace) -> dict[str, str]:
    adapters: dict[str, str] = {}
    for given in args.lora_adapter:
        name, _, path = given.partition("=")
        if not name:
            raise ValueError(f"--lora-adapter {given}: give NAME or NAME=PATH")
        if name in adapters or name in (args.served_model_name or [args.model]):
            raise ValueError(f"--lora-adapter {name}: the name is taken; give each adapter a name of its own")
        adapters[name] = path or f"/adapters/{name}"
    if adapters and not args.enable_lora:
        raise ValueError(f"--lora-adapter {next(iter(adapters))}: adapters need --enable-lora")
    return adapters


def _version() -> str:
    try:
        return metadata.version("headrace")
    except metadata.PackageNotFoundError:
        return "unknown"
