"""Role vllm_model_server against a real API server: strict validation, idempotence, scalers, the token."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..hang import HANG_SECONDS
from .apiserver import ApiServer, running
from .roles import run_role, validate
from .test_model_server_templates import VARIABLES, rendered

ROLE = "vllm_model_server"
CRDS = Path.home() / ".cache/headrace/tools/crds"
TOKEN = "hf_NOBODY-MUST-SEE-THIS"


@pytest.fixture(scope="module")
def cluster(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server with the CRDs of KEDA and the Prometheus operator."""
    assert CRDS.is_dir(), f"{CRDS} is missing: run `make tools`"
    with running(repository / "build/bin", tmp_path_factory.mktemp("servers")) as server:
        assert server.kubectl("apply", "--server-side", "-f", str(CRDS)).returncode == 0
        server.wait_established()
        yield server


def test_every_object_of_every_engine_is_valid_to_the_letter(cluster: ApiServer, tmp_path: Path) -> None:
    objects = rendered(tmp_path)
    kinds = {one["kind"] for one in objects}
    assert {"Deployment", "PodDisruptionBudget", "NetworkPolicy", "PersistentVolumeClaim"} <= kinds
    assert {"HorizontalPodAutoscaler", "ScaledObject", "PodMonitor"} <= kinds
    assert validate(cluster, objects) == ""
    wrong = [{**objects[0], "spec": {**objects[0]["spec"], "replica": 1}}]
    assert "unknown field" in validate(cluster, wrong), "the validation would let anything pass"


def test_a_second_run_changes_nothing_and_the_token_is_never_shown(cluster: ApiServer, tmp_path: Path) -> None:
    variables = {
        **VARIABLES,
        "vllm_model_server_namespace": "run",
        "vllm_model_server_wait": False,
        "vllm_model_server_hf_token": TOKEN,
    }
    first = run_role(cluster, tmp_path, ROLE, variables, "--diff", "-vvv")
    assert first.returncode == 0, first.output[-6000:]
    assert first.changed > 0
    secret = cluster.get("secret", "hugging-face", "-n", "run")
    assert base64.b64decode(secret["data"]["token"]).decode() == TOKEN
    assert TOKEN not in first.output
    assert secret["data"]["token"] not in first.output
    again = run_role(cluster, tmp_path, ROLE, variables, "--check", "--diff")
    assert (again.returncode, again.changed) == (0, 0), again.output[-6000:]


def servers(**keys: Any) -> dict[str, Any]:
    return {
        "vllm_model_server_wait": False,
        "vllm_model_server_groups": [{"name": "scaled", "model": "m", **keys}],
    }


def replicas(cluster: ApiServer) -> int:
    return int(cluster.get("deployment", "scaled")["spec"]["replicas"])


def test_a_scaler_takes_over_the_number_and_runs_leave_it(cluster: ApiServer, tmp_path: Path) -> None:
    assert run_role(cluster, tmp_path, ROLE, servers(replicas=4)).returncode == 0
    assert replicas(cluster) == 4
    scaled = servers(autoscaling={"by": "hpa", "min": 2, "max": 8})
    taken = run_role(cluster, tmp_path, ROLE, scaled)
    assert taken.returncode == 0, taken.output[-6000:]
    assert replicas(cluster) == 4, "handing the number over has changed it"
    assert cluster.kubectl("scale", "deployment/scaled", "--replicas=7").returncode == 0
    again = run_role(cluster, tmp_path, ROLE, scaled)
    assert (again.returncode, again.changed) == (0, 0), again.output[-6000:]
    assert replicas(cluster) == 7
    planned = run_role(cluster, tmp_path, ROLE, servers(replicas=3), "--check")
    assert planned.returncode == 0, planned.output[-6000:]
    assert planned.changed > 0
    assert len(cluster.get("hpa")["items"]) == 1
    back = run_role(cluster, tmp_path, ROLE, servers(replicas=3))
    assert back.returncode == 0, back.output[-6000:]
    assert replicas(cluster) == 3
    assert cluster.get("hpa")["items"] == []


