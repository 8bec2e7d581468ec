"""Body-based routing in a real Envoy: the model in the body chooses the route, and all that a route means holds."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import any_pb2

from headrace.protocol import http
from headrace.xds.envoy.config.cluster.v3 import cluster_pb2
from headrace.xds.envoy.config.rbac.v3 import rbac_pb2
from headrace.xds.envoy.config.route.v3 import route_components_pb2
from headrace.xds.envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac_pb2
from headrace.xds.envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from tests.component.epp.picker import PickerProcess, start_picker
from tests.component.epp.servers import ModelServer, expected_events, model_servers
from tests.component.gateway.stack import Cluster, Stack, pods, ports, run_stack
from tests.unit.gateway import objects as o

CLEARTEXT = {"appProtocol": "kubernetes.io/h2c"}
BASE_MODELS = {
    "metadata": o.metadata("models", labels={"inference.networking.k8s.io/bbr-managed": "true"}),
    "data": {"baseModel": "base-b", "adapters": "- adapter-1\n- adapter-2\n"},
}


def by_header(rule: int, header: str, value: str, *, prefix: str = "/") -> Any:
    """The xDS route of a rule that matches a model header."""
    found = o.xds_route(f"httproute/default/r/rule/{rule}/match/0/*", prefix=prefix, cluster="web")
    matched = found.match.headers.add(name=header)
    matched.string_match.exact = value
    return found


def web(server: ModelServer) -> cluster_pb2.Cluster:
    """The cluster of a plain Service."""
    found = cluster_pb2.Cluster(name="web", type=cluster_pb2.Cluster.STATIC)
    found.connect_timeout.seconds = 1
    found.load_assignment.cluster_name = "web"
    endpoint = found.load_assignment.endpoints.add().lb_endpoints.add().endpoint
    host, _, port = server.key.rpartition(":")
    endpoint.address.socket_address.address = host
    endpoint.address.socket_address.port_value = int(port)
    return found


POLICY = "envoy.filters.http.rbac/securitypolicy/default/keys"


def only_with_key() -> http_rbac_pb2.RBAC:
    """What an authentication policy comes to: 403 without the header x-key."""
    rules = rbac_pb2.RBAC(action=rbac_pb2.RBAC.ALLOW)
    permitted = rules.policies["keys"]
    permitted.permissions.add().any = True
    permitted.principals.add().header.CopyFrom(route_components_pb2.HeaderMatcher(name="x-key", present_match=True))
    return http_rbac_pb2.RBAC(rules=rules)


@dataclass
class Routed:
    """Pools `a` (model-a) and `b` (base model base-b), a Service below /web, nothing else: 404."""

    stack: Stack
    servers: list[ModelServer]
    picker_a: PickerProcess
    picker_b: PickerProcess

    def key(self, name: str) -> str:
        """Which server stands behind a, b or web."""
        return self.servers[("a", "b", "web").index(name)].key

    async def ask(self, model: str | None, path: str = "/v1/completions", **arguments: Any) -> tuple[int, dict]:
        body = {"prompt": "hello"} | ({} if model is None else {"model": model})
        return await self.stack.ask(path, json=body, **arguments)


@contextlib.asynccontextmanager
async def routed(
    tmp_path: Path, failure_mode: str = "FailClose", policy_on: Iterable[int] = (), controllers: int = 1
) -> AsyncIterator[Routed]:
    async with (
        model_servers(3) as servers,
        start_picker([servers[0].key], tmp_path, name="a") as first,
        start_picker([servers[1].key], tmp_path, name="b") as second,
    ):
        cluster = Cluster(verify=True)
        cluster.update(
            [
                o.pool("a", picker="epp-a", ports=ports([servers[0].key]), failure_mode=failure_mode),
                o.pool("b", picker="epp-b", ports=ports([servers[1].key]), failure_mode=failure_mode),
            ],
            http_routes=[
                o.route("r", [o.pool_ref("a")], [o.pool_ref("b")], [{"name": "web", "port": 80}], [o.pool_ref("a")]),
                # Only what the controller looks for in routes: Envoy's are made from the input below.
                o.model_route("bases", {"base-b": [o.pool_ref("b")]}),
            ],
            gateways=[o.gateway()],
            gateway_classes=[o.gateway_class()],
            services=[o.service("epp-a", **CLEARTEXT), o.service("epp-b", **CLEARTEXT)],
            endpoint_slices=[
                o.slice_of("epp-a", {"127.0.0.1": {"ready": True}}, port=first.grpc_port),
                o.slice_of("epp-b", {"127.0.0.1": {"ready": True}}, port=second.grpc_port),
            ],
            pods=pods([servers[0].key], "a") + pods([servers[1].key], "b"),
            base_model_config_maps=[BASE_MODELS],
        )
        routes = [
            by_header(0, "x-gateway-model-name", "model-a"),
            by_header(1, "X-Gateway-Base-Model-Name", "base-b"),
            o.xds_route("httproute/default/r/rule/2/match/0/*", prefix="/web", cluster="web"),
        ]
        for number in policy_on:
            routes[number].typed_per_filter_config[POLICY].Pack(route_components_pb2.FilterConfig(config=any_pb2.Any()))
        policy = http_connection_manager_pb2.HttpFilter(name=POLICY, disabled=True)
        policy.typed_config.Pack(only_with_key())
        async with run_stack(cluster, routes, tmp_path, [web(servers[2])], [policy], controllers=controllers) as stack:
            yield Routed(stack, servers, first, second)


async def test_the_model_of_the_body_chooses_the_pool_and_its_picker_is_asked(tmp_path: Path):
    async with routed(tmp_path) as all_of:
        for model, wanted in (("model-a", "a"), ("base-b", "b"), ("adapter-2", "b")):
            status, answer = await all_of.ask(model)
            assert (status, answer["server"]) == (200, all_of.key(wanted)), model
            seen = dict(answer["headers"])
            assert seen["x-gateway-model-name"] == model
            assert seen.get("x-gateway-base-model-name") == ("base-b" if wanted == "b" else None)
            assert seen["x-gateway-destination-endpoint"] == all_of.key(wanted)
        # First matched to a Service, below whose prefix the models' routes match as well.
        assert (await all_of.ask("model-a", "/web/x"))[1]["server"] == all_of.key("a")
        assert len(await all_of.picker_a.decisions()) == 2
        assert len(await all_of.picker_b.decisions()) == 2


async def test_what_names_no_known_model_stays_where_it_was(tmp_path: Path):
    async with routed(tmp_path) as all_of:
        for model in (None, "unknown", "", "x" * 2000, "line\nbreak", "adapter-3"):
            assert (await all_of.ask(model))[0] == 404, model
            status, answer = await all_of.ask(model, "/web")
            assert (status, answer["server"]) == (200, all_of.key("web"))
        headers = {"content-type": "application/json"}
        for body in (b"", b"[]", b"{", b'{"model": 5}', gzip.compress(b'{"model":"model-a"}')):
            status, _ = await all_of.stack.ask("/web", json=None, data=body, headers=headers)
            assert status == 200
        assert not await all_of.picker_a.decisions()


async def test_a_client_cannot_name_the_model_by_header(tmp_path: Path):
    forged = {"X-Gateway-Model-Name": "model-a", "X-Gateway-Base-Model-Name": "base-b"}
    async with routed(tmp_path) as all_of:
        assert (await all_of.ask("unknown", headers=forged))[0] == 404
        for method, more in (("GET", {}), ("POST", {"data": b"text", "json": None})):
            status, _ = await all_of.stack.ask("/v1/models", method, headers=forged, **more)
            assert status == 404
            status, answer = await all_of.stack.ask("/web", method, headers=forged, **more)
            assert status == 200
            assert not set(http.MODELS) & set(dict(answer["headers"]))
        status, answer = await all_of.ask("base-b", headers=forged)
        assert answer["server"] == all_of.key("b")
        assert [value for name, value in answer["headers"] if name == "x-gateway-model-name"] == ["base-b"]
        evil = {name: all_of.key("web") for name in http.UNTRUSTED}
        status, answer = await all_of.ask("model-a", headers=evil)
        assert answer["server"] == all_of.key("a")
        status, answer = await all_of.stack.ask("/web", "GET", headers=evil)
        assert not set(http.UNTRUSTED) & set(dict(answer["headers"]))


@pytest.mark.parametrize("failure_mode", ["FailClose", "FailOpen"])
async def test_the_failure_mode_of_the_pool_holds(tmp_path: Path, failure_mode: str):
    async with routed(tmp_path, failure_mode) as all_of:
        assert (await all_of.ask("model-a"))[0] == 200
        served = len(all_of.servers[0].requests)
        all_of.picker_a.kill()
        await all_of.picker_a.process.wait()
        for path in ("/v1/completions", "/web"):
            status, _ = await all_of.ask("model-a", path)
            assert status == 200 if failure_mode == "FailOpen" else status in (503, 504)
        assert len(all_of.servers[0].requests) - served == (2 if failure_mode == "FailOpen" else 0)
        assert (await all_of.ask("base-b"))[0] == 200


@pytest.mark.parametrize("size", [200, 200_000, 5_000_000])
async def test_bodies_arrive_whole_wherever_the_model_stands_in_them(tmp_path: Path, size: int):
    async with routed(tmp_path) as all_of:
        body = json.dumps({"prompt": "x" * size, "model": "model-a"}).encode()
        headers = {"content-type": "application/json; charset=utf-8"}

        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, len(body), 50_000):
                yield body[at : at + 50_000]

        for data in (body, pieces()):
            status, answer = await all_of.stack.ask("/v1/completions", json=None, data=data, headers=headers)
            assert (status, answer["server"]) == (200, all_of.key("a"))
            assert answer["body_bytes"] == len(body)


async def test_answers_stream_and_outlive_the_controller(tmp_path: Path):
    async with routed(tmp_path) as all_of:
        body = {"model": "model-a", "prompt": "hello", "stream": True}
        async with all_of.stack.client.post(f"{all_of.stack.url}/v1/completions", json=body) as answer:
            first = await answer.content.readany()
            await all_of.stack.controllers[0].stop(0)
            all_of.servers[0].go_on.set()
            assert first + await answer.read() == expected_events()
        # Nobody can say which model it is: refused, and sent to no other pool. What has no JSON body passes.
        # Long before any time limit of Envoy's: those are longer than the client's.
        assert (await all_of.ask("model-a"))[0] == 503
        assert (await all_of.ask("unknown", "/web"))[0] == 503
        assert (await all_of.stack.ask("/web", "GET"))[0] == 200


async def test_the_end_of_one_controller_of_two_costs_what_it_was_answering(tmp_path: Path):
    async with routed(tmp_path, controllers=2) as all_of:
        assert (await all_of.ask("model-a"))[0] == 200
        statuses: collections.Counter[int] = collections.Counter()
        at_once, left, stopped = 8, iter(range(300)), asyncio.Event()

        async def client() -> None:
            for number in left:
                if number == 100:
                    await all_of.stack.controllers[0].stop(0)
                    stopped.set()
                status, _ = await all_of.ask("model-a")
                statuses[status] += 1

        await asyncio.gather(*(client() for _ in range(at_once)))
        # Whose question was half answered cannot be asked again: those that were on their way, and only these.
        assert stopped.is_set()
        assert set(statuses) <= {200, 503}
        assert statuses[503] <= at_once, statuses


async def test_a_body_that_is_too_long_is_refused_where_it_would_be_read(tmp_path: Path):
    async with routed(tmp_path) as all_of:
        body = b'{"model":"model-a","prompt":"' + b"x" * (33 << 20) + b'"}'
        for kind, wanted in (("application/json", 413), ("text/plain", 200)):
            status, _ = await all_of.stack.ask("/web", json=None, data=body, headers={"content-type": kind})
            assert status == wanted
        assert not all_of.servers[0].requests


async def test_many_at_once(tmp_path: Path):
    async with routed(tmp_path) as all_of:
        models = ["model-a", "base-b", "adapter-1", "unknown"] * 50
        answers = await asyncio.gather(*(all_of.ask(model) for model in models))
        wanted = {"model-a": all_of.key("a"), "base-b": all_of.key("b"), "adapter-1": all_of.key("b"), "unknown": None}
        assert [answer.get("server") for _, answer in answers] == [wanted[model] for model in models]


async def test_policies_hold_for_routes_that_are_reached_by_model(tmp_path: Path):
    """As Envoy Gateway attaches them: a filter that is disabled, and switched on by each route of the policy."""
    async with routed(tmp_path, policy_on=(0, 1, 2)) as all_of:
        for path, wanted in (("/v1/completions", "a"), ("/web", "a")):
            assert (await all_of.ask("model-a", path))[0] == 403
            status, answer = await all_of.ask("model-a", path, headers={"x-key": "1"})
            assert (status, answer.get("server")) == (200, all_of.key(wanted))
        assert (await all_of.ask("unknown", "/web"))[0] == 403
        assert not all_of.stack.translation.notes
    only_first = tmp_path / "only-first"
    only_first.mkdir()
    async with routed(only_first, policy_on=(0,)) as all_of:
        # A request that is first matched to the Service would get past the policy: nobody gets there.
        assert (await all_of.ask("model-a", headers={"x-key": "1"}))[0] == 500
        assert (await all_of.ask("base-b"))[0] == 200
        assert any("rule/0" in note and POLICY in note for note in all_of.stack.translation.notes)
