"""What gRPC servers serve with: certificates, keys and CAs from files, taken up again when they change."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization

logger = logging.getLogger(__name__)

T = TypeVar("T")


class InvalidCertificate(ValueError):  # noqa: N818
    """Files that cannot be served with; the message names them and the fix."""


class Identity(NamedTuple):
    """What one end of mutual TLS has, as PEM. `authority` has signed the other end's certificate."""

    certificate: bytes
    key: bytes
    authority: bytes


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


def read_identity(directory: Path, authority: Path) -> Identity:
    """tls.crt and tls.key of a directory, and the other ends' CA. Raises InvalidCertificate."""
    certificate, key = read_pair(directory)
    try:
        content = authority.read_bytes()
        x509.load_pem_x509_certificates(content)
    except (OSError, ValueError) as error:
        raise InvalidCertificate(f"{authority} is not a PEM certificate of a CA: {error}") from None
    return Identity(certificate, key, content)


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
            found = self._load()
        except InvalidCertificate as error:
            logger.error("the new certificate is not used: %s", error)
            return None
        if found == self._served:
            return None
        self._served = found
        logger.info("took up the new certificate in %s", self._files[0].parent)
        return found

    def _stamp(self) -> tuple[object, ...]:
        stamps: list[object] = []
        for path in self._files:
            try:
                status = path.stat()
                stamps.append((status.st_mtime_ns, status.st_ino, status.st_size))
            except OSError:
                stamps.append(None)
        return tuple(stamps)


def mutual_credentials(directory: Path, authority: Path, read: Callable[[], Identity]) -> grpc.ServerCredentials:
    """Serve with what `read` gives of tls.crt and tls.key of a directory, to clients with a certificate of a CA.

    Raises InvalidCertificate."""

    def configuration(held: Identity) -> grpc.ServerCertificateConfiguration:
        pair = (held.key, held.certificate)
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=held.authority)

    return _following((directory / "tls.crt", directory / "tls.key", authority), read, configuration, ask_client=True)


def server_credentials(directory: Path) -> grpc.ServerCredentials:
    """Serve with tls.crt and tls.key of a directory, to anybody. Raises InvalidCertificate."""

    def configuration(pair: tuple[bytes, bytes]) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(pair[1], pair[0])])

    files = (directory / "tls.crt", directory / "tls.key")
    return _following(files, lambda: read_pair(directory), configuration, ask_client=False)


def _following(
    files: Iterable[Path],
    read: Callable[[], T],
    configuration: Callable[[T], grpc.ServerCertificateConfiguration],
    *,
    ask_client: bool,
) -> grpc.ServerCredentials:
    source = Reloading(files, read)

    def fetch() -> Any:  # None means unchanged, which gRPC's type stubs leave out
        found = source.changed()
        return None if found is None else configuration(found)

    return grpc.dynamic_ssl_server_credentials(configuration(source.first()), fetch, ask_client)
