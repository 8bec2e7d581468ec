"""Role inference_monitoring against the Prometheus operator's own CRDs, and without them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.datalayer.engines import ENGINES

from .apiserver import ApiServer, running
from .roles import render, run_role, validate

ROLE = "inference_monitoring"
CRDS = Path.home() / ".cache/headrace/tools/crds"
VARIABLES: dict[str, Any] = {
    "inference_monitoring_namespace": "watched",
    "inference_monitoring_labels": {"release": "prometheus"},
    "inference_monitoring_namespaces": ["default", "llms"],
    "inference_monitoring_alerts": {
        "HeadracePreemptions": {"enabled": False},
        "HeadraceQueuesGrow": {"for": "1m", "labels": {"team": "llm"}},
    },
}


@pytest.fixture(scope="module")
def operated(api: ApiServer) -> ApiServer:
    """The API server, once it has the operator's CRDs."""
    assert CRDS.is_dir(), f"{CRDS} is missing: run `make tools`"
    done = api.kubectl("apply", "--server-side", "-f", str(CRDS))
    assert done.returncode == 0, done.stderr
    api.wait_established()
    return api


def test_without_the_operator_what_needs_it_is_skipped(repository: Path, tmp_path: Path) -> None:
    # On a server of its own: other tests give the shared one the operator's CRDs.
    with running(repository / "build/bin", tmp_path) as bare:
        run = run_role(bare, tmp_path, ROLE, {"inference_monitoring_namespace": "plain"})
        assert run.returncode == 0, run.output
        assert (
            "the cluster does not serve podmonitors.monitoring.coreos.com, prometheusrules.monitoring.coreos.com"
            in run.said
        )
        config = bare.get("configmap", "headrace-inference-dashboard", "-n", "plain")
        assert "headrace-inference.json" in config["data"]


@pytest.mark.parametrize("template", ["monitors.yaml.j2", "rules.yaml.j2", "dashboard.yaml.j2"])
def test_every_object_is_valid_to_the_letter(operated: ApiServer, tmp_path: Path, template: str) -> None:
    objects = render(tmp_path, ROLE, template, {**VARIABLES, "inference_monitoring_namespace": "dry"})
    assert objects
    assert validate(operated, objects) == ""


def scraped(endpoint: dict[str, Any], labels: dict[str, str]) -> str:
    """The path that Prometheus asks of a Pod with these labels, by its rules of relabelling (action replace)."""
    found = {f"__meta_kubernetes_pod_label_{re.sub('[^a-zA-Z0-9_]', '_', name)}": labels[name] for name in labels}
    found["__metrics_path__"] = endpoint["path"]
    for rule in endpoint.get("relabelings", []):
        assert set(rule) == {"sourceLabels", "regex", "targetLabel", "replacement"}
        if re.fullmatch(rule["regex"], ";".join(found.get(name, "") for name in rule["sourceLabels"])):
            found[rule["targetLabel"]] = rule["replacement"]
    return found["__metrics_path__"]


def test_every_engine_is_scraped_where_its_metrics_are(repository: Path, tmp_path: Path) -> None:
    objects = {one["metadata"]["name"]: one for one in render(tmp_path, ROLE, "monitors.yaml.j2", VARIABLES)}
    [endpoint] = objects["headrace-model-servers"]["spec"]["podMetricsEndpoints"]
    servers = yaml.safe_load((repository / "roles/vllm_model_server/vars/main.yml").read_text())
    engines = servers["__vllm_model_server_engines"]
    assert {engine["metrics"] for engine in engines.values()} == {"/metrics", "/prometheus/metrics"}
    for engine in engines.values():
        labels = {"inference.networking.k8s.io/engine-type": engine["label"]}
        assert scraped(endpoint, labels) == engine["metrics"] == ENGINES[engine["label"]].path
    # Servers of vLLM carry no such label.
    assert scraped(endpoint, {"app": "servers"}) == "/metrics"
    for name in ("headrace-endpoint-pickers", "headrace-gateway-controllers"):
        assert "relabelings" not in objects[name]["spec"]["podMetricsEndpoints"][0]


def test_a_run_makes_everything_and_a_second_one_nothing(operated: ApiServer, tmp_path: Path) -> None:
    planned = run_role(operated, tmp_path, ROLE, VARIABLES, "--check")
    assert planned.returncode == 0, planned.output
    assert "Namespace watched does not exist yet" in planned.said
    first = run_role(operated, tmp_path, ROLE, VARIABLES)
    assert (first.returncode, first.changed) == (0, 4), first.output
    for arguments in ((), ("--check", "--diff")):
        again = run_role(operated, tmp_path, ROLE, VARIABLES, *arguments)
        assert (again.returncode, again.changed) == (0, 0), again.output
    monitors = operated.get("podmonitors", "-n", "watched")["items"]
    assert {one["metadata"]["name"] for one in monitors} == {
        "headrace-endpoint-pickers",
        "headrace-gateway-controllers",
        "headrace-model-servers",
    }
    for one in monitors:
        assert one["metadata"]["labels"]["release"] == "prometheus"
        assert one["spec"]["namespaceSelector"] == {"matchNames": ["default", "llms"]}


def test_alerts_are_changed_and_prometheus_own_templates_stay(operated: ApiServer, tmp_path: Path) -> None:
    run = run_role(operated, tmp_path, ROLE, VARIABLES)
    assert run.returncode == 0, run.output
    groups = operated.get("prometheusrule", "headrace-inference", "-n", "watched")["spec"]["groups"]
    alerts = {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}
    assert "HeadracePreemptions" not in alerts
    assert alerts["HeadraceQueuesGrow"]["for"] == "1m"
    assert alerts["HeadraceQueuesGrow"]["labels"] == {"severity": "warning", "team": "llm"}
    assert "{{ $labels.namespace }}/{{ $labels.name }}" in alerts["HeadraceQueuesGrow"]["annotations"]["summary"]


def test_a_misspelt_alert_is_named(operated: ApiServer, tmp_path: Path) -> None:
    run = run_role(operated, tmp_path, ROLE, {"inference_monitoring_alerts": {"HeadraceQueueGrows": {"for": "1m"}}})
    assert run.returncode != 0
    assert "HeadraceQueueGrows" in run.said
    assert "HeadraceQueuesGrow" in run.said
    run = run_role(operated, tmp_path, ROLE, {"inference_monitoring_alerts": {"HeadraceQueuesGrow": {"fro": "1m"}}})
    assert run.returncode != 0
    assert "fro" in run.said
