"""Every role, in somebody else's playbook, names a misspelt variable with the right one, and changes nothing.

And what roles refuse before they ask the cluster anything, where no file of a role's own tests has it."""

from __future__ import annotations

from typing import Any

import pytest

from .roles import ROOT, refusals_of_roles

# Role -> a variable, what somebody may write for it, and what the role must be given besides.
MISSPELT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "container_images": ("container_images_keep", "container_images_kepe", {"local_cluster_cache_dir": "/nowhere"}),
    "envoy_gateway": ("envoy_gateway_replicas", "envoy_gateway_replica", {}),
    "gpu_node_pool": ("gpu_node_pool_provider", "gpu_node_pool_provder", {}),
    "inference_crds": ("inference_crds_gateway_api_source", "inference_crds_gateway_source", {}),
    "inference_gateway": ("inference_gateway_class", "inference_gateway_classes", {}),
    "inference_monitoring": ("inference_monitoring_namespace", "inference_monitoring_name_space", {}),
    "inference_pool": ("inference_pool_failure_mode", "inference_pool_failuremode", {}),
    "local_cluster": ("local_cluster_workers", "local_cluster_worker", {"local_cluster_name": "hrnone"}),
    "lora_adapters": ("lora_adapters_steps", "lora_adapters_step", {}),
    "pool_replacement": ("pool_replacement_gates", "pool_replacement_gate", {"pool_replacement_pool": "p"}),
    "tls_certificate": (
        "tls_certificate_renew_days",
        "tls_certificate_renew_day",
        {"tls_certificate_secret": "s", "tls_certificate_namespace": "n", "tls_certificate_dns_names": ["a"]},
    ),
    "vllm_model_server": ("vllm_model_server_replicas", "vllm_model_server_replcas", {}),
}

# What is wrong -> the role, its variables, and what it says to them.
REFUSED: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "no image of the controller": (
        "envoy_gateway",
        {"envoy_gateway_controller_image": ""},
        ["envoy_gateway_controller_image is empty", "Fix: set headrace_controller_image"],
    ),
    "simulated GPUs on somebody else's cluster": (
        "gpu_node_pool",
        {"headrace_local_cluster": False, "gpu_node_pool_simulated_gpus": 8},
        ["would take Pods that need real ones", "gpu_node_pool_simulated_gpus to 0"],
    ),
    "a backend that is neither pool nor Service": (
        "inference_gateway",
        {"inference_gateway_routes": [{"name": "r", "gateway": "g", "rules": [{"backends": [{"weight": 1}]}]}]},
        ["not exactly one of pool and service", "Fix:"],
    ),
    "a pool that names no picker": (
        "inference_pool",
        {"inference_pool_pools": [{"name": "one", "selector": {"app": "one"}, "picker": ""}]},
        ["pool one names no endpoint picker", "Fix: set its key picker"],
    ),
    "networks that overlap": (
        "local_cluster",
        {
            "local_cluster_name": "hrnone",
            "local_cluster_pod_network": "10.247.0.0/16",
            "local_cluster_service_network": "10.247.0.0/16",
        },
        ["local_cluster_service_network", "Fix:"],
    ),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    cases = {role: (role, {**more, wrong: 1}) for role, (_, wrong, more) in MISSPELT.items()}
    cases |= {name: (role, variables) for name, (role, variables, _) in REFUSED.items()}
    return refusals_of_roles(tmp_path_factory.mktemp("misspelt"), cases)


def test_no_role_is_left_out() -> None:
    assert set(MISSPELT) == {path.name for path in (ROOT / "roles").iterdir() if path.is_dir()}


@pytest.mark.parametrize("role", sorted(MISSPELT))
def test_a_misspelt_variable_is_named_with_the_right_one(told: dict[str, str], role: str) -> None:
    right, wrong, _ = MISSPELT[role]
    assert f"{wrong}: no role knows this variable. Fix: did you mean {right}?" in told[role]
    assert "nothing was applied" in told[role]


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_wrong_input_is_refused(told: dict[str, str], name: str) -> None:
    said = " ".join(told[name].split())
    for text in REFUSED[name][2]:
        assert text in said
