"""Mutual TLS of the hook and the discovery port: from files, taken up again when they change."""

from __future__ import annotations

import datetime
import logging
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

logger = logging.getLogger(__name__)


class InvalidCertificate(ValueError):  # noqa: N818
    """Files that cannot be served with; the message names them and the fix."""


class _Material(NamedTuple):
    certificate: bytes
    key: bytes
    client_ca: bytes


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


def _read(directory: Path, client_ca: Path) -> _Material:
    try:
        certificate, key = (directory / "tls.crt").read_bytes(), (directory / "tls.key").read_bytes()
        leaf = x509.load_pem_x509_certificates(certificate)[0]
        private = serialization.load_pem_private_key(key, password=None)
    except (OSError, ValueError, TypeError, IndexError) as error:
        files = f"{directory}/tls.crt and tls.key"
        raise InvalidCertificate(f"{files} are not a PEM certificate and an unencrypted key: {error}") from None
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if leaf.public_key().public_bytes(encoding, form) != private.public_key().public_bytes(encoding, form):
        raise InvalidCertificate(f"{directory}/tls.crt and tls.key do not belong together: issue both anew")
    try:
        authority = client_ca.read_bytes()
        x509.load_pem_x509_certificates(authority)
    except (OSError, ValueError) as error:
        raise InvalidCertificate(f"{client_ca} is not a PEM certificate of a CA: {error}") from None
    return _Material(certificate, key, authority)


class _Reloading:
    """Reads the files again when they change. gRPC asks at every handshake, on a thread of its own."""

    def __init__(self, directory: Path, client_ca: Path) -> None:
        self._files = (directory, client_ca)
        self._seen = self._stamps()
        self.material = _read(directory, client_ca)

    def changed(self) -> bool:
        """Whether there is something new to serve with. What is unusable is logged, and the old stays."""
        stamps = self._stamps()
        if stamps == self._seen:
            return False
        self._seen = stamps
        try:
            material = _read(*self._files)
        except InvalidCertificate as error:
            logger.error("the new certificate is not used: %s", error)
            return False
        if material == self.material:
            return False
        self.material = material
        logger.info("took up the new certificate in %s", self._files[0])
        return True

    def _stamps(self) -> tuple[object, ...]:
        directory, client_ca = self._files
        found: list[object] = []
        for path in (directory / "tls.crt", directory / "tls.key", client_ca):
            try:
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_ino, status.st_size))
            except OSError:
                found.append(None)
        return tuple(found)


def mutual_credentials(directory: Path, client_ca: Path) -> grpc.ServerCredentials:
    """Serve with tls.crt and tls.key of a directory, to clients with a certificate of `client_ca`.

    Raises InvalidCertificate."""
    source = _Reloading(directory, client_ca)

    def configuration() -> grpc.ServerCertificateConfiguration:
        material = source.material
        return grpc.ssl_server_certificate_configuration(
            [(material.key, material.certificate)], root_certificates=material.client_ca
        )

    def fetch() -> Any:  # None means unchanged, which gRPC's type stubs leave out
        return configuration() if source.changed() else None

    return grpc.dynamic_ssl_server_credentials(configuration(), fetch, True)
