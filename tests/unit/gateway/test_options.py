"""Flags: what is wrong is named, with the fix."""

from __future__ import annotations

import argparse

import pytest

from headrace.gateway.options import InvalidFlag, add_arguments, read_options


def read(*flags: str):
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_arguments(parser)
    return read_options(parser.parse_args(flags))


def test_defaults(tmp_path):
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (tmp_path / name).write_text("x")
    found = read(f"--cert-path={tmp_path}", f"--eds-client-ca={tmp_path / 'ca.crt'}")
    assert (found.hook_port, found.eds_port, found.health_port, found.metrics_port) == (5005, 5006, 8081, 9091)
    assert found.verify_by_default
    assert found.cert_path == tmp_path


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "--cert-path=: there is no tls.crt"),
        (("--insecure", "--epp-tls-default=maybe"), "--epp-tls-default=maybe: use verify or unverified"),
        (("--insecure", "--hook-port=7", "--eds-port=7"), "--hook-port=7"),
        (("--insecure", "--controller-name=x"), "--controller-name=x"),
    ],
)
def test_wrong_flags(flags, words):
    with pytest.raises(ValueError, match=words):
        read(*flags)


@pytest.mark.parametrize("flag", ["--hook-port=70000", "--hook-port=x", "--drain-delay=3", "--drain-delay=soon"])
def test_unreadable_flags(flag):
    with pytest.raises(InvalidFlag, match=flag):
        read("--insecure", flag)


def test_insecure_takes_no_files():
    assert read("--insecure", "--drain-delay=500ms").drain_delay == 0.5
