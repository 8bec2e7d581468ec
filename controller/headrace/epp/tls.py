"""The ext_proc port's certificate: from files, taken up again when they change, or self-signed."""

from __future__ import annotations

import datetime
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

logger = logging.getLogger(__name__)

_VALID_DAYS = 3650


class InvalidCertificate(ValueError):  # noqa: N818
    """A certificate and key that cannot be served; the message names the files and the fix."""


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


def read_pair(directory: Path) -> tuple[bytes, bytes]:
    """tls.crt and tls.key of a directory, checked to belong together. Raises InvalidCertificate."""
    files = f"{directory}/tls.crt and tls.key"
    try:
        certificate, key = (directory / "tls.crt").read_bytes(), (directory / "tls.key").read_bytes()
        leaf = x509.load_pem_x509_certificates(certificate)[0]
        private = serialization.load_pem_private_key(key, password=None)
    except (OSError, ValueError, TypeError, IndexError) as error:
        raise InvalidCertificate(f"{files} are not a PEM certificate and an unencrypted key: {error}") from None
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if leaf.public_key().public_bytes(encoding, form) != private.public_key().public_bytes(encoding, form):
        raise InvalidCertificate(f"{files} do not belong together: issue both anew")
    return certificate, key


T = TypeVar("T")


class Reloading(Generic[T]):
    """Reads files again when they change. gRPC calls it at every handshake, on a thread of its own."""

    def __init__(self, files: Iterable[Path], read: Callable[[], T]) -> None:
        """`read` gives what is in the files. Raises InvalidCertificate."""
        self._files = tuple(files)
        self._load = read
        self._read = self._stamp()
        self._served = read()

    def first(self) -> T:
        """What they held at first."""
        return self._served

    def changed(self) -> T | None:
        """The new contents, if there are any that can be served; unusable ones are logged and the old ones stay."""
        stamp = self._stamp()
        if stamp == self._read:
            return None
        self._read = stamp
        try:
            pair = self._load()
        except InvalidCertificate as error:
            logger.error("the new certificate is not used: %s", error)
            return None
        if pair == self._served:
            return None
        self._served = pair
        logger.info("took up the new certificate in %s", self._files[0].parent)
        return pair

    def _stamp(self) -> tuple[object, ...]:
        stamps: list[object] = []
        for path in self._files:
            try:
                status = path.stat()
                stamps.append((status.st_mtime_ns, status.st_ino, status.st_size))
            except OSError:
                stamps.append(None)
        return tuple(stamps)


def server_credentials(directory: Path | None, *, reload: bool) -> grpc.ServerCredentials:
    """Credentials for the ext_proc port. Raises InvalidCertificate."""
    if directory is None:
        certificate, key = self_signed()
        return grpc.ssl_server_credentials([(key, certificate)])
    if not reload:
        certificate, key = read_pair(directory)
        return grpc.ssl_server_credentials([(key, certificate)])
    source = Reloading((directory / "tls.crt", directory / "tls.key"), lambda: read_pair(directory))

    def configuration(pair: tuple[bytes, bytes]) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(pair[1], pair[0])])

    def fetch() -> Any:  # None means unchanged, which gRPC's type stubs leave out
        pair = source.changed()
        return None if pair is None else configuration(pair)

    return grpc.dynamic_ssl_server_credentials(configuration(source.first()), fetch, False)
