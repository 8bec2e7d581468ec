"""Kubernetes objects and Envoy Gateway's hook input, as small as the tests need them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from headrace.core import EXTENSION_GROUP, GA_GROUP
from headrace.gateway.protocol.extension_pb2 import PostTranslateModifyRequest, PostTranslateModifyResponse
from headrace.gateway.snapshot import Snapshot, parse_pools
from headrace.gateway.status import Condition, conditions_of, parents_of_pools, wanted_status
from headrace.xds.envoy.config.cluster.v3 import cluster_pb2
from headrace.xds.envoy.config.listener.v3 import listener_pb2
from headrace.xds.envoy.config.route.v3 import route_components_pb2, route_pb2
from headrace.xds.envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2

CONTROLLER = "gateway.envoyproxy.io/gatewayclass-controller"


def metadata(name: str, namespace: str = "default", **more: Any) -> dict[str, Any]:
    return {"name": name, "namespace": namespace, **more}


def pool(
    name: str = "pool",
    *,
    namespace: str = "default",
    picker: str | None = "epp",
    failure_mode: str = "FailClose",
    ports: Sequence[int] = (8000,),
    app_protocol: str = "http",
    **more: Any,
) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "selector": {"matchLabels": {"app": name}},
        "targetPorts": [{"number": port} for port in ports],
        "appProtocol": app_protocol,
    }
    if picker is not None:
        spec["endpointPickerRef"] = {"name": picker, "port": {"number": 9002}, "failureMode": failure_mode}
    return {
        "apiVersion": f"{GA_GROUP}/v1",
        "kind": "InferencePool",
        "metadata": metadata(name, namespace, generation=3, **more),
        "spec": spec,
    }


def old_pool(name: str = "pool", *, namespace: str = "default", picker: str = "epp", **more: Any) -> dict[str, Any]:
    return {
        "apiVersion": f"{EXTENSION_GROUP}/v1alpha2",
        "kind": "InferencePool",
        "metadata": metadata(name, namespace, generation=2, **more),
        "spec": {"selector": {"app": name}, "targetPortNumber": 8000, "extensionRef": {"name": picker}},
    }


def service(name: str = "epp", *, namespace: str = "default", ours: bool = True, **port: Any) -> dict[str, Any]:
    annotations = {"headrace.dev/endpoint-picker": "headrace"} if ours else {}
    return {
        "metadata": metadata(name, namespace, annotations=annotations),
        "spec": {"ports": [{"name": "grpc", "port": 9002, "targetPort": 9002, **port}]},
    }


def slice_of(
    name: str, addresses: Mapping[str, Mapping[str, bool]], *, port: int = 9002, namespace: str = "default"
) -> dict[str, Any]:
    return {
        "metadata": metadata(f"{name}-abc", namespace, labels={"kubernetes.io/service-name": name}),
        "addressType": "IPv6" if any(":" in address for address in addresses) else "IPv4",
        "ports": [{"name": "grpc", "port": port}, {"name": "metrics", "port": 9090}],
        "endpoints": [{"addresses": [address], "conditions": dict(state)} for address, state in addresses.items()],
    }


def pod(
    name: str, address: str, *, app: str = "pool", namespace: str = "default", ready: bool = True
) -> dict[str, Any]:
    return {
        "metadata": metadata(name, namespace, labels={"app": app}),
        "status": {"podIP": address, "conditions": [{"type": "Ready", "status": "True" if ready else "False"}]},
    }


def pool_ref(name: str = "pool", weight: int | None = None, group: str = GA_GROUP, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"group": group, "kind": "InferencePool", "name": name, **more}
    return found if weight is None else {**found, "weight": weight}


def route(name: str, *rules: Sequence[Mapping[str, Any]], namespace: str = "default", **more: Any) -> dict[str, Any]:
    return {
        "metadata": metadata(name, namespace),
        "spec": {"parentRefs": [{"name": "gateway"}], "rules": [{"backendRefs": list(refs)} for refs in rules]},
        **more,
    }


def model_route(
    name: str,
    refs: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    header: str = "X-Gateway-Base-Model-Name",
    namespace: str = "default",
    created: str = "2026-01-01T00:00:00Z",
    accepted: str = "True",
    gateway: str = "gateway",
    match: str = "Exact",
) -> dict[str, Any]:
    """An accepted route with a rule for each model: its backendRefs."""
    found = route(name, *refs.values(), namespace=namespace)
    found["metadata"]["creationTimestamp"] = created
    for rule, model in zip(found["spec"]["rules"], refs, strict=True):
        rule["matches"] = [{"headers": [{"name": header, "value": model, "type": match}]}]
    parent = {"name": gateway, "namespace": "default"}
    condition = {"type": "Accepted", "status": accepted}
    found["spec"]["parentRefs"] = [parent]
    found["status"] = {"parents": [{"parentRef": parent, "controllerName": CONTROLLER, "conditions": [condition]}]}
    return found


def gateway(name: str = "gateway", *, namespace: str = "default", class_name: str = "headrace") -> dict[str, Any]:
    return {"metadata": metadata(name, namespace), "spec": {"gatewayClassName": class_name}}


def gateway_class(name: str = "headrace", controller: str = CONTROLLER) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"controllerName": controller}}


def keyed(objects: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(found["metadata"].get("namespace", ""), found["metadata"]["name"]): found for found in objects}


def keyed_routes(
    http_routes: Iterable[Mapping[str, Any]] = (), grpc_routes: Iterable[Mapping[str, Any]] = ()
) -> dict[tuple[str, str, str], Mapping[str, Any]]:
    kinds = {"HTTPRoute": keyed(http_routes), "GRPCRoute": keyed(grpc_routes)}
    return {(kind, *key): found for kind, routes in kinds.items() for key, found in routes.items()}


def snapshot(
    pools: Iterable[Mapping[str, Any]] = (),
    *,
    http_routes: Iterable[Mapping[str, Any]] = (),
    grpc_routes: Iterable[Mapping[str, Any]] = (),
    verify_by_default: bool = True,
    **kinds: Iterable[Mapping[str, Any]],
) -> Snapshot:
    good, bad = parse_pools(pools)
    return Snapshot(
        controller_name=CONTROLLER,
        verify_by_default=verify_by_default,
        routes=keyed_routes(http_routes, grpc_routes),
        pools=good,
        bad_pools=bad,
        **{kind: keyed(found) for kind, found in kinds.items()},
    )


def wanted(
    pool: Mapping[str, Any],
    found: Snapshot,
    now: str,
    written: frozenset[tuple[str, str]] = frozenset(),
    translated: Callable[[Any, Any], Condition | None] = lambda key, gateway: None,
    key: tuple[str, str, str] | None = None,
    **more: Any,
) -> dict[str, Any] | None:
    """The status that is to be written for a pool, as the writer asks for it."""
    if key is None:
        key = (pool["apiVersion"].partition("/")[0], pool["metadata"]["namespace"], pool["metadata"]["name"])
    conditions = {
        gateway: (
            *conditions_of(found, key, route_accepted=accepted, **more),
            *filter(None, [translated(key, gateway)]),
        )
        for gateway, accepted in parents_of_pools(found).get(key, {}).items()
    }
    return wanted_status(pool, key, found, conditions, now, written)


def xds_route(name: str, *, prefix: str = "/", cluster: str = "invalid-backend-cluster") -> route_components_pb2.Route:
    found = route_components_pb2.Route(name=name)
    found.match.prefix = prefix
    found.route.cluster = cluster
    return found


def hook_input(
    routes: Iterable[route_components_pb2.Route],
    clusters: Iterable[str | cluster_pb2.Cluster] = (),
    http_filters: Iterable[http_connection_manager_pb2.HttpFilter] = (),
) -> PostTranslateModifyRequest:
    """One listener and one route configuration, with the shape that Envoy Gateway gives them.

    `http_filters` are those of its policies, before the router."""
    configuration = route_pb2.RouteConfiguration(name="default/gateway/http")
    host = configuration.virtual_hosts.add(name="default/gateway/http/*", domains=["*"])
    host.routes.extend(routes)
    manager = http_connection_manager_pb2.HttpConnectionManager(stat_prefix="http-10080")
    manager.rds.route_config_name = configuration.name
    manager.rds.config_source.ads.SetInParent()
    manager.http_filters.extend(http_filters)
    router = manager.http_filters.add(name="envoy.filters.http.router")
    router.typed_config.type_url = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
    listener = listener_pb2.Listener(name="default/gateway/http")
    listener.default_filter_chain.filters.add(name="http").typed_config.Pack(manager)
    made = [found if isinstance(found, cluster_pb2.Cluster) else cluster_pb2.Cluster(name=found) for found in clusters]
    return PostTranslateModifyRequest(
        clusters=[found.SerializeToString() for found in made],
        listeners=[listener.SerializeToString()],
        routes=[configuration.SerializeToString()],
        secrets=[b"\x0a\x01s"],
    )


def routes_in(response: PostTranslateModifyResponse) -> dict[str, route_components_pb2.Route]:
    configuration = route_pb2.RouteConfiguration.FromString(response.routes[0])
    return {found.name: found for host in configuration.virtual_hosts for found in host.routes}


def clusters_in(response: PostTranslateModifyResponse) -> dict[str, cluster_pb2.Cluster]:
    return {found.name: found for found in map(cluster_pb2.Cluster.FromString, response.clusters)}


def filters_in(response: PostTranslateModifyResponse) -> list[str]:
    listener = listener_pb2.Listener.FromString(response.listeners[0])
    manager = http_connection_manager_pb2.HttpConnectionManager()
    listener.default_filter_chain.filters[0].typed_config.Unpack(manager)
    return [found.name for found in manager.http_filters]


def shares(found: route_components_pb2.Route) -> list[tuple[str, int]]:
    return [(weight.name, weight.weight.value) for weight in found.route.weighted_clusters.clusters]
