"""TLS files of servers, read again when they change, and certificates of our own making."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from headrace.serving.files import Reloading

T = TypeVar("T")

_VALID_DAYS = 3650


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
    if leaf.public_key() != private.public_key():
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


def mutual_credentials(
    directory: Path, authority: Path, read: Callable[[], Identity] | None = None
) -> grpc.ServerCredentials:
    """Serve with tls.crt and tls.key of a directory, to clients with a certificate of the CA in the file `authority`.

    `read` reads them and checks more. Changed files are used from the next handshake on. Raises InvalidCertificate."""

    def configuration(held: Identity) -> grpc.ServerCertificateConfiguration:
        pair = (held.key, held.certificate)
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=held.authority)

    files = (directory / "tls.crt", directory / "tls.key", authority)
    source = Reloading(files, read or (lambda: read_identity(directory, authority)), "the certificate")
    return _reloading(source, configuration, ask_client=True)


def server_credentials(directory: Path | None, *, reload: bool = True) -> grpc.ServerCredentials:
    """Serve with tls.crt and tls.key of a directory, or a certificate of our own making, to anybody.

    With `reload`, changed files are used from the next handshake on. Raises InvalidCertificate."""

    def configuration(pair: tuple[bytes, bytes]) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(pair[1], pair[0])])

    if directory is None or not reload:
        certificate, key = self_signed() if directory is None else read_pair(directory)
        return grpc.ssl_server_credentials([(key, certificate)])
    files = (directory / "tls.crt", directory / "tls.key")
    source = Reloading(files, lambda: read_pair(directory), "the certificate")
    return _reloading(source, configuration, ask_client=False)


def server_context(
    directory: Path | None, *, reload: bool = True, authority: Path | None = None, protocols: Sequence[str] = ("h2",)
) -> ssl.SSLContext:
    """The same for servers of our own: for `protocols`, and where there is an `authority` only for clients with a
    certificate of the CA in that file. Raises InvalidCertificate."""

    def read() -> Identity:
        if directory is None:
            return Identity(*self_signed(), b"")
        return read_identity(directory, authority) if authority is not None else Identity(*read_pair(directory), b"")

    if directory is None or not reload:
        return _context(read(), protocols)
    files = [directory / "tls.crt", directory / "tls.key"]
    source = Reloading(files if authority is None else [*files, authority], read, "the certificate")
    first = latest = _context(source.current, protocols)

    def take_latest(connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext) -> None:
        nonlocal latest
        found = source.changed()
        if found is not None:
            latest = _context(found, protocols)
        connection.context = latest

    # Called in each handshake, whether the client names a server or not.
    first.sni_callback = take_latest
    return first


def _context(identity: Identity, protocols: Sequence[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(list(protocols))
    # The module takes a chain from a file only. Ours is read already, and checked: the file is in memory, as a disk may
    # not be there to write to, and is no place for a key.
    chain = os.memfd_create("chain")
    try:
        os.write(chain, identity.key + b"\n" + identity.certificate)
        context.load_cert_chain(f"/proc/self/fd/{chain}")
    finally:
        os.close(chain)
    if identity.authority:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=identity.authority.decode())
    return context


def _reloading(
    source: Reloading[T], configuration: Callable[[T], grpc.ServerCertificateConfiguration], *, ask_client: bool
) -> grpc.ServerCredentials:
    def fetch() -> Any:  # None means unchanged, which gRPC's type stubs leave out
        found = source.changed()
        return None if found is None else configuration(found)

    return grpc.dynamic_ssl_server_credentials(configuration(source.current), fetch, ask_client)


def self_signed() -> tuple[bytes, bytes]:
    """A certificate and key of this process, as PEM: gateways that verify need files instead."""
    alternatives: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.DNSName(socket.gethostname()),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]
    certificate, key = _made("headrace-epp", x509.SubjectAlternativeName(alternatives), critical=False)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate, private


def certificate_of_nobody() -> str:
    """A CA, as PEM, whose key is thrown away: who trusts it trusts nobody."""
    authority = x509.BasicConstraints(ca=True, path_length=None)
    return _made("headrace trusts nobody", authority, critical=True)[0].decode()


def _made(
    common_name: str, extension: x509.ExtensionType, *, critical: bool
) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    """A certificate that signs itself, as PEM, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=_VALID_DAYS))
        .add_extension(extension, critical=critical)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), key
