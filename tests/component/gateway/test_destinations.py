"""Where requests end: fallback lists, what served, picks and headers that lead outside, shares while Pods change."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from headrace.core import GA_GROUP
from headrace.xds.envoy.config.cluster.v3 import cluster_pb2
from tests.component.epp.picker import start_picker
from tests.component.epp.servers import ModelServer, expected_events, model_servers
from tests.component.gateway.scripted import scripted_picker
from tests.component.gateway.stack import Cluster, pods, ports, run_stack
from tests.shares import is_likely
from tests.unit.gateway import objects as o

A = f"inferencepool/{GA_GROUP}/default/a"
RULE = "httproute/default/r/rule/0"
CLEARTEXT = {"appProtocol": "kubernetes.io/h2c"}
FORGED = (
    "x-gateway-destination-endpoint",
    "x-gateway-destination-endpoint-served",
    "x-gateway-destination-endpoint-subset",
)


def keys(servers: list[ModelServer]) -> list[str]:
    return [server.key for server in servers]


def dead_endpoint() -> str:
    """An address where nothing listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


def one_pool(endpoints: list[str], picker_port: int, failure_mode: str = "FailClose", *, ours: bool = False) -> Cluster:
    cluster = Cluster(verify=True)
    cluster.update(
        [o.pool("a", picker="epp-a", ports=ports(endpoints), failure_mode=failure_mode)],
        http_routes=[o.route("r", [o.pool_ref("a")])],
        services=[o.service("epp-a", ours=ours, **CLEARTEXT)],
        endpoint_slices=[o.slice_of("epp-a", {"127.0.0.1": {"ready": True}}, port=picker_port)],
        pods=pods(endpoints, "a"),
    )
    return cluster


async def test_a_fallback_list_is_followed_and_what_served_is_reported(tmp_path: Path):
    dead = dead_endpoint()
    async with model_servers(2) as servers, scripted_picker(f"{dead},{servers[1].key}") as picker:
        cluster = one_pool([dead, *keys(servers)], picker.port)
        async with run_stack(cluster, [o.xds_route(f"{RULE}/match/0/*")], tmp_path) as stack:
            for arguments in ({"method": "GET"}, {}, {"data": b"x" * 300_000, "json": None}):
                status, answer = await stack.ask("/v1/completions", **arguments)
                assert (status, answer["server"]) == (200, servers[1].key)
            assert picker.served == [servers[1].key] * 3
            picker.destination = servers[0].key
            await stack.ask()
            assert picker.served[-1] == servers[0].key


@pytest.mark.parametrize("lists", [False, True], ids=["alone", "in a list"])
async def test_a_pick_outside_the_pool_is_not_followed(tmp_path: Path, lists: bool):
    async with model_servers(3) as servers, scripted_picker("") as picker:
        outsider = servers[2]
        picker.destination = f"{outsider.key},{servers[1].key}" if lists else outsider.key
        cluster = one_pool(keys(servers[:2]), picker.port)
        async with run_stack(cluster, [o.xds_route(f"{RULE}/match/0/*")], tmp_path) as stack:
            answers = [await stack.ask() for _ in range(10)]
        assert {status for status, _ in answers} == {200}
        assert not outsider.requests
        # That another one served can be told from the report.
        assert set(picker.served) <= set(keys(servers[:2]))


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "other"])
async def test_forged_headers_lead_nowhere_while_a_pool_fails_open(tmp_path: Path, ours: bool):
    """Where a cluster takes its host from a header, this is a proxy to anywhere."""
    async with model_servers(2) as servers, scripted_picker(servers[0].key) as picker:
        outsider = servers[1]
        cluster = one_pool(keys(servers[:1]), picker.port, "FailOpen", ours=ours)
        cluster.update(endpoint_slices=[])
        async with run_stack(cluster, [o.xds_route(f"{RULE}/match/0/*")], tmp_path) as stack:
            headers = dict.fromkeys(FORGED, outsider.key) | {"envoy.lb": outsider.key}
            for arguments in ({"method": "GET"}, {}, {"data": b"x" * 5_000_000, "json": None}):
                status, answer = await stack.ask("/v1/x", headers=headers, **arguments)
                assert (status, answer["server"]) == (200, servers[0].key)
                assert not set(FORGED) & set(dict(answer["headers"]))
        assert not outsider.requests


