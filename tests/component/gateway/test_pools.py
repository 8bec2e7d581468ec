"""Pools behind a real Envoy with the configuration that the translation makes."""

from __future__ import annotations

import collections
import signal
from pathlib import Path

import pytest

from headrace.core import GA_GROUP
from tests.component.epp.picker import start_picker
from tests.component.epp.servers import ModelServer, expected_events, model_servers
from tests.component.gateway.stack import Cluster, pods, ports, run_stack
from tests.shares import is_likely
from tests.unit.gateway import objects as o

A = f"inferencepool/{GA_GROUP}/default/a"
RULE = "httproute/default/r/rule/0"
CLEARTEXT = {"appProtocol": "kubernetes.io/h2c"}


def keys(servers: list[ModelServer]) -> list[str]:
    return [server.key for server in servers]


def picker_slice(name: str, port: int) -> dict:
    return o.slice_of(name, {"127.0.0.1": {"ready": True}}, port=port)


async def test_weights_and_a_missing_pool(tmp_path: Path):
    async with (
        model_servers(4) as servers,
        start_picker(keys(servers[:2]), tmp_path, name="a") as first,
        start_picker(keys(servers[2:]), tmp_path, name="b") as second,
    ):
        cluster = Cluster(verify=True)
        cluster.update(
            [
                o.pool("a", picker="epp-a", ports=ports(keys(servers[:2]))),
                o.pool("b", picker="epp-b", ports=ports(keys(servers[2:]))),
            ],
            http_routes=[
                o.route("r", [o.pool_ref("a", 70), o.pool_ref("b", 30)], [o.pool_ref("a", 1), o.pool_ref("gone", 1)])
            ],
            services=[o.service("epp-a", **CLEARTEXT), o.service("epp-b", **CLEARTEXT)],
            endpoint_slices=[picker_slice("epp-a", first.grpc_port), picker_slice("epp-b", second.grpc_port)],
            pods=pods(keys(servers[:2]), "a") + pods(keys(servers[2:]), "b"),
        )
        routes = [
            o.xds_route("httproute/default/r/rule/1/match/0/*", prefix="/half"),
            o.xds_route(f"{RULE}/match/0/*"),
        ]
        async with run_stack(cluster, routes, tmp_path) as stack:
            answers = [await stack.ask("/v1/completions") for _ in range(200)]
            assert {status for status, _ in answers} == {200}
            to_a = sum(answer["server"] in keys(servers[:2]) for _, answer in answers)
            assert is_likely(0.7, to_a, 200), to_a
            halves = collections.Counter([(await stack.ask("/half"))[0] for _ in range(60)])
            assert set(halves) == {200, 500}
            assert is_likely(0.5, halves[500], 60), halves
        # Each pool's requests were picked by its own picker.
        assert len(await second.decisions("?limit=1000")) == 200 - to_a
        assert len(await first.decisions("?limit=1000")) == to_a + halves[200]


async def test_client_headers_never_choose_and_the_pick_reaches_the_server(tmp_path: Path):
    async with model_servers(3) as servers, start_picker(keys(servers[:2]), tmp_path) as picker:
        outsider = servers[2]
        cluster = one_pool(servers[:2], picker.grpc_port)
        async with run_stack(cluster, [o.xds_route(f"{RULE}/match/0/*")], tmp_path) as stack:
            forged = {
                "x-gateway-destination-endpoint": outsider.key,
                "x-gateway-destination-endpoint-served": outsider.key,
                "x-gateway-destination-endpoint-subset": outsider.key,
            }
            for method in ("GET", "POST"):
                status, answer = await stack.ask("/v1/models", method, headers=forged)
                assert status == 200
                seen = dict(answer["headers"])
                assert answer["server"] in keys(servers[:2])
                assert seen["x-gateway-destination-endpoint"] == answer["server"]
                assert "x-gateway-destination-endpoint-served" not in seen
                assert "x-gateway-destination-endpoint-subset" not in seen
            # The same with nobody picking: what the client says does not matter either.
            cluster.update(endpoint_slices=[])
            await stack.wait_endpoints(f"{A}/picker", [])
            status, _ = await stack.ask("/v1/models", "GET", headers=forged)
            assert status == 503
        assert not outsider.requests


async def test_pods_come_and_go(tmp_path: Path):
    async with model_servers(2) as servers, start_picker(keys(servers), tmp_path) as picker:
        cluster = one_pool(servers, picker.grpc_port)
        cluster.update(pods=pods(keys(servers)[:1], "a"))
        async with run_stack(cluster, [o.xds_route(f"{RULE}/match/0/*")], tmp_path) as stack:
            # The picker knows both; the pool has one: what was picked beside it falls back to it.
            assert {(await stack.ask())[1]["server"] for _ in range(8)} == {servers[0].key}
            cluster.update(pods=pods(keys(servers), "a"))
            await stack.wait_endpoints(A, keys(servers))
            assert {(await stack.ask())[1]["server"] for _ in range(20)} == set(keys(servers))
            cluster.update(pods=[])
            await stack.wait_endpoints(A, [])
            assert (await stack.ask())[0] == 503


