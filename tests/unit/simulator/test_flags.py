"""The flags of `headrace simulate` and `headrace gpu-simulator`."""

from __future__ import annotations

import pytest

from headrace.cli.main import EXIT_USAGE, main
from headrace.simulator import flags
from headrace.simulator.server import ModelServer


def server(*arguments: str, **environment: str) -> ModelServer:
    import argparse

    parser = argparse.ArgumentParser()
    flags.add_arguments(parser)
    return flags.model_server(parser.parse_args(arguments), environment)


def test_defaults() -> None:
    made = server(POD_NAME="pod-1")
    assert made.settings.pod_name == "pod-1"
    assert made.models.served_names == (flags.DEFAULT_MODEL,)
    assert made.settings.engine.context_length == 131_072


def test_names_and_adapters_may_be_repeated_or_listed() -> None:
    made = server(
        *("--served-model-name", "a", "--served-model-name", "b", "c"),
        *("--lora-adapter", "x", "--lora-modules", "y=/p", "z"),
    )
    assert made.models.served_names == ("a", "b", "c")
    assert {entry["id"]: entry["root"] for entry in made.models.listing(0, 1)["data"][3:]} == {
        "x": "/adapters/x",
        "y": "/p",
        "z": "/adapters/z",
    }


def test_timing_flags_reach_the_engine() -> None:
    made = server("--speedup", "4", "--step-milliseconds", "2", "--prefill-microseconds-per-token", "7")
    cost = made.settings.engine.cost
    assert (cost.speedup, cost.step_milliseconds, cost.prefill_microseconds_per_token) == (4, 2, 7)


@pytest.mark.parametrize(("value", "allowed"), [("True", True), ("1", True), ("false", False), ("0", False)])
def test_runtime_adapters_can_be_switched_off(value: str, allowed: bool) -> None:
    assert server(VLLM_ALLOW_RUNTIME_LORA_UPDATING=value).settings.runtime_lora is allowed
    assert server().settings.runtime_lora is True


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["simulate", "--port", "70000"], ["--port=70000", "1 to 65535"]),
        (["simulate", "--max-num-seqs", "0"], ["--max-num-seqs=0", "from 1"]),
        (["simulate", "--error-rate", "2"], ["--error-rate=2", "0 to 1"]),
        (["simulate", "--error-rate", "nan"], ["--error-rate=nan"]),
        (["simulate", "--speedup", "0"], ["--speedup 0", "above 0"]),
        (["simulate", "--num-gpu-blocks", "4", "--max-model-len", "100"], ["--max-model-len 100", "2 to 48"]),
        (["simulate", "--max-num-seqs", "9000"], ["--max-num-batched-tokens 8192", "--max-num-seqs 9000"]),
        (["simulate", "--lora-adapter", "=p"], ["--lora-adapter =p", "NAME"]),
        (["simulate", "--lora-adapter", "a", "a"], ["--lora-adapter a", "taken"]),
        (["simulate", "--model", "m", "--lora-adapter", "m"], ["--lora-adapter m", "taken"]),
        (["simulate", "--no-enable-lora", "--lora-adapter", "a"], ["--lora-adapter a", "--enable-lora"]),
        (["gpu-simulator", "--resource", "gpu"], ["--resource=gpu", "nvidia.com/gpu"]),
        (["gpu-simulator", "--resource", "node.kubernetes.io/gpu"], ["--resource", "outside kubernetes.io"]),
        (["gpu-simulator", "--count", "-1"], ["--count=-1"]),
        (["gpu-simulator", "--plugin-dir", "/" + "x" * 100], ["--plugin-dir", "107", "shorter"]),
    ],
)
def test_wrong_flags_name_flag_value_and_fix(
    argv: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == EXIT_USAGE
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert "Traceback" not in error
