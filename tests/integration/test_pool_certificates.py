"""Role inference_pool with cert-manager: what its Certificates ask for. cert-manager itself does not run here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .apiserver import ApiServer
from .roles import run_role

NAMESPACE = "issued"
PART_OF = {"app.kubernetes.io/part-of": "headrace"}
ISSUER = {"name": "internal", "kind": "ClusterIssuer", "group": "cert-manager.io"}
STRINGS = {"type": "array", "items": {"type": "string"}}
# What this role sets of cert-manager's own schema. What is not in it the API server would drop.
SPEC: dict[str, Any] = {
    "type": "object",
    "required": ["issuerRef", "secretName"],
    "properties": {
        "secretName": {"type": "string"},
        "secretTemplate": {
            "type": "object",
            "properties": {"labels": {"type": "object", "additionalProperties": {"type": "string"}}},
        },
        "dnsNames": STRINGS,
        "usages": {
            "type": "array",
            "items": {"enum": ["digital signature", "server auth", "client auth"], "type": "string"},
        },
        "issuerRef": {
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"type": "string"}, "kind": {"type": "string"}, "group": {"type": "string"}},
        },
    },
}  # fmt: skip
CRD: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "certificates.cert-manager.io"},
    "spec": {
        "group": "cert-manager.io",
        "scope": "Namespaced",
        "names": {"kind": "Certificate", "listKind": "CertificateList", "plural": "certificates"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": SPEC}}},
            }
        ],
    },
}  # fmt: skip


@pytest.fixture
def issuing(api: ApiServer) -> ApiServer:
    """The API server, once it has the CRD."""
    api.apply(CRD)
    api.wait_established("certificates.cert-manager.io")
    return api


def test_certificates_of_cert_manager(issuing: ApiServer, tmp_path: Path) -> None:
    variables = {
        "inference_pool_namespace": NAMESPACE,
        "inference_pool_image": "example.com/headrace:1",
        "inference_pool_wait": False,
        # Its CRD is not on this API server.
        "inference_pool_backend_tls_policy": False,
        "inference_pool_certificate": "cert_manager",
        "inference_pool_certificate_issuer": ISSUER,
        "inference_pool_pools": [
            {"name": "one", "picker": "one-epp", "selector": {"app": "m"}},
            {"name": "two", "picker": "two-epp", "selector": {"app": "m"}, "replicas": 2},
        ],
    }
    made = run_role(issuing, tmp_path, "inference_pool", variables)
    assert made.returncode == 0, made.output[-6000:]
    found = {one["metadata"]["name"]: one for one in issuing.get("certificates", "-n", NAMESPACE)["items"]}
    # A picker of one replica has no peers.
    assert set(found) == {"one-epp", "two-epp", "two-epp-peers"}
    assert [one["metadata"]["labels"] for one in found.values()] == [PART_OF] * 3
    assert found["two-epp"]["spec"] == {
        "secretName": "two-epp-tls",
        "secretTemplate": {"labels": PART_OF},
        "dnsNames": [f"two-epp.{NAMESPACE}.svc", f"two-epp.{NAMESPACE}.svc.cluster.local"],
        "usages": ["digital signature", "server auth"],
        "issuerRef": ISSUER,
    }
    assert found["two-epp-peers"]["spec"] == {
        "secretName": "two-epp-peers-tls",
        # cert-manager leaves the Secret; teardown finds it by this label.
        "secretTemplate": {"labels": PART_OF},
        "dnsNames": [f"two-epp-peers.{NAMESPACE}.svc"],
        "usages": ["digital signature", "server auth", "client auth"],
        "issuerRef": ISSUER,
    }
    pod = issuing.get("deployment", "two-epp", "-n", NAMESPACE)["spec"]["template"]["spec"]
    mounted = {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
    assert mounted >= {"two-epp-tls", "two-epp-peers-tls"}
    assert issuing.get("secrets", "-n", NAMESPACE)["items"] == [], "this role makes none where cert-manager does"
    again = run_role(issuing, tmp_path, "inference_pool", variables)
    assert (again.returncode, again.changed) == (0, 0), again.output[-6000:]
