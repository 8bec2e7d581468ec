"""The installed collection against a real API server, from an empty folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ..stranger import PLAYBOOK, install, play
from .apiserver import ApiServer, running
from .roles import stack


@pytest.fixture(scope="module")
def environment(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which Ansible knows the installed collection and nothing of the checkout."""
    return install(repository, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def cluster(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server of its own: the whole stack would be in other tests' way."""
    with running(repository / "build/bin", tmp_path_factory.mktemp("cluster")) as server:
        yield server


def variables(api: ApiServer, repository: Path) -> dict[str, Any]:
    """An inventory: one of everything. Nothing is waited for, as nothing runs."""
    group = {"name": "servers", "model": "meta/llama", "replicas": 2, "labels": {"app": "servers"}}
    return {
        **stack(api),
        "inference_crds_gateway_api_source": str(repository / "build/bin/crds/gateway-api"),
        "inference_crds_envoy_gateway_source": str(repository / "build/bin/crds/envoy-gateway"),
        "envoy_gateway_chart": str(repository / "build/bin/charts/gateway-helm"),
        "envoy_gateway_chart_version": "",
        "vllm_model_server_wait": False,
        "vllm_model_server_groups": [group],
        "inference_pool_wait": False,
        "inference_pool_pools": [{"name": "llama", "selector": {"app": "servers"}, "picker": "llama-epp"}],
        "inference_gateway_wait": False,
        "inference_gateway_gateways": [{"name": "gw", "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}]}],
        "inference_gateway_routes": [{"name": "r", "gateway": "gw", "rules": [{"backends": [{"pool": "llama"}]}]}],
    }


def test_the_whole_stack_is_planned_and_made_from_an_empty_folder(
    cluster: ApiServer, repository: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "mine.yml").write_text(yaml.safe_dump(variables(cluster, repository)))
    site = ("headrace.inference.site", "-e", "@mine.yml")
    before = cluster.get("all", "-A")["items"]
    done = play(tmp_path, environment, *site, "--check")
    assert done.returncode == 0, done.stdout[-6000:]
    assert "headrace.inference.vllm_model_server : Deploy" in done.stdout
    assert "failed=0" in done.stdout
    assert json.dumps(cluster.get("all", "-A")["items"]) == json.dumps(before), "check mode has changed something"

    # Without Envoy Gateway's chart, whose jobs nothing runs here.
    done = play(tmp_path, environment, *site, "--skip-tags", "envoy_gateway")
    assert done.returncode == 0, done.stdout[-6000:]
    for kind, name in (
        ("deployment", "servers"),
        ("deployment", "llama-epp"),
        ("inferencepools.inference.networking.k8s.io", "llama"),
        ("backendtlspolicy", "llama-epp"),
        ("gateway", "gw"),
        ("httproute", "r"),
    ):
        assert cluster.get(kind, name)["metadata"]["name"] == name


def test_a_strangers_playbook_by_full_names_makes_servers_and_pool(
    gateway_api: ApiServer, repository: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """tests/e2e sends requests to what it makes; here nothing runs."""
    namespaced = {"vllm_model_server_namespace": "stranger", "inference_pool_namespace": "stranger"}
    (tmp_path / "mine.yml").write_text(yaml.safe_dump({**variables(gateway_api, repository), **namespaced}))
    (tmp_path / "play.yml").write_text(PLAYBOOK)
    done = play(tmp_path, environment, "play.yml", "-e", "@mine.yml")
    assert done.returncode == 0, done.stdout[-6000:]
    assert "headrace.inference.inference_pool : Picker" in done.stdout
    for kind, name in (
        ("deployment", "servers"),
        ("deployment", "llama-epp"),
        ("inferencepools.inference.networking.k8s.io", "llama"),
    ):
        assert gateway_api.get(kind, name, "-n", "stranger")["metadata"]["name"] == name
