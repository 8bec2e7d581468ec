"""Role vllm_model_server against a real API server: strict validation, idempotence, scalers, the token."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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
        assert server.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s").returncode == 0
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
    planned = run_role(cluster, tmp_path, ROLE, variables, "--check")
    assert planned.returncode == 0, planned.output[-6000:]
    first = run_role(cluster, tmp_path, ROLE, variables, "--diff", "-vvv")
    assert first.returncode == 0, first.output[-6000:]
    assert first.changed > 0
    secret = cluster.get("secret", "hugging-face", "-n", "run")
    assert base64.b64decode(secret["data"]["token"]).decode() == TOKEN
    assert TOKEN not in first.output
    assert secret["data"]["token"] not in first.output
    for arguments in ((), ("--check", "--diff")):
        again = run_role(cluster, tmp_path, ROLE, variables, *arguments)
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
    back = run_role(cluster, tmp_path, ROLE, {**servers(replicas=3), "vllm_model_server_force_conflicts": True})
    assert back.returncode == 0, back.output[-6000:]
    assert replicas(cluster) == 3
    assert cluster.get("hpa")["items"] == []


def test_without_keda_the_role_says_so(cluster: ApiServer, tmp_path: Path) -> None:
    assert cluster.kubectl("delete", "crd", "scaledobjects.keda.sh", "--timeout=30s").returncode == 0
    refused = run_role(
        cluster, tmp_path, ROLE, servers(autoscaling={"by": "keda", "max": 2, "prometheus": "http://p:9090"})
    )
    assert refused.returncode != 0
    assert "does not serve scaledobjects.keda.sh" in refused.said
    assert "install KEDA" in refused.said
