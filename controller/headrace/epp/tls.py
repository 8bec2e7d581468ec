"""The ext_proc port's certificate: from files, taken up again when they change, or self-signed."""

from __future__ import annotations

import datetime
import ipaddress
import socket
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from headrace import certificates

_VALID_DAYS = 3650


def self_signed() -> tuple[bytes, bytes]:
    """A key pair of this process, as PEM: gateways that verify need --cert-path instead."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "headrace-epp")])
    now = datetime.datetime.now(datetime.UTC)
    alternatives: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.DNSName(socket.gethostname()),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=_VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM), private


def server_credentials(directory: Path | None, *, reload: bool) -> grpc.ServerCredentials:
    """Credentials for the ext_proc port. Raises InvalidCertificate."""
    if directory is not None and reload:
        return certificates.server_credentials(directory)
    certificate, key = self_signed() if directory is None else certificates.read_pair(directory)
    return grpc.ssl_server_credentials([(key, certificate)])
