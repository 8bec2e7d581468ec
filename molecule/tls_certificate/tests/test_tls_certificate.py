"""The certificate verifies, is renewed when it must be, and no key is shown."""

from __future__ import annotations

from cryptography import x509
from support import assert_converged, play, secret

NAMESPACE = "molecule-certificate"


def read(name: str = "molecule-tls") -> tuple[x509.Certificate, x509.Certificate]:
    data = secret(NAMESPACE, name)
    return x509.load_pem_x509_certificate(data["tls.crt"]), x509.load_pem_x509_certificates(data["ca.crt"])[0]


def test_the_certificate_is_of_the_ca_and_for_the_names():
    certificate, authority = read()
    certificate.verify_directly_issued_by(authority)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["one.molecule.svc", "two.molecule.svc"]
    usages = set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert usages == {x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH}
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_check_mode_on_what_is_there_reports_no_change():
    assert_converged("tls_certificate")


def test_other_names_make_another_certificate_of_the_same_ca():
    before, authority = read()
    run = play("tls_certificate", {"molecule_names": ["three.molecule.svc"]}, "--diff", "-vv")
    assert run.returncode == 0, run.output
    after, same = read()
    assert after.serial_number != before.serial_number
    assert same == authority
    after.verify_directly_issued_by(authority)
    assert "PRIVATE KEY" not in run.output, "a key was shown"


def test_a_certificate_near_its_end_is_renewed_and_another_is_not():
    assert play("tls_certificate", {"tls_certificate_renew_days": 30}).returncode == 0
    before, _ = read()
    assert play("tls_certificate", {"tls_certificate_renew_days": 30}).changed == 0
    assert play("tls_certificate", {"tls_certificate_renew_days": 366}).changed > 0
    assert read()[0].serial_number != before.serial_number


def test_a_new_ca_keeps_the_old_one_in_the_bundle():
    _, old = read()
    run = play("tls_certificate", {"tls_certificate_days": 3651})
    assert run.returncode == 0, run.output
    certificate, new = read()
    bundle = x509.load_pem_x509_certificates(secret(NAMESPACE, "molecule-tls")["ca.crt"])
    assert bundle == [new, old]
    assert new != old
    certificate.verify_directly_issued_by(new)