@pytest.mark.parametrize("failure_mode", ["FailOpen", "FailClose"])
@pytest.mark.parametrize("how", ["killed", "stopped", "no endpoints"])
async def test_failure_modes(tmp_path: Path, failure_mode: str, how: str):
    async with model_servers(2) as servers, start_picker(keys(servers), tmp_path) as picker:
        cluster = one_pool(servers, picker.grpc_port, failure_mode)
        async with run_stack(cluster, [o.xds_route(f"{RULE}/match/0/*")], tmp_path, patient=False) as stack:
            await stack.wait_status(200)
            served = sum(len(server.requests) for server in servers)
            if how == "killed":
                picker.kill()
            elif how == "stopped":
                picker.kill(signal.SIGSTOP)
            else:
                cluster.update(endpoint_slices=[])
                await stack.wait_endpoints(f"{A}/picker", [])
            body = b"x" * 5_000_000
            statuses = [
                (await stack.ask())[0],
                (await stack.ask(method="GET"))[0],
                (await stack.ask(data=body, json=None))[0],
                (await stack.ask())[0],
            ]
            reached = sum(len(server.requests) for server in servers) - served
            if failure_mode == "FailOpen":
                assert statuses == [200] * 4
                assert reached == 4
            else:
                assert set(statuses) <= {503, 504}
                assert reached == 0
            if how == "stopped":
                picker.kill(signal.SIGCONT)
                await stack.wait_status(200)


async def test_death_of_the_picker_cuts_no_running_answer(tmp_path: Path):
    async with model_servers(1) as servers, start_picker(keys(servers), tmp_path) as picker:
        cluster = one_pool(servers, picker.grpc_port)
        async with run_stack(cluster, [o.xds_route(f"{RULE}/match/0/*")], tmp_path) as stack:
            body = {"model": "m", "prompt": "hello", "stream": True}
            async with stack.client.post(f"{stack.url}/v1/completions", json=body) as answer:
                first = await answer.content.readany()
                await picker.wait_in_flight(1)
                picker.kill()
                await picker.process.wait()
                servers[0].go_on.set()
                assert first + await answer.read() == expected_events()


async def test_picker_verified_by_the_ca_of_its_policy(tmp_path: Path):
    certificates = tmp_path / "epp"
    other = tmp_path / "other"
    issue(certificates, "epp-a.default.svc")
    issue(other, "epp-a.default.svc")
    flags = ("--secure-serving=true", f"--cert-path={certificates}")
    async with model_servers(1) as servers, start_picker(keys(servers), tmp_path, *flags) as picker:
        cluster = one_pool(servers, picker.grpc_port, service=o.service("epp-a"))
        policy = {
            "metadata": o.metadata("epp-a"),
            "spec": {
                "targetRefs": [{"group": "", "kind": "Service", "name": "epp-a"}],
                "validation": {
                    "hostname": "epp-a.default.svc",
                    "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "ca"}],
                },
            },
        }

        def trusting(directory: Path) -> dict:
            data = {"ca.crt": (directory / "tls.crt").read_text()}
            return {"metadata": o.metadata("ca"), "data": data}

        async with run_stack(cluster, [o.xds_route(f"{RULE}/match/0/*")], tmp_path) as stack:

            async def refused() -> int:
                name = f"cluster.{A}/picker.ssl.fail_verify_error"
                return (await stack.envoy.counters(name)).get(name, 0)

            # Without a policy nobody is trusted.
            assert (await stack.ask())[0] == 503
            cluster.update(backend_tls_policies=[policy], config_maps=[trusting(certificates)])
            await stack.wait_status(200)
            cluster.update(config_maps=[trusting(other)])
            before = await refused()
            # Trust is asked at the handshake: a connection that was verified stays; a new one is refused.
            cluster.update(endpoint_slices=[])
            await stack.wait_endpoints(f"{A}/picker", [])
            cluster.update(endpoint_slices=[picker_slice("epp-a", picker.grpc_port)])
            await stack.wait_endpoints(f"{A}/picker", [f"127.0.0.1:{picker.grpc_port}"])

            async def is_refused() -> bool:
                return await refused() > before

            await stack.until(is_refused, lambda: "no handshake was refused")
            assert (await stack.ask())[0] == 503


async def test_picker_with_a_self_signed_certificate_where_that_is_allowed(tmp_path: Path):
    async with model_servers(1) as servers, start_picker(keys(servers), tmp_path, "--secure-serving=true") as picker:
        for verify, wanted in ((False, 200), (True, 503)):
            cluster = one_pool(servers, picker.grpc_port, service=o.service("epp-a", ours=False), verify=verify)
            async with run_stack(cluster, [o.xds_route(f"{RULE}/match/0/*")], tmp_path) as stack:
                assert (await stack.ask())[0] == wanted
                assert bool(stack.translation.unverified) is not verify


def one_pool(
    servers: list[ModelServer],
    picker_port: int,
    failure_mode: str = "FailClose",
    *,
    service: dict | None = None,
    verify: bool = True,
) -> Cluster:
    cluster = Cluster(verify=verify)
    cluster.update(
        [o.pool("a", picker="epp-a", ports=ports(keys(servers)), failure_mode=failure_mode)],
        http_routes=[o.route("r", [o.pool_ref("a")])],
        services=[service or o.service("epp-a", **CLEARTEXT)],
        endpoint_slices=[picker_slice("epp-a", picker_port)],
        pods=pods(keys(servers), "a"),
    )
    return cluster


def issue(directory: Path, name: str) -> None:
    """A self-signed certificate for a name, which is its own CA."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    directory.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (directory / "tls.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (directory / "tls.key").write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
