"""Pools and pickers are as the entries say; a picker may do little, and proves who it is."""

from __future__ import annotations

import json
import time

import pytest
from cryptography import x509
from support import ROOT, assert_converged, get, kubectl, play, secret

NAMESPACE = "molecule-pool"
PICKERS = {"one-epp": 9002, "page-epp": 9002, "theirs-epp": 9012}


def test_pools_are_of_their_api_version():
    one = get("inferencepools.inference.networking.k8s.io", "one", "-n", NAMESPACE)["spec"]
    assert one["targetPorts"] == [{"number": 8000}, {"number": 8001}]
    assert one["selector"] == {"matchLabels": {"app": "nobody"}}
    assert one["endpointPickerRef"]["failureMode"] == "FailOpen"
    theirs = get("inferencepools.inference.networking.k8s.io", "theirs", "-n", NAMESPACE, "--show-managed-fields")
    managers = {entry["manager"] for entry in theirs["metadata"]["managedFields"]}
    assert "headrace" not in managers, "the pool of another is left alone"


def test_the_v1alpha2_pool_is_the_pages_example():
    resource = "inferencepools.inference.networking.x-k8s.io"
    page = (ROOT / "tests/data/page-example.yaml").read_text()
    ours = get(resource, "page", "-n", NAMESPACE)["spec"]
    stripped = page.replace("name: vllm-llama3-8b-instruct\n", "name: reference\n", 1).replace(
        "name: vllm-llama3-8b-instruct-epp", "name: page-epp"
    )
    kubectl("create", "--validate=strict", "-n", NAMESPACE, "-f", "-", stdin=stripped)
    try:
        assert get(resource, "reference", "-n", NAMESPACE)["spec"] == ours
    finally:
        kubectl("delete", resource, "reference", "-n", NAMESPACE)


def test_clients_keep_a_models_old_name():
    made = get("inferencemodelrewrites", "page-v1alpha2", "-n", NAMESPACE)["spec"]
    assert made["poolRef"] == {"group": "inference.networking.x-k8s.io", "kind": "InferencePool", "name": "page"}
    (rule,) = made["rules"]
    assert rule["matches"][0]["model"]["value"] == "meta-llama/Llama-2-7b"
    assert rule["targets"][0]["modelRewrite"] == "meta-llama/Meta-Llama-3-8B-Instruct"


@pytest.mark.parametrize("picker", PICKERS)
def test_pickers_run(picker: str):
    deployment = get("deployment", picker, "-n", NAMESPACE)
    assert deployment["status"]["availableReplicas"] == deployment["spec"]["replicas"]
    service = get("service", picker, "-n", NAMESPACE)
    assert service["metadata"]["annotations"]["headrace.dev/endpoint-picker"] == "headrace"
    assert PICKERS[picker] in [port["port"] for port in service["spec"]["ports"]]


def test_replicas_hear_each_other():
    """Found by the name of their headless Service, over mutual TLS."""
    names = kubectl("get", "pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/name=one-epp", "-o", "name").split()
    assert len(names) == 2
    for name in names:
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{name.removeprefix('pod/')}:9090/proxy/debug/peers"
        deadline = time.monotonic() + 60
        while True:
            peers = json.loads(kubectl("get", "--raw", path))["peers"]
            others = [peer["problem"] for peer in peers if not peer["ourselves"]]
            if others == [""]:
                break
            assert time.monotonic() < deadline, peers
            time.sleep(1)


@pytest.mark.parametrize("picker", PICKERS)
def test_a_picker_may_see_pods_and_pools_and_nothing_else(picker: str):
    def may(*what: str, namespace: str = NAMESPACE) -> bool:
        account = f"system:serviceaccount:{NAMESPACE}:{picker}"
        return kubectl("auth", "can-i", *what, f"--as={account}", "-n", namespace, check=False).strip() == "yes"

    group = "inference.networking.x-k8s.io" if picker == "page-epp" else "inference.networking.k8s.io"
    assert may("watch", "pods")
    assert may("list", f"inferencepools.{group}")
    for forbidden in (
        ("get", "secrets"),
        ("delete", "pods"),
        ("create", "pods/exec"),
        ("update", f"inferencepools.{group}"),
        ("list", "nodes"),
    ):
        assert not may(*forbidden), forbidden
    assert not may("list", "pods", namespace="default")


@pytest.mark.parametrize("picker", PICKERS)
def test_gateways_can_verify_the_picker(picker: str):
    policy = get("backendtlspolicy", picker, "-n", NAMESPACE)["spec"]
    assert policy["targetRefs"] == [{"group": "", "kind": "Service", "name": picker}]
    bundle = get("configmap", policy["validation"]["caCertificateRefs"][0]["name"], "-n", NAMESPACE)["data"]["ca.crt"]
    certificate = x509.load_pem_x509_certificate(secret(NAMESPACE, f"{picker}-tls")["tls.crt"])
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(bundle.encode()))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert policy["validation"]["hostname"] in names.get_values_for_type(x509.DNSName)


def test_a_configured_picker_has_its_file_and_two_replicas_a_budget():
    assert "queue-scorer" in get("configmap", "one-epp-config", "-n", NAMESPACE)["data"]["endpoint-picker.yaml"]
    arguments = get("deployment", "one-epp", "-n", NAMESPACE)["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--config-file" in arguments
    assert get("poddisruptionbudget", "one-epp", "-n", NAMESPACE)["spec"]["maxUnavailable"] == 1
    assert "not found" in kubectl("get", "poddisruptionbudget", "page-epp", "-n", NAMESPACE, check=False)


def test_check_mode_on_what_is_there_reports_no_change():
    assert_converged("inference_pool")


def test_a_renewed_certificate_replaces_the_pods():
    before = get("deployment", "page-epp", "-n", NAMESPACE)["spec"]["template"]["metadata"]["annotations"]
    run = play("inference_pool", {"molecule_renew_days": 366})
    assert run.returncode == 0, run.output[-6000:]
    assert "PRIVATE KEY" not in run.output
    after = get("deployment", "page-epp", "-n", NAMESPACE)["spec"]["template"]["metadata"]["annotations"]
    assert after["headrace.dev/certificate"] != before["headrace.dev/certificate"]
