"""No value breaks out of its place in a Kubernetes object: every template of every role, rendered with hostile text.

Each template is rendered twice, with plain values and with the same values and text behind them that ends a YAML
scalar. The objects must be the same but for that text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.plugins.loader import init_plugin_loader

from ...templates import render

# A value that ends with this is free text, which the test makes hostile.
FREE = "zqx"
HOSTILE = FREE + "\" '}]: {a: *b}\n- c: &d\n---\nkind: Evil\n#"

GROUP = "inference.networking.k8s.io"
LABELS = {"team": "team-zqx", "key-zqx": "value-zqx"}
ROUTE = {
    "name": "route-zqx", "namespace": "ns-zqx", "gateway": "gateway-zqx", "gateway_namespace": "far-zqx",
    "hostnames": ["host-zqx"], "labels": LABELS, "rules": [{"matches": [{"path": {"value": "/zqx"}}]}],
}  # fmt: skip
POOL = {
    "name": "pool-zqx", "namespace": "ns-zqx", "picker": "picker-zqx", "selector": LABELS, "annotations": LABELS,
    "picker_config": {"key": "config-zqx"}, "image": "image-zqx", "replicas": 2, "leader_election": True,
    "metrics_auth": True, "tracing": True, "environment": {"NAME": "environment-zqx"}, "extra_args": ["--a=zqx"],
    "model_rewrites": {"model-zqx": "target-zqx"}, "app_protocol": "protocol-zqx", "failure_mode": "mode-zqx",
}  # fmt: skip
SERVER = {
    "name": "server-zqx", "namespace": "ns-zqx", "model": "model-zqx", "image": "image-zqx", "labels": LABELS,
    "served_model_names": ["served-zqx"], "gpus": 2, "cache_size": "10Gi-zqx", "cache_storage_class": "class-zqx",
    "cache_access_mode": "mode-zqx", "hf_token_secret": "secret-zqx", "image_pull_policy": "policy-zqx",
    "adapters": [{"name": "adapter-zqx", "source": "source-zqx"}], "runtime_lora_updating": True, "adapter_sync": True,
    "topology_keys": ["key-zqx"], "pod_monitor": True, "extra_args": ["--a=zqx"], "node_selector": LABELS,
    "env": [{"name": "NAME", "value": "zqx"}], "shm_size": "1Gi-zqx",
}  # fmt: skip
SCALED = {"by": "keda", "min": 1, "max": 3, "prometheus": "http://zqx"}
REPLACEMENT = {
    "pool_replacement_pool": "old-zqx", "pool_replacement_new": "new-zqx", "pool_replacement_namespace": "ns-zqx",
    "pool_replacement_image": "image-zqx", "pool_replacement_image_pull_policy": "policy-zqx",
    "pool_replacement_prometheus_secret": "secret-zqx", "pool_replacement_old": "remove",
    "pool_replacement_new_on_rollback": "remove", "pool_replacement_old_model_servers": ["server-zqx"],
    "pool_replacement_settings": {"prometheus_url": "http://zqx"}, "__pool_replacement_run": "run-zqx",
    "__pool_replacement_routes": [
        {"kind": "HTTPRoute", "namespace": "other-zqx", "name": "route-zqx"},
        {"kind": "GRPCRoute", "namespace": "ns-zqx", "name": "grpc-zqx"},
    ],
}  # fmt: skip
ENVOY_GATEWAY = {
    "envoy_gateway_namespace": "ns-zqx", "envoy_gateway_controller_image": "image-zqx",
    "envoy_gateway_controller_image_pull_policy": "policy-zqx", "envoy_gateway_cluster_domain": "domain-zqx",
    "envoy_gateway_proxy_name": "proxy-zqx", "envoy_gateway_proxy_service_type": "type-zqx",
    "envoy_gateway_proxy_image": "envoy-zqx", "envoy_gateway_proxy_external_traffic_policy": "policy-zqx",
    "__envoy_gateway_certificate": {"ca": "ca", "fingerprint": "f-zqx"}, "__envoy_gateway_ca": "ca-zqx",
}  # fmt: skip
MONITORING = {"inference_monitoring_namespace": "ns-zqx", "inference_monitoring_labels": LABELS}
CANARY = {
    "name": "canary-zqx", "group": "server-zqx", "pool": "pool-zqx", "pool_api_version": "v1", "model": "model-zqx",
    "from": "from-zqx", "to": "to-zqx",
}  # fmt: skip

# role/template: its variables, the list whose entries are `item` ("": none), and what must differ between the two.
SAMPLES: dict[str, tuple[dict[str, Any], str]] = {
    "envoy_gateway/controller.yaml.j2": (ENVOY_GATEWAY, ""),
    "envoy_gateway/envoy_proxy.yaml.j2": (ENVOY_GATEWAY, ""),
    "gpu_node_pool/mig_parted.yaml.j2": (
        {"gpu_node_pool_operator_namespace": "ns-zqx", "gpu_node_pool_mig_configs": {"name-zqx": []}}, "",
    ),
    "gpu_node_pool/simulator.yaml.j2": (
        {
            "gpu_node_pool_simulator_namespace": "ns-zqx", "gpu_node_pool_simulator_image": "image-zqx",
            "gpu_node_pool_simulator_image_pull_policy": "policy-zqx", "gpu_node_pool_resource": "resource-zqx",
        }, "",
    ),
    "gpu_node_pool/time_slicing.yaml.j2": (
        {
            "gpu_node_pool_operator_namespace": "ns-zqx", "gpu_node_pool_resource": "resource-zqx",
            "gpu_node_pool_pools": [{"name": "a", "time_slicing": 2}],
        }, "",
    ),
    "inference_gateway/gateways.yaml.j2": (
        {
            "inference_gateway_class": "class-zqx", "inference_gateway_controller_name": "controller-zqx",
            "inference_gateway_envoy_proxy": {"name": "proxy-zqx", "namespace": "ns-zqx"},
            "inference_gateway_gateways": [
                {"name": "gw-zqx", "namespace": "ns-zqx", "listeners": [{"name": "http-zqx", "port": 80}]},
            ],
        }, "",
    ),
    "inference_gateway/route.yaml.j2": ({"routes": [ROUTE]}, "routes"),
    "inference_monitoring/dashboard.yaml.j2": (
        {**MONITORING, "inference_monitoring_dashboard_labels": LABELS}, "",
    ),
    "inference_monitoring/monitors.yaml.j2": (
        {
            **MONITORING, "inference_monitoring_namespaces": ["other-zqx"], "inference_monitoring_interval": "1s-zqx",
            "inference_monitoring_model_server_selector": LABELS, "inference_monitoring_model_server_port": "port-zqx",
            "inference_monitoring_model_server_path": "/zqx",
            "inference_monitoring_model_server_engine_paths": {"engine-zqx": "/path-zqx"},
        }, "",
    ),
    "inference_monitoring/rules.yaml.j2": (MONITORING, ""),
    "inference_pool/endpoint_picker.yaml.j2": (
        {"inference_pool_pools": [POOL], "__inference_pool_public": {"ca": "ca-zqx", "fingerprint": "f-zqx"}},
        "__inference_pool_pools",
    ),
    "inference_pool/inference_pool.yaml.j2": (
        {"inference_pool_pools": [POOL, {**POOL, "api_version": "v1alpha2"}]}, "__inference_pool_pools",
    ),
    "inference_pool/model_rewrite.yaml.j2": ({"inference_pool_pools": [POOL]}, "__inference_pool_pools"),
    "local_cluster/coredns.yaml.j2": (
        {"__local_cluster_coredns_image": "image-zqx", "__local_cluster_plan": {"dns_address": "address-zqx"}}, "",
    ),
    "local_cluster/kind.yaml.j2": (
        {
            "local_cluster_name": "name-zqx", "local_cluster_pod_network": "pods-zqx", "ansible_managed": "managed",
            "local_cluster_service_network": "services-zqx", "local_cluster_proxy_mode": "mode-zqx",
            "local_cluster_publish_address": "127.0.0.1:8080", "local_cluster_workers": 1,
            "local_cluster_node_labels": {"n1": LABELS},
        }, "",
    ),
    "local_cluster/load-balancer.yaml.j2": ({}, ""),
    "lora_adapters/adapters.yaml.j2": (
        {
            "lora_adapters_pools": [
                {
                    "name": "server-zqx", "namespace": "ns-zqx",
                    "adapters": [{"name": "a-zqx", "source": "s-zqx"}, {"name": "b-zqx", "state": "absent"}],
                },
            ],
        }, "__lora_adapters_pools",
    ),
    "lora_adapters/rewrite.yaml.j2": (
        {
            "lora_adapters_pools": [{"name": "server-zqx", "namespace": "ns-zqx", "adapters": []}],
            "__lora_adapters_canary": CANARY, "__lora_adapters_share": 50,
        }, "",
    ),
    "pool_replacement/job.yaml.j2": (REPLACEMENT, ""),
    "pool_replacement/rbac.yaml.j2": (REPLACEMENT, ""),
    "vllm_model_server/model_server.yaml.j2": (
        {
            "vllm_model_server_groups": [
                SERVER, {**SERVER, "cache_claim": "claim-zqx", "autoscaling": {**SCALED, "by": "hpa"}},
                {**SERVER, "autoscaling": SCALED},
            ],
        }, "__vllm_model_server_groups",
    ),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def plugins() -> None:
    init_plugin_loader()


def changed(value: Any, change: Callable[[str], str]) -> Any:
    """A value with every text in it changed; JSON and YAML within a text as the values that they are."""
    if isinstance(value, dict):
        return {change(str(key)): changed(one, change) for key, one in value.items()}
    if isinstance(value, list):
        return [changed(one, change) for one in value]
    if not isinstance(value, str):
        return value
    head, sign, text = value.partition("=") if value.startswith("--") else ("", "", value)
    for read in (json.loads, yaml.safe_load):
        try:
            inner = read(text)
        except (ValueError, yaml.YAMLError):
            continue
        if (isinstance(inner, dict | list) and text.lstrip()[:1] in ("{", "[")) or isinstance(inner, dict):
            return [head, sign, changed(inner, change)]
    # Digests of what was given.
    return re.sub(r"[0-9a-f]{8,64}", "digest", change(value))


def test_every_template_has_a_sample(repository: Path) -> None:
    found = {f"{path.parts[-3]}/{path.name}" for path in (repository / "roles").glob("*/templates/*.yaml.j2")}
    assert found == set(SAMPLES)


@pytest.mark.parametrize("template", sorted(SAMPLES))
def test_hostile_text_stays_in_its_place(repository: Path, template: str) -> None:
    variables, loop = SAMPLES[template]

    def hostile(text: str) -> str:
        return text.replace(FREE, HOSTILE)

    def given(value: Any) -> Any:
        if isinstance(value, dict):
            return {hostile(key): given(one) for key, one in value.items()}
        if isinstance(value, list):
            return [given(one) for one in value]
        return hostile(value) if isinstance(value, str) else value

    plain = render(repository, template, variables, loop)
    assert plain
    # So that a template which ignores a variable, or a sample without free text, is seen.
    assert not variables or FREE in json.dumps(plain)
    assert changed(render(repository, template, given(variables), loop), str) == changed(plain, hostile)
