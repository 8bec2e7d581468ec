"""The certificate that a picker's replicas know each other by."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.replicas.tls import read_certificate, server_credentials
from headrace.serving.tls import InvalidCertificate, self_signed

from ...certificates import Authority

NAME = "epp-peers.default.svc"


def written(directory: Path, *names: str) -> Authority:
    authority = Authority("peers")
    authority.issue(*names, peer=True).write(directory, authority.certificate)
    return authority


def test_replicas_have_the_certificates_first_name(tmp_path: Path) -> None:
    authority = written(tmp_path, NAME, "second.test")
    held = read_certificate(tmp_path)
    assert held.name == NAME
    assert held.identity.authority == authority.certificate
    server_credentials(tmp_path)


def test_what_cannot_be_used_names_the_file(tmp_path: Path) -> None:
    written(tmp_path, "127.0.0.1")
    with pytest.raises(InvalidCertificate, match=r"tls\.crt is good for no DNS name"):
        read_certificate(tmp_path)
    written(tmp_path, NAME)
    (tmp_path / "ca.crt").write_text("nonsense")
    with pytest.raises(InvalidCertificate, match=r"ca\.crt is not a PEM certificate"):
        read_certificate(tmp_path)
    (tmp_path / "ca.crt").unlink()
    with pytest.raises(InvalidCertificate, match=r"ca\.crt"):
        server_credentials(tmp_path)
    (tmp_path / "tls.key").write_bytes(self_signed()[1])
    with pytest.raises(InvalidCertificate, match="belong together"):
        read_certificate(tmp_path)
