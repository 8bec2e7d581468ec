"""The API server serves what the role installed, and refuses what the schemas refuse."""

from __future__ import annotations

import json

from support import ROOT, assert_converged, get, kubectl

KUBECONFIG = "/tmp/headrace-molecule-inference_crds/kubeconfig"


def test_every_crd_is_served():
    crds = get("crds", kubeconfig=KUBECONFIG)
    names = {crd["metadata"]["name"] for crd in crds}
    assert {
        "inferencepools.inference.networking.k8s.io", "inferencepools.inference.networking.x-k8s.io",
        "gateways.gateway.networking.k8s.io", "httproutes.gateway.networking.k8s.io",
        "backendtlspolicies.gateway.networking.k8s.io", "envoyproxies.gateway.envoyproxy.io",
    } <= names  # fmt: skip
    for crd in crds:
        conditions = {condition["type"]: condition["status"] for condition in crd["status"]["conditions"]}
        assert conditions["Established"] == "True", crd["metadata"]["name"]


def test_they_belong_to_the_field_manager_headrace():
    crd = get("crd", "inferencepools.inference.networking.k8s.io", "--show-managed-fields", kubeconfig=KUBECONFIG)
    assert "headrace" in {
        entry["manager"] for entry in crd["metadata"]["managedFields"] if entry["operation"] == "Apply"
    }


def test_the_pages_example_is_accepted_and_a_port_of_0_is_not():
    page = (ROOT / "tests/data/page-example.yaml").read_text()
    kubectl(
        "apply",
        "--server-side",
        "--dry-run=server",
        "--validate=strict",
        "-n",
        "default",
        "-f",
        "-",
        kubeconfig=KUBECONFIG,
        stdin=page,
    )
    pool = {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": {"name": "a", "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": {"app": "a"}}, "targetPorts": [{"number": 0}],
            "endpointPickerRef": {"name": "epp", "port": {"number": 9002}},
        },
    }  # fmt: skip
    said = kubectl("create", "--dry-run=server", "-f", "-", kubeconfig=KUBECONFIG, stdin=json.dumps(pool), check=False)
    assert "spec.targetPorts[0].number" in said


def test_check_mode_on_what_is_there_reports_no_change():
    assert_converged("inference_crds")
