"""Flags: the reference picker's names, Go's truth values and durations, and errors that say what to do."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from headrace.core import EXTENSION_GROUP, GA_GROUP
from headrace.epp.options import InvalidFlag, Options, add_arguments, read_options


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


def test_limits_of_bodies() -> None:
    found = options("--pool-name=p")
    assert found.conversation.max_parsed_body_bytes == 8 << 20
    # On a machine with little memory the longest body is shorter.
    assert found.conversation.max_body_bytes == min(64 << 20, found.limits.bodies.item_bytes)
    assert found.conversation.bodies.most == found.limits.memory // 4
    assert found.conversation.body_seconds == 120
    found = options("--pool-name=p", "--max-request-body-bytes=1Ki", "--max-parsed-body-bytes=100")
    assert (found.conversation.max_body_bytes, found.conversation.max_parsed_body_bytes) == (1024, 100)


def test_the_budget_of_all_bodies() -> None:
    found = options("--pool-name=p", "--max-held-body-bytes=40Mi", "--request-body-timeout=30s").conversation
    assert found.bodies.most == 40 << 20
    assert found.max_body_bytes == 30 << 20
    assert found.body_seconds == 30


@pytest.mark.parametrize(
    ("flags", "value"),
    [([], True), (["--secure-serving"], True), (["--secure-serving=false"], False), (["--secure-serving=true"], True)],
)
def test_truth_values_as_go_has_them(flags: list[str], value: bool) -> None:
    assert options("--pool-name=p", *flags).secure_serving is value


# What the reference picker's v1.5.0 chart and manifests give, all flags of it that are not refused.
REFERENCE = (
    "--pool-name p --pool-namespace n --pool-group inference.networking.k8s.io --zap-encoder json --v 3"
    " --grpc-port 9002 --grpc-health-port 9003 --metrics-port 9090 --secure-serving --health-checking=true"
    " --cert-path= --enable-cert-reload=false --enable-pprof=false --tracing=false --metrics-endpoint-auth=false"
    " --refresh-metrics-interval 50ms --refresh-prometheus-metrics-interval 5s --metrics-staleness-threshold 2s"
    " --model-server-metrics-scheme https --model-server-metrics-path /m --model-server-metrics-port 8001"
    " --model-server-metrics-https-insecure-skip-verify=true --ha-enable-leader-election=false"
    " --disable-endpoint-subset-filter --config-text {} --zap-devel=false --zap-log-level debug"
    " --zap-stacktrace-level error --zap-time-encoding epoch"
)


def test_the_reference_pickers_flags() -> None:
    found = options(*REFERENCE.split())
    assert (found.scrape.scheme, found.scrape.path, found.scrape.port) == ("https", "/m", 8001)
    assert not found.scrape.verify
    assert not found.conversation.subset_hint
    assert found.config_text == "{}"
    assert found.verbosity == 4
    assert found.served_name == "p"


@pytest.mark.parametrize(
    "flag",
    [
        "total-queued-requests-metric",
        "total-running-requests-metric",
        "kv-cache-usage-percentage-metric",
        "lora-info-metric",
        "cache-info-metric",
    ],
)
def test_flags_that_the_reference_picker_removed(flag: str) -> None:
    with pytest.raises(InvalidFlag, match=f"--{flag}=x: .*engine-type"):
        options("--pool-name=p", f"--{flag}=x")


def test_pods_instead_of_a_pool() -> None:
    found = options(
        "--endpoint-selector=app=m,tier=gpu",
        "--endpoint-target-ports=8000,8001,8000",
        NAMESPACE="n",
        POD_NAME="my-epp-5d4f8-x7k2p",
    )
    assert found.endpoint_selector == {"app": "m", "tier": "gpu"}
    assert found.endpoint_target_ports == (8000, 8001)
    assert (found.pool_namespace, found.served_name) == ("n", "my-epp")


def test_headers_of_clients_can_be_switched_off() -> None:
    assert options("--pool-name=p").conversation.control_headers
    assert not options("--pool-name=p", "--request-control-headers=false").conversation.control_headers


def test_static_endpoints() -> None:
    found = options("--endpoints=127.0.0.1:1, [::1]:2,")
    assert [endpoint.key for endpoint in found.endpoints] == ["127.0.0.1:1", "[::1]:2"]


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
        (["--pool-name=p", "--endpoint-selector=a=b", "--endpoint-target-ports=1"], "--pool-name=p"),
        (["--endpoint-selector=a=b"], "--endpoint-target-ports="),
        (["--pool-name=p", "--endpoint-target-ports=1"], "--endpoint-target-ports=1"),
        (["--endpoint-selector=a", "--endpoint-target-ports=1"], "--endpoint-selector=a"),
        (["--endpoint-selector=a=b,a=c", "--endpoint-target-ports=1"], "--endpoint-selector="),
        (["--endpoint-selector=-a=b", "--endpoint-target-ports=1"], "--endpoint-selector=-a=b"),
        (["--endpoint-selector=a=b", "--endpoint-target-ports=0"], "--endpoint-target-ports=0"),
        (["--endpoint-selector=a=b", "--endpoint-target-ports=1,2,3,4,5,6,7,8,9"], "at most 8"),
        (["--pool-name=p", f"--config-file={__file__}", "--config-text=y"], "--config-text=..."),
        (["--endpoints=127.0.0.1:1", "--metrics-endpoint-auth"], "--metrics-endpoint-auth=true"),
        (["--pool-name=p", "--model-server-metrics-scheme=ftp"], "--model-server-metrics-scheme=ftp"),
        (["--pool-name=p", "--model-server-metrics-port=70000"], "--model-server-metrics-port=70000"),
        (["--pool-name=p", "--max-request-body-bytes=64m"], "--max-request-body-bytes=64m"),
        (["--pool-name=p", "--max-parsed-body-bytes=0.5"], "--max-parsed-body-bytes=0.5"),
        (["--pool-name=p", "--max-held-body-bytes=-1"], "--max-held-body-bytes=-1"),
        (["--pool-name=p", "--request-body-timeout=0s"], "--request-body-timeout=0s"),
        (["--endpoints=127.0.0.1:1", "--ha-enable-leader-election"], "--ha-enable-leader-election=true"),
        (["--pool-name=p", "--zap-log-level=loud"], "--zap-log-level=loud"),
        (["--pool-name=p", "--health-checking=maybe"], "--health-checking=maybe"),
        (["--pool-name=p", "--grpc-port=70000"], "--grpc-port=70000"),
        (["--pool-name=p", "--grpc-port=x"], "--grpc-port=x"),
        (["--pool-name=p", "--secure-serving=maybe"], "--secure-serving=maybe"),
        (["--pool-name=p", "--pick-deadline=3"], "--pick-deadline=3"),
        (["--pool-name=p", "-v", "loud"], "--v=loud"),
    ],
)
def test_what_is_refused_names_the_flag(flags: list[str], named: str) -> None:
    with pytest.raises(InvalidFlag, match=named):
        options(*flags)


def test_a_certificate_directory_needs_both_files(tmp_path: Path) -> None:
    (tmp_path / "tls.crt").touch()
    with pytest.raises(InvalidFlag, match=r"tls\.key"):
        options("--pool-name=p", f"--cert-path={tmp_path}")


def test_the_conformance_suites_arguments_are_taken_as_they_stand() -> None:
    flags = "--pool-name p --pool-namespace n --zap-encoder json --grpc-port 9002 --grpc-health-port 9003"
    found = options("--conformance-hooks", *flags.split())
    assert (found.pool_name, found.pool_namespace, found.pool_group) == ("p", "n", GA_GROUP)
    assert (found.secure_serving, found.cert_path) == (True, None)
    assert found.conversation.conformance_hooks


def test_the_conformance_hooks_are_off_unless_asked_for() -> None:
    assert not options("--pool-name=p").conversation.conformance_hooks


@pytest.fixture
def peer_certificates(tmp_path: Path) -> str:
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (tmp_path / name).touch()
    return f"--peer-cert-path={tmp_path}"


def test_replicas_are_behind_a_service_or_at_addresses(peer_certificates: str) -> None:
    assert not options("--pool-name=p").peers.wanted
    found = options("--pool-name=p", "--pool-namespace=n", "--peer-service=p-epp-peers", peer_certificates, POD_IP="i")
    peers = found.peers
    assert (peers.service, peers.addresses, peers.port) == ("p-epp-peers.n.svc", (), 9004)
    assert (peers.own_address, peers.pool) == ("i", "n/p")
    assert peers.wanted
    assert options("--pool-name=p", "--peer-service=a.b", peer_certificates).peers.service == "a.b"
    listed = options("--pool-name=p", "--peers=10.0.0.1:9004, [::1]:9004,10.0.0.1:9004", peer_certificates)
    assert listed.peers.addresses == ("10.0.0.1:9004", "[::1]:9004")


@pytest.mark.parametrize(
    ("flags", "flag"),
    [
        (["--peers=10.0.0.1"], "peers"),
        (["--peers=10.0.0.1:1", "--peer-service=s"], "peers"),
        (["--peer-service=A_B"], "peer-service"),
        (["--peer-service=s", "--peer-port=9002"], "grpc-port"),
        ([], "peer-cert-path"),
    ],
)
def test_flags_of_replicas_that_cannot_be_meant(peer_certificates: str, flags: list[str], flag: str) -> None:
    with pytest.raises(InvalidFlag, match=f"--{flag}="):
        options("--pool-name=p", peer_certificates, *flags)


def test_replicas_need_certificates(tmp_path: Path) -> None:
    with pytest.raises(InvalidFlag, match="--peer-cert-path="):
        options("--pool-name=p", "--peer-service=s")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).touch()
    with pytest.raises(InvalidFlag, match=r"no ca\.crt"):
        options("--pool-name=p", "--peer-service=s", f"--peer-cert-path={tmp_path}")
