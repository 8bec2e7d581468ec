"""Role vllm_model_server: the input that it refuses, with what it says, and what comes close to that and is right."""

from __future__ import annotations

from typing import Any

import pytest

from .roles import refusals
from .test_model_server_templates import DIGEST, ROLE


def group(**keys: Any) -> dict[str, Any]:
    return {"vllm_model_server_groups": [{"name": "g", "model": "m", **keys}]}


KEDA = {"by": "keda", "max": 2, "prometheus": "http://p:9090"}
CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "tensor": (group(gpus=8, tensor_parallel=4), ["gpus of that number", "tensor_parallel 4"]),
    "pipeline": (group(gpus=4, pipeline_parallel=3), ["has 4 GPUs", "pipeline_parallel 3"]),
    "vllm-flag": (group(extra_args=["--tensor-parallel-size=2"]), ["gives --tensor-parallel-size=2 in extra_args"]),
    "vllm-short": (group(extra_args=["-tp", "2"]), ["gives -tp in extra_args"]),
    "vllm-drain": (group(extra_args=["--shutdown-timeout=5"]), ["gives --shutdown-timeout=5 in extra_args"]),
    "vllm-lora": (group(extra_args=["--max-cpu-loras", "2"]), ["gives --max-cpu-loras in extra_args"]),
    "simulator-flag": (
        group(engine="simulator", gpus=0, extra_args=["--port=9"]),
        ["gives --port=9 in extra_args", "Fix: remove it"],
    ),
    "sglang-flag": (
        group(engine="sglang", image="i", extra_args=["--enable-metrics"]),
        ["gives --enable-metrics in extra_args"],
    ),
    "sglang-names": (
        group(engine="sglang", image="i", served_model_names=["a", "b"]),
        ["for 2 served_model_names", "one name in served_model_names"],
    ),
    "sglang-lora": (
        group(engine="sglang", image="i", runtime_lora_updating=True),
        ["no way to load adapters into it at run time", "name its adapters in adapters"],
    ),
    "trtllm-flag": (
        group(engine="trtllm", image="i", extra_args=["--tp_size", "2"]),
        ["gives --tp_size in extra_args"],
    ),
    "trtllm-lora": (
        group(engine="trtllm", image="i", adapters=[{"name": "a", "source": "b"}]),
        ["engine trtllm", "take engine vllm or sglang"],
    ),
    "no-source": (group(adapters=[{"name": "a"}]), ["an adapter of group g has no source"]),
    "open-lora": (group(runtime_lora_updating=True, network_policy=False), ["has no NetworkPolicy"]),
    "sync": (group(adapter_sync=True), ["has adapter_sync, and not what it needs"]),
    "no-max": (group(autoscaling={"by": "hpa", "max": 0}), ["1 <= min <= max"]),
    "keda-where": (group(autoscaling={"by": "keda", "max": 2}), ["keda names prometheus"]),
    "keda-name": (
        {"vllm_model_server_groups": [{"name": "n" * 47, "model": "m", "autoscaling": KEDA}]},
        ["a name of at most 46 characters"],
    ),
    "pool-alone": (group(autoscaling={**KEDA, "pool": "p"}), ["pool goes with picker"]),
    "zero": (group(autoscaling={**KEDA, "min": 0}), ["min 0 needs both"]),
    "both": (group(replicas=3, autoscaling={"by": "hpa", "max": 4}), ["the number is the scaler's"]),
    "one-volume": (
        group(replicas=2, cache_size="1Gi", cache_access_mode="ReadWriteOnce"),
        ["one node alone can have (ReadWriteOnce)"],
    ),
    "no-image": (group(engine="sglang"), ["name the image of the engine"]),
    "no-digest": ({**group(), "vllm_model_server_require_digest": True}, ["NAME@sha256:DIGEST"]),
    "no-secret": ({**group(), "vllm_model_server_hf_token": "hf_x"}, ["no group names a Secret for it"]),
    "engine": (group(engine="vlm"), ["value of engine must be one of"]),
    "grace": (group(grace_seconds=80), ["answers would be cut"]),
}
FINE = {
    "plain": group(),
    "scaled": group(autoscaling={"by": "hpa", "max": 4}),
    "keda": {"vllm_model_server_groups": [{"name": "n" * 46, "model": "m", "autoscaling": KEDA}]},
    "zero-kept": group(autoscaling={**KEDA, "min": 0, "pool": "p", "picker": "p-epp"}),
    "sglang": group(engine="sglang", image="i", served_model_names=["a"], adapters=[{"name": "a", "source": "b"}]),
    "split": group(gpus=8, pipeline_parallel=2, data_parallel=2),
    "digest": {**group(image=DIGEST), "vllm_model_server_require_digest": True},
    "other-flags": group(extra_args=["--max-num-seqs=256", "--port-range=1"]),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the preflight says to every case, in one run."""
    cases = {name: variables for name, (variables, _) in CASES.items()} | FINE
    return refusals(tmp_path_factory.mktemp("refusals"), ROLE, cases)


@pytest.mark.parametrize("name", sorted(CASES))
def test_wrong_input_is_refused(told: dict[str, str], name: str) -> None:
    for text in CASES[name][1]:
        assert text in told[name]


@pytest.mark.parametrize("name", sorted(FINE))
def test_right_input_is_not(told: dict[str, str], name: str) -> None:
    assert told[name] == ""
