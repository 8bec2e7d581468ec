"""The installed collection against a real API server, from an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from .apiserver import ApiServer

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def environment(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which Ansible knows the installed collection and nothing of the checkout."""
    home = tmp_path_factory.mktemp("home")
    galaxy = [str(BIN / "ansible-galaxy"), "collection"]
    subprocess.run([*galaxy, "build", str(repository), "--output-path", str(home)], check=True, capture_output=True)
    tarball = str(next(home.glob("*.tar.gz")))
    installed = subprocess.run([*galaxy, "install", "--offline", "-p", str(home), tarball], capture_output=True)
    assert installed.returncode == 0, installed.stderr
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    return {**kept, "ANSIBLE_COLLECTIONS_PATH": str(home), "ANSIBLE_NOCOLOR": "1"}


def test_the_whole_stack_is_planned_from_an_empty_folder(
    api: ApiServer, repository: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    group = {"name": "servers", "model": "meta/llama", "replicas": 2, "labels": {"app": "servers"}}
    variables = {
        "headrace_context": "test",
        "headrace_kubeconfig": str(api.kubeconfig),
        "headrace_controller_image": "registry.example.com/headrace/controller:1",
        "headrace_binary_dir": str(repository / "build/bin"),
        "inference_crds_gateway_api_source": str(repository / "build/bin/crds/gateway-api"),
        "inference_crds_envoy_gateway_source": str(repository / "build/bin/crds/envoy-gateway"),
        "envoy_gateway_chart": str(repository / "build/bin/charts/gateway-helm"),
        "envoy_gateway_chart_version": "",
        "vllm_model_server_groups": [group],
        "inference_pool_pools": [{"name": "llama", "selector": {"app": "servers"}, "picker": "llama-epp"}],
        "inference_gateway_gateways": [{"name": "gw", "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}]}],
        "inference_gateway_routes": [{"name": "r", "gateway": "gw", "rules": [{"backends": [{"pool": "llama"}]}]}],
    }
    (tmp_path / "mine.yml").write_text(yaml.safe_dump(variables))
    before = api.get("all", "-A")["items"]
    done = subprocess.run(
        [str(BIN / "ansible-playbook"), "headrace.inference.site", "--check", "-e", "@mine.yml"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    assert "headrace.inference.vllm_model_server : Deploy" in done.stdout
    assert "failed=0" in done.stdout
    assert json.dumps(api.get("all", "-A")["items"]) == json.dumps(before), "check mode has changed something"
