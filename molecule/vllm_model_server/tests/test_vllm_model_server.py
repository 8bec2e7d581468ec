"""The simulated servers serve, both engines' objects say what the checklist asks for, and wrong input is refused."""

from __future__ import annotations

import json

import pytest
from support import assert_converged, get, kubectl

NAMESPACE = "molecule-servers"


def pods():
    return get("pods", "-n", NAMESPACE, "-l", "app=simulated,tier=molecule")


def container(deployment: str):
    spec = get("deployment", deployment, "-n", NAMESPACE)["spec"]["template"]["spec"]
    return spec, spec["containers"][0]


def test_both_replicas_serve_the_model_and_its_adapter():
    assert len(pods()) == 2
    for pod in pods():
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['metadata']['name']}:8100/proxy/v1/models"
        models = {model["id"] for model in json.loads(kubectl("get", "--raw", path))["data"]}
        assert models == {"molecule/model", "sql-lora"}


def test_a_server_tells_that_it_is_simulated():
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pods()[0]['metadata']['name']}:8100/proxy/version"
    assert "simulat" in kubectl("get", "--raw", path)


@pytest.mark.parametrize("deployment", ["simulated", "real"])
def test_pods_are_locked_down(deployment: str):
    spec, main = container(deployment)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert main["securityContext"]["readOnlyRootFilesystem"] is True
    assert main["securityContext"]["allowPrivilegeEscalation"] is False
    assert main["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("deployment", ["simulated", "real"])
def test_probes_and_grace_follow_from_each_other(deployment: str):
    spec, main = container(deployment)
    assert main["startupProbe"]["periodSeconds"] * main["startupProbe"]["failureThreshold"] >= 120
    assert main["readinessProbe"]["failureThreshold"] == 1
    assert main["livenessProbe"]["failureThreshold"] > 1
    assert main["lifecycle"]["preStop"]["sleep"]["seconds"] == 2
    assert spec["terminationGracePeriodSeconds"] > 2 + 3


def test_gpus_are_requested_and_limited_alike():
    for deployment, gpus in (("simulated", "1"), ("real", "2")):
        resources = container(deployment)[1]["resources"]
        assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == gpus


def test_the_real_engines_command_line():
    _, main = container("real")
    line = " ".join([*main["command"], *main["args"]])
    assert line.startswith("vllm serve meta-llama/Meta-Llama-3-8B-Instruct --port 8000 --tensor-parallel-size 2")
    for part in (
        "--max-model-len 8192",
        "--enable-lora",
        "--lora-modules sql-lora=/adapters/sql",
        "--gpu-memory-utilization=0.9",
    ):
        assert part in line
    environment = {variable["name"]: variable for variable in main["env"]}
    assert environment["HF_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "hugging-face", "key": "token"}
    assert environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"]["value"] == "True"


def test_disruption_budget_and_network_policy_select_the_group():
    selector = {"matchLabels": {"app": "simulated", "tier": "molecule"}}
    assert get("poddisruptionbudget", "simulated", "-n", NAMESPACE)["spec"]["selector"] == selector
    policy = get("networkpolicy", "simulated", "-n", NAMESPACE)["spec"]
    assert policy["podSelector"] == selector
    assert [port["port"] for port in policy["ingress"][0]["ports"]] == [8100]


def test_check_mode_on_what_is_there_reports_no_change():
    assert_converged("vllm_model_server")
