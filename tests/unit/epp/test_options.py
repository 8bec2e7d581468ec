"""Flags: the reference picker's names, Go's truth values and durations, and errors that say what to do."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from headrace.core import EXTENSION_GROUP, GA_GROUP
from headrace.epp.options import InvalidFlag, Options, add_arguments, duration, read_options


def options(*flags: str, **environment: str) -> Options:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return read_options(parser.parse_args(flags), environment)


def test_defaults() -> None:
    found = options("--pool-name", "p")
    assert (found.pool_name, found.pool_namespace, found.pool_group) == ("p", "default", GA_GROUP)
    assert (found.grpc_port, found.grpc_health_port, found.metrics_port) == (9002, 9003, 9090)
    assert found.secure_serving
    assert found.cert_path is None


def test_the_namespace_is_a_flag_or_the_environment() -> None:
    assert options("--pool-name=p", NAMESPACE="env").pool_namespace == "env"
    assert options("--pool-name=p", "--pool-namespace=flag", NAMESPACE="env").pool_namespace == "flag"
    assert options("--pool-name=p", f"--pool-group={EXTENSION_GROUP}").pool_group == EXTENSION_GROUP


@pytest.mark.parametrize(
    ("flags", "value"),
    [([], True), (["--secure-serving"], True), (["--secure-serving=false"], False), (["--secure-serving=true"], True)],
)
def test_truth_values_as_go_has_them(flags: list[str], value: bool) -> None:
    assert options("--pool-name=p", *flags).secure_serving is value


def test_static_endpoints() -> None:
    found = options("--endpoints=127.0.0.1:1, [::1]:2,")
    assert [endpoint.key for endpoint in found.endpoints] == ["127.0.0.1:1", "[::1]:2"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("50ms", 0.05), ("2s", 2.0), ("1m30s", 90.0), ("0", 0.0), ("1.5h", 5400.0)]
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "5 s", "-1s", "s", "1s2", "1d"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="50ms"):
        duration(text)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ([], "--pool-name="),
        (["--pool-name=p", "--endpoints=127.0.0.1:1"], "--pool-name=p"),
        (["--pool-name=p", "--pool-group=apps"], "--pool-group=apps"),
        (["--endpoints=host:80"], "--endpoints=host:80"),
        (["--endpoints=127.0.0.1:80,127.0.0.1:80"], "twice"),
        (["--pool-name=p", "--grpc-port=9003"], "--grpc-port=9003"),
        (["--pool-name=p", "--pick-deadline=0"], "--pick-deadline"),
        (["--pool-name=p", "--refresh-metrics-interval=0"], "--refresh-metrics-interval"),
        (["--pool-name=p", "--cert-path=/nowhere"], "--cert-path=/nowhere"),
        (["--pool-name=p", "--config-file=/nowhere"], "--config-file=/nowhere"),
        (["--endpoints=127.0.0.1:1", "--failure-mode=Maybe"], "--failure-mode=Maybe"),
    ],
)
def test_what_is_refused_names_the_flag(flags: list[str], named: str) -> None:
    with pytest.raises(InvalidFlag, match=named):
        options(*flags)


@pytest.mark.parametrize("flag", ["--grpc-port=70000", "--grpc-port=x", "--secure-serving=maybe", "--pick-deadline=3"])
def test_what_argparse_refuses(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options("--pool-name=p", flag)
    assert flag.partition("=")[0] in capsys.readouterr().err


def test_a_certificate_directory_needs_both_files(tmp_path: Path) -> None:
    (tmp_path / "tls.crt").touch()
    with pytest.raises(InvalidFlag, match=r"tls\.key"):
        options("--pool-name=p", f"--cert-path={tmp_path}")


def test_the_conformance_suites_arguments_are_taken_as_they_stand() -> None:
    flags = "--pool-name p --pool-namespace n --zap-encoder json --grpc-port 9002 --grpc-health-port 9003"
    found = options("--conformance-hooks", *flags.split())
    assert (found.pool_name, found.pool_namespace, found.pool_group) == ("p", "n", GA_GROUP)
    assert (found.secure_serving, found.cert_path) == (True, None)
    assert found.conformance_hooks


def test_the_conformance_hooks_are_off_unless_asked_for() -> None:
    assert not options("--pool-name=p").conformance_hooks