async def test_shares_hold_while_pods_of_both_pools_come_and_go(tmp_path: Path):
    async with (
        model_servers(6) as servers,
        start_picker(keys(servers[:3]), tmp_path, name="a") as first,
        start_picker(keys(servers[3:]), tmp_path, name="b") as second,
    ):
        cluster = Cluster(verify=True)
        cluster.update(
            [
                o.pool("a", picker="epp-a", ports=ports(keys(servers[:3]))),
                o.pool("b", picker="epp-b", ports=ports(keys(servers[3:]))),
            ],
            http_routes=[o.route("r", [o.pool_ref("a", 70), o.pool_ref("b", 30)])],
            services=[o.service("epp-a", **CLEARTEXT), o.service("epp-b", **CLEARTEXT)],
            endpoint_slices=[
                o.slice_of("epp-a", {"127.0.0.1": {"ready": True}}, port=first.grpc_port),
                o.slice_of("epp-b", {"127.0.0.1": {"ready": True}}, port=second.grpc_port),
            ],
            pods=pods(keys(servers[:3]), "a") + pods(keys(servers[3:]), "b"),
        )

        turns = 24
        answers: list[tuple[int, dict]] = []
        async with run_stack(cluster, [o.xds_route(f"{RULE}/match/0/*")], tmp_path) as stack:
            for turn in range(turns):
                one, other = turn % 3, 3 + (turn // 2) % 3
                left_a = [server.key for at, server in enumerate(servers[:3]) if at != one]
                left_b = [server.key for at, server in enumerate(servers[3:], 3) if at != other]
                cluster.update(pods=pods(left_a, "a") + pods(left_b, "b"))
                applied = asyncio.gather(
                    stack.wait_endpoints(A, left_a), stack.wait_endpoints(A.removesuffix("a") + "b", left_b)
                )
                # Before Envoy has the change, while it takes it up, and after.
                more = True
                while more:
                    more = not applied.done()
                    answers += await asyncio.gather(*(stack.ask("/v1/completions") for _ in range(10)))
                await applied
        assert {status for status, _ in answers} == {200}
        to_a = sum(answer["server"] in keys(servers[:3]) for _, answer in answers)
        assert is_likely(0.7, to_a, len(answers)), (to_a, len(answers))
        assert cluster.metrics.discovery_pushes.labels("eds")._value.get() >= turns


async def test_an_envoy_that_finds_no_controller_serves_its_other_routes(tmp_path: Path):
    async with model_servers(1) as servers:
        cluster = one_pool(keys(servers), 1)
        cluster.update(http_routes=[o.route("r", [o.pool_ref("a")], [{"name": "web", "port": 80}])])
        web = cluster_pb2.Cluster(name="web", type=cluster_pb2.Cluster.STATIC)
        web.connect_timeout.seconds = 1
        web.load_assignment.cluster_name = "web"
        address = web.load_assignment.endpoints.add().lb_endpoints.add().endpoint.address.socket_address
        address.address, address.port_value = "127.0.0.1", ports(keys(servers))[0]
        routes = [
            o.xds_route("httproute/default/r/rule/1/match/0/*", prefix="/web", cluster="web"),
            o.xds_route(f"{RULE}/match/0/*"),
        ]
        # Live at all: it waits for a first answer no longer than the translation says.
        async with run_stack(cluster, routes, tmp_path, [web], controllers=0, patient=False) as stack:
            assert (await stack.ask("/web"))[0] == 200
            assert (await stack.ask("/v1/completions"))[0] in (500, 503)


async def test_an_answer_of_somebody_elses_picker_streams(tmp_path: Path):
    async with model_servers(1) as servers, scripted_picker(servers[0].key) as picker:
        servers[0].go_on.set()
        cluster = one_pool(keys(servers), picker.port)
        async with run_stack(cluster, [o.xds_route(f"{RULE}/match/0/*")], tmp_path) as stack:
            body = {"model": "m", "prompt": "hello", "stream": True}
            async with stack.client.post(f"{stack.url}/v1/completions", json=body) as answer:
                assert await answer.read() == expected_events()
