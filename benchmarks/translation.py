"""CPU time of a hook call of the gateway controller: 200 pools and 1,000 routes, from the informers' state.

Run it with `make bench`. In it: reading Envoy Gateway's message, finding what is lacking, the translation, and writing
the answer; not in it: gRPC and TLS, and what a call waits for news. Printed: the median and the worst of the rounds;
the time a Pod's change takes to reach the endpoints of every pool; sizes of the messages."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from headrace.core import GA_GROUP
from headrace.gateway import names
from headrace.gateway.discovery import SnapshotSource
from headrace.gateway.lacking import lacking
from headrace.gateway.protocol.extension_pb2 import PostTranslateModifyRequest
from headrace.gateway.snapshot import Object, Snapshot, parse_pools
from headrace.gateway.status import conditions_of, parents_of_pools, wanted_status
from headrace.gateway.translate import named_rules, translate
from headrace.protocol.objects import PICKER_ANNOTATION
from headrace.protocol.rpc import EDS_TYPE
from headrace.xds.envoy.config.cluster.v3 import cluster_pb2
from headrace.xds.envoy.config.listener.v3 import listener_pb2
from headrace.xds.envoy.config.route.v3 import route_components_pb2, route_pb2
from headrace.xds.envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2

POOLS = 200
ROUTES = 1000
PODS_A_POOL = 10
ROUNDS = 15
LIMIT_SECONDS = 0.2
CONTROLLER = "gateway.envoyproxy.io/gatewayclass-controller"


def cluster_state() -> Snapshot:
    """Pools, their Pods and picker Services; routes of one or two pools, in twenty namespaces."""

    def metadata(number: int, name: str) -> dict[str, Any]:
        return {"name": name, "namespace": f"ns-{number % 20}", "generation": 1}

    pools, services, pods, routes = [], [], [], []
    for number in range(POOLS):
        pools.append(
            {
                "apiVersion": f"{GA_GROUP}/v1",
                "kind": "InferencePool",
                "metadata": metadata(number, f"pool-{number}"),
                "spec": {
                    "selector": {"matchLabels": {"app": f"pool-{number}"}},
                    "targetPorts": [{"number": 8000}],
                    "endpointPickerRef": {"name": f"pool-{number}-epp", "port": {"number": 9002}},
                },
            }
        )
        own = metadata(number, f"pool-{number}-epp") | {"annotations": {PICKER_ANNOTATION: "headrace"}}
        services.append({"metadata": own, "spec": {"ports": [{"name": "grpc", "port": 9002}]}})
        for pod in range(PODS_A_POOL):
            status = {"podIP": f"10.{number}.0.{pod + 1}", "conditions": [{"type": "Ready", "status": "True"}]}
            labels = {"labels": {"app": f"pool-{number}"}}
            pods.append({"metadata": metadata(number, f"pod-{number}-{pod}") | labels, "status": status})
    for number in range(ROUTES):
        refs = [{"group": GA_GROUP, "kind": "InferencePool", "name": f"pool-{number % POOLS}", "weight": 90}]
        if number % 5 == 0:
            refs.append({**refs[0], "name": f"pool-{(number + 20) % POOLS}", "weight": 10})
        routes.append({"metadata": metadata(number, f"route-{number}"), "spec": {"rules": [{"backendRefs": refs}]}})
    policies = []
    for number in range(POOLS):
        target = {"group": "", "kind": "Service", "name": f"pool-{number}-epp"}
        ca = {"group": "", "kind": "ConfigMap", "name": "ca"}
        spec = {"targetRefs": [target], "validation": {"hostname": "epp.test", "caCertificateRefs": [ca]}}
        policies.append({"metadata": metadata(number, f"policy-{number}"), "spec": spec})
    parents = [{"name": "gateway", "namespace": "ns-0"}]
    for route in routes:
        route["spec"]["parentRefs"] = parents
    good, bad = parse_pools(pools)
    return Snapshot(
        controller_name=CONTROLLER,
        backend_tls_policies=keyed(policies),
        gateways=keyed([{"metadata": metadata(0, "gateway"), "spec": {"gatewayClassName": "c"}}]),
        gateway_classes={("", "c"): {"metadata": {"name": "c"}, "spec": {"controllerName": CONTROLLER}}},
        pools=good,
        bad_pools=bad,
        services=keyed(services),
        pods=keyed(pods),
        routes={("HTTPRoute", *key): found for key, found in keyed(routes).items()},
    )


def keyed(objects: list[dict[str, Any]]) -> dict[tuple[str, str], Object]:
    """Objects by (namespace, name)."""
    return {(found["metadata"]["namespace"], found["metadata"]["name"]): found for found in objects}


def hook_call() -> bytes:
    """What Envoy Gateway sends for these routes: a virtual host and a cluster for each."""
    configuration = route_pb2.RouteConfiguration(name="default/gateway/http")
    clusters = []
    for number in range(ROUTES):
        rule = f"httproute/ns-{number % 20}/route-{number}/rule/0"
        host = configuration.virtual_hosts.add(name=f"default/gateway/http/{number}", domains=[f"{number}.example.com"])
        route = route_components_pb2.Route(name=f"{rule}/match/0/{number}_example_com")
        route.match.path_separated_prefix = "/v1"
        route.route.cluster = rule
        route.route.timeout.seconds = 600
        host.routes.append(route)
        cluster = cluster_pb2.Cluster(
            name=rule, type=cluster_pb2.Cluster.EDS, lb_policy=cluster_pb2.Cluster.LEAST_REQUEST
        )
        cluster.eds_cluster_config.eds_config.ads.SetInParent()
        cluster.connect_timeout.seconds = 10
        cluster.per_connection_buffer_limit_bytes.value = 32768
        cluster.circuit_breakers.thresholds.add().max_retries.value = 1024
        clusters.append(cluster)
    manager = http_connection_manager_pb2.HttpConnectionManager(stat_prefix="http-10080")
    manager.rds.route_config_name = configuration.name
    manager.http_filters.add(name="envoy.filters.http.router")
    listener = listener_pb2.Listener(name="default/gateway/http")
    listener.default_filter_chain.filters.add(name="http").typed_config.Pack(manager)
    request = PostTranslateModifyRequest(
        clusters=[found.SerializeToString() for found in clusters],
        listeners=[listener.SerializeToString()],
        routes=[configuration.SerializeToString()],
    )
    return request.SerializeToString()


def measured(action: Callable[[], Any]) -> list[float]:
    """CPU seconds of each round: on a busy machine the clock tells of the others."""
    found = []
    for _ in range(ROUNDS):
        started = time.process_time()
        action()
        found.append(time.process_time() - started)
    return found


def show(what: str, rounds: list[float]) -> None:
    print(f"{what:<58} {statistics.median(rounds) * 1000:7.1f} ms, worst {max(rounds) * 1000:7.1f} ms")


def main() -> None:
    """Measure and print."""
    snapshot, call = cluster_state(), hook_call()
    answers: list[bytes] = []

    def answer() -> None:
        request = PostTranslateModifyRequest.FromString(call)
        assert not lacking(frozenset().union(*named_rules(request).values()), snapshot)
        result = translate(request, snapshot)
        answers[:] = [result.response.SerializeToString()]

    def endpoints() -> None:
        fresh = Snapshot(**{name: getattr(snapshot, name) for name in ("pools", "services", "pods")})
        source = SnapshotSource(lambda: fresh, "")
        for key in fresh.pools:
            source.resource(EDS_TYPE, names.pool_cluster_name(key))

    def status() -> None:
        fresh = replace(snapshot)
        parents = parents_of_pools(fresh)
        assert len(parents) == POOLS
        for key, own in parents.items():
            conditions = {
                gateway: conditions_of(fresh, key, route_accepted=accepted) for gateway, accepted in own.items()
            }
            wanted_status({"metadata": {"generation": 1}}, key, fresh, conditions, "2026-01-01T00:00:00Z")

    print(f"{POOLS} pools of {PODS_A_POOL} Pods, {ROUTES} routes, load average {os.getloadavg()[0]:.1f}")
    rounds = measured(answer)
    show("a hook call, read to written", rounds)
    print(f"{'':<58} {len(call) / 1e6:.2f} MB in, {len(answers[0]) / 1e6:.2f} MB out")
    show("endpoints of every pool after a Pod's change", measured(endpoints))
    show("status of every pool", measured(status))
    if statistics.median(rounds) > LIMIT_SECONDS:
        raise SystemExit(f"a hook call takes more than {LIMIT_SECONDS * 1000:.0f} ms")


if __name__ == "__main__":
    main()
