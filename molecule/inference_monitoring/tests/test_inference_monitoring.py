"""Monitors, rules and dashboard are there, and a misspelt alert is named."""

from __future__ import annotations

import json

from support import assert_converged, get

KUBECONFIG = "/tmp/headrace-molecule-inference_monitoring/kubeconfig"


def test_pods_are_found_by_the_labels_that_the_roles_give_them():
    monitors = {one["metadata"]["name"]: one for one in get("podmonitors", "-n", "monitoring", kubeconfig=KUBECONFIG)}
    selectors = {name: one["spec"]["selector"]["matchLabels"] for name, one in monitors.items()}
    assert selectors["headrace-endpoint-pickers"]["app.kubernetes.io/component"] == "endpoint-picker"
    assert selectors["headrace-gateway-controllers"]["app.kubernetes.io/component"] == "gateway-controller"
    assert selectors["headrace-model-servers"] == {"app.kubernetes.io/component": "model-server"}
    assert all(one["metadata"]["labels"]["release"] == "prometheus" for one in monitors.values())


def test_rules_and_dashboard_are_there():
    rule = get("prometheusrule", "headrace-inference", "-n", "monitoring", kubeconfig=KUBECONFIG)
    alerts = {one.get("alert") for group in rule["spec"]["groups"] for one in group["rules"]}
    assert "HeadracePoolWithoutEndpoints" in alerts
    assert "HeadracePreemptions" not in alerts
    config = get("configmap", "headrace-inference-dashboard", "-n", "monitoring", kubeconfig=KUBECONFIG)
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(config["data"]["headrace-inference.json"])["panels"]


def test_check_mode_on_what_is_there_reports_no_change():
    assert_converged("inference_monitoring")
