"""Mutual TLS between the replicas of a picker. All hold one certificate: whoever shows one of the same CA, for the same
name, is a replica. Nobody else has one."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import grpc
from cryptography import x509

from headrace.serving.tls import Identity, InvalidCertificate, mutual_credentials, read_identity


class PeerCertificate(NamedTuple):
    """A replica's certificate, key and CA, and the name that all replicas have."""

    identity: Identity
    name: str


def read_certificate(directory: Path) -> PeerCertificate:
    """tls.crt, tls.key and ca.crt of a directory. Raises InvalidCertificate."""
    identity = read_identity(directory, directory / "ca.crt")
    leaf = x509.load_pem_x509_certificates(identity.certificate)[0]
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        name = names.get_values_for_type(x509.DNSName)[0]
    except (x509.ExtensionNotFound, IndexError):
        fix = "issue it for the name of the replicas' Service"
        raise InvalidCertificate(f"{directory}/tls.crt is good for no DNS name: {fix}") from None
    return PeerCertificate(identity, name)


def server_credentials(directory: Path) -> grpc.ServerCredentials:
    """Serve replicas only; changed files are taken up. Raises InvalidCertificate."""
    return mutual_credentials(directory, directory / "ca.crt", lambda: read_certificate(directory).identity)


def channel_credentials(held: PeerCertificate) -> grpc.ChannelCredentials:
    """Show our certificate to a replica, and want to see its own."""
    certificate, key, authority = held.identity
    return grpc.ssl_channel_credentials(root_certificates=authority, private_key=key, certificate_chain=certificate)
