"""Envoy Gateway and the gateway controller run, and nobody without the right certificate gets at the controller."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from support import assert_converged, get, kubectl, secret

NAMESPACE = "envoy-gateway-system"
HOST = f"headrace-gateway.{NAMESPACE}.svc.cluster.local"
HOOK, EDS = 5005, 5006


@pytest.mark.parametrize("deployment", ["envoy-gateway", "headrace-gateway"])
def test_both_are_available(deployment: str):
    found = get("deployment", deployment, "-n", NAMESPACE)
    assert found["status"]["availableReplicas"] == found["spec"]["replicas"]


def test_the_gateway_controller_is_locked_down():
    spec = get("deployment", "headrace-gateway", "-n", NAMESPACE)["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    assert spec["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_gateway_controller_may_read_no_secret():
    def may(*what: str) -> bool:
        account = f"system:serviceaccount:{NAMESPACE}:headrace-gateway"
        return kubectl("auth", "can-i", *what, f"--as={account}", "-A", check=False).strip() == "yes"

    assert may("watch", "pods")
    assert may("patch", "inferencepools.inference.networking.k8s.io", "--subresource=status")
    for forbidden in (
        ("get", "secrets"),
        ("update", "inferencepools.inference.networking.k8s.io"),
        ("delete", "pods"),
        ("create", "deployments.apps"),
    ):
        assert not may(*forbidden), forbidden


@pytest.fixture
def certificates(tmp_path: Path) -> Iterator[dict[str, tuple[str, str]]]:
    """Client certificates as files, removed at the end: the hook's, the Envoys', and the controller's own CA."""
    found = {}
    for name, source in (("hook", "headrace-gateway-hook-client"), ("envoy", "envoy")):
        data = secret(NAMESPACE, source)
        for key in ("tls.crt", "tls.key"):
            (tmp_path / f"{name}.{key}").touch(mode=0o600)
            (tmp_path / f"{name}.{key}").write_bytes(data[key])
        found[name] = (str(tmp_path / f"{name}.tls.crt"), str(tmp_path / f"{name}.tls.key"))
    (tmp_path / "ca.crt").write_bytes(secret(NAMESPACE, "headrace-gateway-hook-ca")["tls.crt"])
    found["ca"] = (str(tmp_path / "ca.crt"), "")
    yield found


def is_let_in(port: int, certificates: dict[str, tuple[str, str]], client: str | None) -> bool:
    """Whether the controller goes on talking after the handshake. Its certificate is verified in every case."""
    address = get("service", "headrace-gateway", "-n", NAMESPACE)["spec"]["clusterIP"]
    context = ssl.create_default_context(cafile=certificates["ca"][0])
    context.set_alpn_protocols(["h2"])
    if client:
        context.load_cert_chain(*certificates[client])
    with (
        socket.create_connection((address, port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname=HOST) as connection,
    ):
        try:
            # With TLS 1.3 a refused client certificate shows at the first read.
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
            return len(connection.recv(9)) > 0
        except (ssl.SSLError, ConnectionError):
            return False


@pytest.mark.parametrize(("port", "client"), [(HOOK, "hook"), (EDS, "envoy")])
def test_each_port_lets_its_own_client_in_and_nobody_else(
    certificates: dict[str, tuple[str, str]], port: int, client: str
):
    assert is_let_in(port, certificates, client)
    other = {"hook": "envoy", "envoy": "hook"}[client]
    assert not is_let_in(port, certificates, other)
    assert not is_let_in(port, certificates, None)


def test_envoys_know_the_endpoint_discovery():
    proxy = get("envoyproxy", "headrace", "-n", NAMESPACE)["spec"]
    assert proxy["bootstrap"]["type"] == "Merge"
    assert "headrace_eds" in proxy["bootstrap"]["value"]
    authority = x509.load_pem_x509_certificate(secret(NAMESPACE, "headrace-gateway-hook-ca")["tls.crt"])
    x509.load_pem_x509_certificate(secret(NAMESPACE, "headrace-gateway-tls")["tls.crt"]).verify_directly_issued_by(
        authority
    )


def test_check_mode_on_what_is_there_reports_no_change():
    assert_converged("envoy_gateway")
