"""Mutual TLS between the replicas of a picker. All hold one certificate: whoever shows one of the same CA, for the same
name, is a replica. Nobody else has one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import grpc
from cryptography import x509

from headrace.epp.tls import InvalidCertificate, Reloading, read_pair


class PeerCertificate(NamedTuple):
    """A replica's certificate, key and CA, as PEM, and the name that all replicas have."""

    certificate: bytes
    key: bytes
    authority: bytes
    name: str


def read_certificate(directory: Path) -> PeerCertificate:
    """tls.crt, tls.key and ca.crt of a directory. Raises InvalidCertificate."""
    certificate, key = read_pair(directory)
    path = directory / "ca.crt"
    try:
        authority = path.read_bytes()
        x509.load_pem_x509_certificates(authority)
    except (OSError, ValueError) as error:
        raise InvalidCertificate(f"{path} is not a PEM certificate of a CA: {error}") from None
    leaf = x509.load_pem_x509_certificates(certificate)[0]
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        name = names.get_values_for_type(x509.DNSName)[0]
    except (x509.ExtensionNotFound, IndexError):
        fix = "issue it for the name of the replicas' Service"
        raise InvalidCertificate(f"{directory}/tls.crt is good for no DNS name: {fix}") from None
    return PeerCertificate(certificate, key, authority, name)


def server_credentials(directory: Path) -> grpc.ServerCredentials:
    """Serve replicas only; changed files are taken up. Raises InvalidCertificate."""
    files = (directory / name for name in ("tls.crt", "tls.key", "ca.crt"))
    source = Reloading(files, lambda: read_certificate(directory))

    def configuration(held: PeerCertificate) -> grpc.ServerCertificateConfiguration:
        pair = (held.key, held.certificate)
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=held.authority)

    def fetch() -> Any:  # None means unchanged, which gRPC's type stubs leave out
        held = source.changed()
        return None if held is None else configuration(held)

    return grpc.dynamic_ssl_server_credentials(configuration(source.first()), fetch, True)


def channel_credentials(held: PeerCertificate) -> grpc.ChannelCredentials:
    """Show our certificate to a replica, and want to see its own."""
    return grpc.ssl_channel_credentials(
        root_certificates=held.authority, private_key=held.key, certificate_chain=held.certificate
    )