@pytest.mark.slow
def test_a_number_that_was_taken_back_is_the_roles_alone(cluster: ApiServer, tmp_path: Path) -> None:
    scaled = servers(autoscaling={"by": "hpa", "min": 2, "max": 8})
    for given in (scaled, servers(replicas=3)):
        assert run_role(cluster, tmp_path, ROLE, given).returncode == 0
    same = run_role(cluster, tmp_path, ROLE, servers(replicas=3))
    assert (same.returncode, same.changed) == (0, 0), same.output[-6000:]
    # The next one is written, and nobody else's is overwritten.
    assert run_role(cluster, tmp_path, ROLE, servers(replicas=5)).returncode == 0
    assert replicas(cluster) == 5
    assert cluster.kubectl("scale", "deployment/scaled", "--replicas=6").returncode == 0
    assert run_role(cluster, tmp_path, ROLE, servers(replicas=5)).returncode != 0


def beside(cluster: ApiServer) -> set[str]:
    """What there is beside the Deployment."""
    kinds = (
        "hpa,scaledobjects.keda.sh,podmonitors,poddisruptionbudgets,networkpolicies,configmaps,persistentvolumeclaims"
    )
    return {item["kind"] for item in cluster.get(kinds, "-n", "pruned")["items"]}


@pytest.mark.slow
def test_what_a_group_no_longer_asks_for_goes(cluster: ApiServer, tmp_path: Path) -> None:
    def of(**keys: Any) -> dict[str, Any]:
        image = {"vllm_model_server_simulator_image": "example.com/headrace:1"}
        return {**servers(**keys), **image, "vllm_model_server_namespace": "pruned"}

    keda = {"by": "keda", "max": 4, "prometheus": "http://p:9090"}
    lora = {"runtime_lora_updating": True, "adapter_sync": True}
    full = of(autoscaling=keda, pod_monitor=True, cache_size="1Gi", **lora)
    assert run_role(cluster, tmp_path, ROLE, full).returncode == 0
    always = {"ConfigMap", "NetworkPolicy", "PodDisruptionBudget", "PersistentVolumeClaim"}
    assert beside(cluster) == always | {"ScaledObject", "PodMonitor"}
    # Another group's, and somebody's own, stay.
    labels = {"app.kubernetes.io/part-of": "headrace", "app.kubernetes.io/component": "model-server"}
    for name, instance in (("other", "other"), ("theirs", "scaled")):
        one = labels if name == "other" else {}
        cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {
                    "name": name,
                    "namespace": "pruned",
                    "labels": {**one, "app.kubernetes.io/instance": instance},
                },
            }
        )
    other = run_role(cluster, tmp_path, ROLE, of(autoscaling={"by": "hpa", "max": 4}, cache_size="1Gi"))
    assert other.returncode == 0, other.output[-6000:]
    assert beside(cluster) == (always | {"HorizontalPodAutoscaler"})
    plain = run_role(cluster, tmp_path, ROLE, of(replicas=1, network_policy=False))
    assert plain.returncode == 0, plain.output[-6000:]
    # A volume holds what took hours to load: it stays until somebody removes it.
    assert beside(cluster) == {"ConfigMap", "PersistentVolumeClaim"}
    assert {one["metadata"]["name"] for one in cluster.get("configmaps", "-n", "pruned")["items"]} == {
        "other",
        "theirs",
    }
    again = run_role(cluster, tmp_path, ROLE, of(replicas=1, network_policy=False))
    assert (again.returncode, again.changed) == (0, 0), again.output[-6000:]


def test_without_keda_the_role_says_so(cluster: ApiServer, tmp_path: Path) -> None:
    assert cluster.kubectl("delete", "crd", "scaledobjects.keda.sh", f"--timeout={HANG_SECONDS:.0f}s").returncode == 0
    refused = run_role(
        cluster, tmp_path, ROLE, servers(autoscaling={"by": "keda", "max": 2, "prometheus": "http://p:9090"})
    )
    assert refused.returncode != 0
    assert "does not serve scaledobjects.keda.sh" in refused.said
    assert "install KEDA" in refused.said
