"""Mutual TLS of the hook and the discovery port: from files, taken up again when they change."""

from __future__ import annotations

import datetime
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from headrace import certificates
from headrace.certificates import read_identity


def certificate_of_nobody() -> str:
    """A CA, as PEM, whose key is thrown away: who trusts it trusts nobody."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "headrace trusts nobody")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def mutual_credentials(directory: Path, client_ca: Path) -> grpc.ServerCredentials:
    """Serve with tls.crt and tls.key of a directory, to clients with a certificate of `client_ca`.

    Raises InvalidCertificate."""
    return certificates.mutual_credentials(directory, client_ca, lambda: read_identity(directory, client_ca))
