"""The cluster's keys, certificates and kubeconfigs. What exists and still fits is kept."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .settings import Settings

VALID = datetime.timedelta(days=3650)
# A certificate with less than this left is made anew.
RENEW = datetime.timedelta(days=30)


@dataclass(frozen=True)
class Certificate:
    """A certificate to be: file name, common name (user), organisation (group), signing CA, other names."""

    name: str
    common_name: str
    organisation: str = ""
    authority: str = "ca"
    names: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()


@dataclass
class Keys:
    """Brings `<state>/pki` and `<state>/kubeconfig` to what the settings say; with `check`, only says so."""

    settings: Settings
    check: bool
    changes: list[str] = field(default_factory=list)

    @property
    def _folder(self) -> Path:
        return self.settings.state_dir / "pki"

    def up(self) -> list[str]:
        """Create what is missing, no longer fits or runs out; answer with what that was."""
        for authority in ("ca", "front-proxy-ca"):
            if not (self._folder / f"{authority}.crt").exists():
                self._authority(authority)
        if not (self._folder / "service-accounts.key").exists():
            self.changes.append("key service-accounts")
            if not self.check:
                key = ec.generate_private_key(ec.SECP256R1())
                self._write(self._folder / "service-accounts.key", _private(key))
                self._write(self._folder / "service-accounts.pub", _public(key))
        for certificate in self._certificates():
            if not self._fits(certificate):
                self._issue(certificate)
        for user in (
            "admin",
            "controller-manager",
            "scheduler",
            "proxy",
            "load-balancer",
            *(node.name for node in self.settings.nodes),
        ):
            self._kubeconfig(user)
        return self.changes

    def _certificates(self) -> Iterable[Certificate]:
        settings = self.settings
        kubernetes = (
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        )
        yield Certificate(
            "apiserver",
            "kube-apiserver",
            names=(*kubernetes, "localhost"),
            addresses=("127.0.0.1", settings.kubernetes_address, settings.control_plane.address),
        )
        yield Certificate("kubelet-client", "kube-apiserver-kubelet-client", "system:masters")
        yield Certificate("front-proxy-client", "front-proxy-client", authority="front-proxy-ca")
        yield Certificate("admin", "kubernetes-admin", "system:masters")
        yield Certificate("controller-manager", "system:kube-controller-manager")
        yield Certificate("scheduler", "system:kube-scheduler")
        yield Certificate("proxy", "system:kube-proxy")
        yield Certificate("load-balancer", "headrace:local-load-balancer")
        for node in settings.nodes:
            yield Certificate(
                node.name, f"system:node:{node.name}", "system:nodes", names=(node.name,), addresses=(node.address,)
            )

    def _authority(self, name: str) -> None:
        self.changes.append(f"authority {name}")
        if self.check:
            return
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{self.settings.name}-{name}")])
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        builder = _builder(subject, subject, key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).add_extension(
            usage, critical=True
        )
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        self._store(name, key, builder.sign(key, hashes.SHA256()))

    def _issue(self, wanted: Certificate) -> None:
        self.changes.append(f"certificate {wanted.name}")
        if self.check:
            return
        authority_key = serialization.load_pem_private_key(
            (self._folder / f"{wanted.authority}.key").read_bytes(), None
        )
        assert isinstance(authority_key, ec.EllipticCurvePrivateKey)
        authority = self._load(wanted.authority)
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, wanted.organisation)] if wanted.organisation else []
        subject = x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, wanted.common_name)])
        usage = x509.KeyUsage(True, False, True, False, False, False, False, False, False)
        purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = _builder(subject, authority.subject, key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True).add_extension(
            usage, critical=True
        )
        builder = builder.add_extension(purposes, critical=False)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
        )
        if wanted.names or wanted.addresses:
            builder = builder.add_extension(x509.SubjectAlternativeName(_general_names(wanted)), critical=False)
        self._store(wanted.name, key, builder.sign(authority_key, hashes.SHA256()))

    def _fits(self, wanted: Certificate) -> bool:
        if (
            not (self._folder / f"{wanted.name}.crt").exists()
            or not (self._folder / f"{wanted.authority}.crt").exists()
        ):
            return False
        found, authority = self._load(wanted.name), self._load(wanted.authority)
        try:
            found.verify_directly_issued_by(authority)
        except Exception:  # noqa: BLE001 - whatever keeps it from being ours, it is made anew
            return False
        if found.not_valid_after_utc - datetime.datetime.now(datetime.UTC) < RENEW:
            return False
        if not wanted.names and not wanted.addresses:
            return True
        try:
            names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return False
        return set(names) == set(_general_names(wanted))

    def _kubeconfig(self, user: str) -> None:
        if self.check and not (self._folder / f"{user}.key").exists():
            self.changes.append(f"kubeconfig {user}")
            return

        def encoded(name: str) -> str:
            return base64.b64encode((self._folder / name).read_bytes()).decode()

        name = self.settings.name
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": name,
                    "cluster": {"server": self.settings.api_server, "certificate-authority-data": encoded("ca.crt")},
                }
            ],
            "users": [
                {
                    "name": user,
                    "user": {
                        "client-certificate-data": encoded(f"{user}.crt"),
                        "client-key-data": encoded(f"{user}.key"),
                    },
                }
            ],
            "contexts": [{"name": name, "context": {"cluster": name, "user": user}}],
            "current-context": name,
        }
        path = self.settings.state_dir / "kubeconfig" / f"{user}.conf"
        text = json.dumps(content, indent=2) + "\n"
        if path.exists() and path.read_text() == text:
            return
        self.changes.append(f"kubeconfig {user}")
        if not self.check:
            self._write(path, text.encode())

    def _load(self, name: str) -> x509.Certificate:
        return x509.load_pem_x509_certificate((self._folder / f"{name}.crt").read_bytes())

    def _store(self, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._write(self._folder / f"{name}.key", _private(key))
        self._write(self._folder / f"{name}.crt", certificate.public_bytes(serialization.Encoding.PEM))

    def _write(self, path: Path, content: bytes) -> None:
        """Whole or not at all, and never readable by others, not even for a moment."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_suffix(path.suffix + ".new")
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        temporary.rename(path)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
    )
    # An hour ago: a clock that is set back a little must not refuse it.
    return builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + VALID)


def _general_names(wanted: Certificate) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in wanted.names]
    return names + [x509.IPAddress(ipaddress.ip_address(address)) for address in wanted.addresses]


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _public(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
