"""Wrong input is refused, each time with the variable's name and the fix."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

GOOD: dict[str, Any] = {
    "headrace_local_cluster": True,
    "local_cluster_publish_address": "127.0.0.1:8080",
    "gpu_node_pools": [{"name": "simulated", "node_selector": {"kubernetes.io/os": "linux"}}],
    "vllm_model_server_groups": [
        {"name": "llama", "model": "meta/llama", "labels": {"app": "llama", "tier": "gpu"}},
        {"name": "qwen", "model": "Qwen/qwen", "namespace": "other", "port": 8001},
    ],
    "inference_pool_pools": [
        {"name": "llama", "api_version": "v1alpha2", "selector": {"app": "llama"}, "picker": "llama-epp"},
        {
            "name": "qwen",
            "namespace": "other",
            "selector": {"app": "qwen"},
            "target_ports": [8001],
            "picker": "qwen-epp",
        },
    ],
    "inference_gateway_gateways": [
        {"name": "gateway", "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}]}
    ],
    "inference_gateway_routes": [
        {
            "name": "llama",
            "gateway": "gateway",
            "rules": [{"path": "/", "backends": [{"pool": "llama", "api_version": "v1alpha2", "weight": 1}]}],
        },
        {
            "name": "qwen",
            "namespace": "other",
            "gateway": "gateway",
            "gateway_namespace": "default",
            "rules": [{"backends": [{"pool": "qwen"}, {"service": "web", "port": 80}]}],
        },
    ],
}


@pytest.fixture
def problems(preflight: ModuleType, repository: Path) -> Callable[[dict[str, Any]], list[str]]:
    specs, facts = preflight.load_specs(repository), preflight.load_facts(repository)
    return lambda values: preflight.problems(values, list(values), specs, facts)


def changed(path: str, value: Any) -> dict[str, Any]:
    """GOOD with the value at a dotted path replaced; None removes it."""
    values = copy.deepcopy(GOOD)
    at: Any = values
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    for step in way:
        at = at[step]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return values


def test_a_right_inventory_has_no_problem(problems: Callable[[dict[str, Any]], list[str]]) -> None:
    assert problems(GOOD) == []


@pytest.mark.parametrize(
    ("path", "value", "names", "fix"),
    [
        ("inference_pool_replica", 2, "inference_pool_replica:", "did you mean inference_pool_replicas?"),
        ("vllm_model_servers", [], "vllm_model_servers:", "vllm_model_server"),
        ("inference_pool_zzz_qqq", 1, "inference_pool_zzz_qqq:", "roles/inference_pool/README.md"),
        ("headrace_contxt", "a", "headrace_contxt:", "did you mean headrace_context?"),
        ("inference_pool_pools.0.selectr", {}, "inference_pool_pools[llama].selectr:", "did you mean selector?"),
        ("inference_gateway_routes.0.rules.0.backend", [], "backend:", "did you mean backends?"),
        (
            "inference_pool_pools.0.selector",
            {"app": "lama"},
            "inference_pool_pools[llama].selector",
            "matches no model server",
        ),
        ("inference_pool_pools.0.namespace", "third", "inference_pool_pools[llama].selector", "namespace third"),
        (
            "inference_pool_pools.0.selector",
            None,
            "inference_pool_pools[llama].selector",
            "labels of its model servers",
        ),
        ("inference_pool_pools.0.picker", None, "inference_pool_pools[llama].picker", "llama-epp"),
        ("inference_pool_pools.0.picker", "", "inference_pool_pools[llama].picker", "llama-epp"),
        ("inference_pool_pools.1.target_ports", [0], "inference_pool_pools[qwen].target_ports", "1 to 65535"),
        ("inference_pool_pools.1.target_ports", [8000], "inference_pool_pools[qwen].target_ports", "listen on 8001"),
        ("inference_pool_pools.1.picker_port", 65536, "inference_pool_pools[qwen].picker_port", "1 to 65535"),
        ("inference_pool_picker_port", "x", "inference_pool_picker_port", "1 to 65535"),
        ("vllm_model_server_groups.0.port", 0, "vllm_model_server_groups[llama].port", "1 to 65535"),
        ("vllm_model_server_port", -1, "vllm_model_server_port", "1 to 65535"),
        ("inference_gateway_gateways.0.listeners.0.port", 0, "inference_gateway_gateways[gateway]", "1 to 65535"),
        ("inference_gateway_routes.1.rules.0.backends.1.port", 70000, "inference_gateway_routes[qwen]", "1 to 65535"),
        ("local_cluster_publish_address", "127.0.0.1:0", "local_cluster_publish_address", "1 to 65535"),
        (
            "inference_pool_pools.1",
            GOOD["inference_pool_pools"][0],
            "inference_pool_pools: two entries",
            "give each its own name",
        ),
        (
            "inference_pool_pools.1",
            {**GOOD["inference_pool_pools"][0], "name": "b"},
            "two entries have the picker llama-epp",
            "its own picker",
        ),
        (
            "vllm_model_server_groups.1",
            GOOD["vllm_model_server_groups"][0],
            "vllm_model_server_groups: two entries",
            "its own name",
        ),
        (
            "inference_gateway_routes.1",
            GOOD["inference_gateway_routes"][0],
            "inference_gateway_routes: two entries",
            "its own name",
        ),
        (
            "inference_gateway_routes.0.rules.0.backends.0.pool",
            "lama",
            "inference_gateway_routes[llama].backends",
            "did you mean llama?",
        ),
        (
            "inference_gateway_routes.0.rules.0.backends.0.api_version",
            "v1",
            "inference_gateway_routes[llama]",
            "set the backend's api_version to v1alpha2",
        ),
        (
            "inference_gateway_routes.0.gateway",
            "gatway",
            "inference_gateway_routes[llama].gateway",
            "did you mean gateway?",
        ),
        ("inference_pool_pools.0.failure_mode", "FailSafe", "failure_mode", "FailOpen, FailClose"),
        ("vllm_model_server_groups.0.replicas", "three", "replicas", "vllm_model_server_groups"),
        (
            "gpu_node_pools.0.instance_typ",
            "g2",
            "gpu_node_pools[simulated].instance_typ",
            "did you mean instance_type?",
        ),
        ("gpu_node_pools.0.count", "many", "count", "gpu_node_pools"),
        ("gpu_node_pools", [{"name": "a"}, {"name": "a"}], "gpu_node_pools: two entries", "its own name"),
    ],
)
def test_wrong_input_is_named_with_its_fix(
    problems: Callable[[dict[str, Any]], list[str]], path: str, value: Any, names: str, fix: str
) -> None:
    found = problems(changed(path, value))
    assert any(names in one and fix in one for one in found), found


KEEPS = {"featureGates": ["flowControl"], "flowControl": {"noEndpointRequestTTL": "15m"}}


@pytest.mark.parametrize(
    ("config", "timeout", "pool", "says"),
    [
        (KEEPS, None, "llama", ""),
        (KEEPS, "20m", "llama", ""),
        (KEEPS | {"flowControl": {"noEndpointRequestTTL": "0s"}}, None, "llama", ""),
        (KEEPS | {"featureGates": []}, None, "llama", "does not keep requests"),
        (None, None, "llama", "does not keep requests"),
        (KEEPS | {"flowControl": {"noEndpointRequestTTL": "9m"}}, None, "llama", "for 540 s"),
        (KEEPS | {"flowControl": {}}, None, "llama", "for 60 s"),
        (KEEPS | {"flowControl": {"noEndpointRequestTTL": "soon"}}, None, "llama", "no duration"),
        (KEEPS, "5m", "llama", "inference_gateway_routes[route].rules.timeout: 5m"),
        (KEEPS, None, "lama", "did you mean llama"),
    ],
)
def test_a_group_that_scales_to_zero_has_a_picker_that_keeps_requests(
    preflight: ModuleType, config: dict[str, Any] | None, timeout: str | None, pool: str, says: str
) -> None:
    rule = {"backends": [{"pool": "llama"}]} | ({"timeout": timeout} if timeout else {})
    pools: list[dict[str, Any]] = [{"name": "llama", "picker": "llama-epp"}]
    if config:
        pools[0]["picker_config"] = config
    values = {
        "vllm_model_server_groups": [
            {"name": "llama", "autoscaling": {"by": "keda", "min": 0, "max": 2, "pool": pool, "picker": "llama-epp"}}
        ],
        "inference_pool_pools": pools,
        "inference_gateway_routes": [{"name": "route", "rules": [rule]}],
    }
    found = list(preflight.stack_checks.requests_not_kept(values))
    assert len(found) == bool(says)
    assert not says or (says in found[0] and "Fix: " in found[0])


def test_every_problem_is_told_at_once(problems: Callable[[dict[str, Any]], list[str]]) -> None:
    values = changed("inference_pool_pools.0.picker", None)
    values["vllm_model_server_port"] = 0
    values["inference_pool_replica"] = 1
    found = "\n".join(problems(values))
    for name in ("inference_pool_pools[llama].picker", "vllm_model_server_port", "inference_pool_replica"):
        assert name in found


def test_a_removed_variable_is_named_with_the_one_that_took_its_place(preflight: ModuleType) -> None:
    specs = {"inference_pool": {"inference_pool_pools": {"type": "list"}}}
    removed = {"inference_pool_list": "2.0.0. Fix: set inference_pool_pools."}
    [told] = preflight.problems({}, ["inference_pool_list"], specs, set(), removed)[:1]
    assert told == "inference_pool_list: removed in 2.0.0. Fix: set inference_pool_pools."


def test_a_role_looks_at_its_own_variables_alone(preflight: ModuleType, repository: Path) -> None:
    specs, facts = preflight.load_specs(repository), preflight.load_facts(repository)
    names = ["inference_pool_picker_prot", "inference_gateway_clas", "inference_pool_pools", "inference_pool_monitor"]
    told = list(preflight.unknown_variables(names, specs, facts, {}, "inference_pool"))
    assert [one.split(":")[0] for one in told] == ["inference_pool_monitor", "inference_pool_picker_prot"]
    assert told[1].endswith("did you mean inference_pool_picker_port?")


def test_pools_of_other_peoples_servers_are_possible(problems: Callable[[dict[str, Any]], list[str]]) -> None:
    assert (
        problems(
            changed(
                "inference_pool_pools.0",
                {**GOOD["inference_pool_pools"][0], "selector": {"app": "theirs"}, "external_model_servers": True},
            )
        )
        == []
    )
    assert (
        problems(
            changed(
                "inference_pool_pools.0",
                {"name": "llama", "api_version": "v1alpha2", "picker": "llama-epp", "create": False},
            )
        )
        == []
    )


def test_an_inventory_without_a_cluster_of_its_own_must_bring_more(preflight: ModuleType) -> None:
    def ask(which: str | None = "/usr/bin/helm", exists: bool = True, **values: Any) -> str:
        found = preflight.stack_checks.wrong_place(
            {"headrace_local_cluster": False, **values}, lambda name: which, lambda path: exists
        )
        return "\n".join(found)

    full = {"headrace_context": "prod", "headrace_controller_image": "registry.example.com/headrace:1"}
    assert ask(**full) == ""
    assert "headrace_context" in ask(**{**full, "headrace_context": ""})
    assert "headrace_controller_image" in ask(**{**full, "headrace_controller_image": ""})
    assert "headrace_kubeconfig" in ask(exists=False, headrace_kubeconfig="/no/where", **full)
    assert "helm" in ask(which=None, **full)
    assert "gpu_node_pool_simulated_gpus" in ask(gpu_node_pool_simulated_gpus=1, **full)


def test_the_summary_names_what_there_is(preflight: ModuleType) -> None:
    assert preflight.summary(GOOD) == [
        "GPU node pools: simulated",
        "Model servers: llama (replicas: 1), other/qwen (replicas: 1)",
        "Pools: llama, other/qwen",
        "Gateways: gateway",
        "Routes: llama, other/qwen",
    ]
    scaled = {"name": "s", "autoscaling": {"by": "hpa"}}
    given = {"vllm_model_server_replicas": 3, "vllm_model_server_groups": [{"name": "r"}, scaled, "text"]}
    assert preflight.summary(given)[1:3] == ["Model servers: r (replicas: 3), s (scaled)", "Pools: none"]


def run_preflight(repository: Path, inventory: str, extra: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    command = [
        str(Path(sys.executable).parent / "ansible-playbook"),
        "playbooks/preflight.yml",
        "-i",
        f"inventories/{inventory}",
        "-e",
        json.dumps(extra),
    ]
    environment = {**os.environ, "ANSIBLE_NOCOLOR": "1"}
    return subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("inventory", ["local", "kind"])
def test_shipped_inventories_pass(repository: Path, inventory: str) -> None:
    done = run_preflight(repository, inventory, {})
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (
        "GPU node pools: simulated",
        "Model servers: vllm-llama3-8b-instruct (replicas: 3), vllm-qwen3-8b (replicas: 2)",
        "Pools: vllm-llama3-8b-instruct, vllm-qwen3-8b",
        "Gateways: default/inference-gateway",
        "Routes: vllm-llama3-8b-instruct, vllm-qwen3-8b",
        "nothing is wrong",
    ):
        assert line in done.stdout


@pytest.mark.parametrize("inventory", ["existing", "gke", "eks", "aks"])
def test_inventories_ask_for_what_only_their_users_know(repository: Path, inventory: str) -> None:
    done = run_preflight(repository, inventory, {})
    assert done.returncode != 0
    for name in ("headrace_context", "headrace_controller_image"):
        assert name in done.stdout
    told = {
        "headrace_context": "c",
        "headrace_controller_image": "i:1",
        "headrace_binary_dir": str(repository / "build/bin"),
    }
    if (repository / "build/bin/helm").exists():
        done = run_preflight(repository, inventory, told)
        assert done.returncode == 0, done.stdout + done.stderr


def test_templates_of_facts_that_do_not_exist_yet_hide_nothing_else(repository: Path) -> None:
    pools = [{"name": "a", "selector": {"app": "a"}, "image": "{{ container_images_refs.controller }}", "picker": ""}]
    done = run_preflight(repository, "local", {"inference_pool_pools": pools})
    assert done.returncode != 0
    assert "inference_pool_pools[a].picker" in done.stdout


def test_all_inventories_have_the_same_groups_and_say_where_secrets_go(repository: Path) -> None:
    folders = [path.parent for path in (repository / "inventories").glob("*/hosts.yml")]
    assert {folder.name for folder in folders} == {"local", "kind", "existing", "gke", "eks", "aks"}
    hosts = {folder.name: (folder / "hosts.yml").read_text() for folder in folders}
    assert len(set(hosts.values())) == 1
    for name in hosts:
        vault = yaml.safe_load((repository / "inventories" / name / "group_vars/all/vault.example.yml").read_text())
        # Ansible reads the example as well: anything but empty would become the token of whoever has none.
        assert vault == {"vault_hf_token": ""}
