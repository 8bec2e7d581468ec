"""The bring-up itself: idempotent, honest in check mode, refusing wrong input, small."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from .stack import Stack


def test_smoke_shows_who_served_each_request_and_why(stack: Stack) -> None:
    result = stack.playbook("playbooks/smoke.yml")
    assert result.failed == 0
    for word in ("vllm-llama3-8b-instruct", "vllm-qwen3-8b", "sql-lora", "TTFT"):
        assert word in result.output
    assert "its endpoint picker does not say" not in result.output, "who served it is not enough: why is asked too"
    # The commands that it ends with work as printed, in a shell that knows nothing else.
    shown = re.findall(r"^ +(\S+/headrace pool .*|curl .*)$", result.output, re.M)
    assert len(shown) == 3, result.output[-2000:]
    for command in shown:
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
        done = subprocess.run(shlex.split(command), env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (command, done.stdout, done.stderr)


def test_second_run_changes_nothing(stack: Stack) -> None:
    result = stack.site()
    assert (result.changed, result.failed) == (0, 0), result.output[-8000:]


def test_check_mode_reports_no_change_on_a_converged_cluster(stack: Stack) -> None:
    result = stack.site("--check", "--diff")
    assert (result.changed, result.failed) == (0, 0), result.output[-8000:]


def test_check_mode_without_a_cluster_says_what_it_would_create(stack: Stack) -> None:
    elsewhere = {
        "local_cluster_name": "hrnone",
        "local_cluster_publish_address": "127.0.0.1:18099",
        "local_cluster_node_network": "172.28.0.0/24",
        "local_cluster_load_balancer_network": "172.28.100.0/24",
        "local_cluster_pod_network": "10.247.0.0/16",
        "local_cluster_service_network": "10.99.0.0/16",
    }
    namespaces = set(Path("/run/netns").iterdir())
    result = stack.site("--check", "--diff", "-e", json.dumps(elsewhere))
    assert (result.changed, result.failed) == (0, 0), result.output[-8000:]
    said = " ".join(result.output.split())
    assert "would create one" in said
    assert "There is no cluster hrnone that runs" in said and "They are skipped here" in said
    assert "TASK [inference_pool" not in result.output
    assert set(Path("/run/netns").iterdir()) == namespaces
    assert not stack.kubeconfig.parents[2].joinpath("hrnone").exists()


@pytest.mark.parametrize(
    ("extra", "names", "fix"),
    [
        ('{"inference_pool_replica": 2}', "inference_pool_replica", "inference_pool_"),
        ('{"local_cluster_publish_address": "127.0.0.1:0"}', "local_cluster_publish_address", "port"),
    ],
    ids=["unknown variable", "port 0"],
)
def test_wrong_input_is_refused_before_anything_is_applied(stack: Stack, extra: str, names: str, fix: str) -> None:
    result = stack.site("-e", extra, check=False)
    assert result.returncode != 0
    assert result.changed in (0, -1)
    assert names in result.output
    assert fix in result.output


def test_every_pod_runs_as_another_user_than_root_with_a_read_only_root(stack: Stack) -> None:
    ours = [
        pod for namespace in ("default", "envoy-gateway-system") for pod in stack.objects("pods", "-n", namespace)
        if any("headrace/controller" in container["image"] for container in pod["spec"]["containers"])
    ]  # fmt: skip
    assert ours
    for pod in ours:
        for container in pod["spec"]["containers"]:
            context = {**pod["spec"].get("securityContext", {}), **container.get("securityContext", {})}
            name = f"{pod['metadata']['name']}/{container['name']}"
            assert context.get("runAsNonRoot") is True, name
            assert context.get("readOnlyRootFilesystem") is True, name
            assert context.get("allowPrivilegeEscalation") is False, name
            assert context.get("capabilities", {}).get("drop") == ["ALL"], name


def test_the_endpoint_picker_may_read_pods_and_pools_and_nothing_else(stack: Stack) -> None:
    pod = stack.pods("app.kubernetes.io/name=vllm-llama3-8b-instruct-epp")[0]
    account = f"system:serviceaccount:default:{pod['spec']['serviceAccountName']}"

    def may(*what: str) -> bool:
        return stack.kubectl("auth", "can-i", *what, f"--as={account}", "-n", "default", check=False).strip() == "yes"

    assert may("list", "pods")
    for kind in ("inferencepools", "inferenceobjectives", "inferencemodelrewrites"):
        assert may("watch", f"{kind}.inference.networking.x-k8s.io")
        assert not may("update", f"{kind}.inference.networking.x-k8s.io")
    assert not may("list", "secrets")
    assert not may("delete", "pods")
    assert not may("list", "pods", "--all-namespaces")
