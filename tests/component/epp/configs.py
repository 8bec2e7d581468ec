"""Envoy configurations as the gateway controller makes them for a pool, without Envoy Gateway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from headrace.gateway.clusters import unlimited
from headrace.gateway.retries import bound_failures, retry_policy
from headrace.xds.envoy.config.cluster.v3 import cluster_pb2

_TYPES = "type.googleapis.com/envoy.extensions"
_HCM = f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"
_EXT_PROC = f"{_TYPES}.filters.http.ext_proc.v3.ExternalProcessor"
_ROUTER = f"{_TYPES}.filters.http.router.v3.Router"
_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_DESTINATION = "x-gateway-destination-endpoint"

LISTENER = "pool"


def picking_mode(request_body: str = "FULL_DUPLEX_STREAMED", **changes: str) -> dict[str, str]:
    """The request phase only."""
    duplex = request_body == "FULL_DUPLEX_STREAMED"
    return {
        "request_header_mode": "SEND",
        "request_body_mode": request_body,
        "request_trailer_mode": "SEND" if duplex else "SKIP",
        "response_header_mode": "SKIP",
        "response_body_mode": "NONE",
        "response_trailer_mode": "SKIP",
        **changes,
    }


OBSERVING_MODE = {
    "request_header_mode": "SEND",
    "request_body_mode": "NONE",
    "request_trailer_mode": "SKIP",
    "response_header_mode": "SEND",
    "response_body_mode": "NONE",
    "response_trailer_mode": "SEND",
}

BOTH_WAYS_DUPLEX = {
    "request_header_mode": "SEND",
    "request_body_mode": "FULL_DUPLEX_STREAMED",
    "request_trailer_mode": "SEND",
    "response_header_mode": "SEND",
    "response_body_mode": "FULL_DUPLEX_STREAMED",
    "response_trailer_mode": "SEND",
}


def pool_config(
    *,
    epp_port: int | Sequence[int],
    endpoints: Sequence[str],
    mode: Mapping[str, str],
    observe: bool,
    fail_open: bool = False,
    tls: bool = False,
    say_observed: bool = True,
    message_timeout: str = "300s",
    keepalive_timeout: str = "300s",
    observe_bodies: bool = False,
    before: Sequence[Mapping[str, Any]] = (),
    retry: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A listener whose every request goes to the pool `endpoints`, picked by the EPP on `epp_port` (several: any).

    Its times are longer than any test's: a picker that is slow because the machine is busy is not one that fails.

    `mode` is the picking filter's processing mode; `observe` adds the observation filter after it, `say_observed` tells
    the picker so in the pick's gRPC metadata, `observe_bodies` shows it the responses' bodies; `before` are HTTP
    filters that come first; `retry` replaces the route's retry policy, which is the gateway's."""
    metadata = {
        "receiving_namespaces": {"untyped": ["envoy.lb"]},
        "forwarding_namespaces": {"untyped": ["envoy.lb", "envoy.lb.subset_hint"]},
    }
    service: dict[str, Any] = {"envoy_grpc": {"cluster_name": "epp", "authority": "epp.test"}}
    picking_service = dict(service)
    if observe and say_observed:
        picking_service["initial_metadata"] = [{"key": "x-headrace-observed", "value": "true"}]
    filters: list[Any] = [
        *before,
        {
            "name": "pick",
            "typed_config": {
                "@type": _EXT_PROC,
                "grpc_service": picking_service,
                "processing_mode": dict(mode),
                "failure_mode_allow": fail_open,
                "message_timeout": message_timeout,
                "metadata_options": metadata,
                "route_cache_action": "RETAIN",
                "status_on_error": {"code": "ServiceUnavailable"},
            },
        },
    ]
    if observe:
        filters.append(
            {
                "name": "observe",
                "typed_config": {
                    "@type": _EXT_PROC,
                    "grpc_service": service,
                    "processing_mode": {
                        **OBSERVING_MODE,
                        **({"response_body_mode": "STREAMED"} if observe_bodies else {}),
                    },
                    "observability_mode": True,
                    "failure_mode_allow": True,
                    "deferred_close_timeout": "0.05s",
                    "metadata_options": metadata,
                },
            }
        )
    filters.append({"name": "router", "typed_config": {"@type": _ROUTER}})
    route: dict[str, Any] = {"cluster": "pool", "timeout": "0s", "retry_policy": dict(retry or _json(retry_policy()))}
    manager = {
        "@type": _HCM,
        "stat_prefix": "pool",
        "generate_request_id": True,
        "request_id_extension": {
            "typed_config": {"@type": f"{_TYPES}.request_id.uuid.v3.UuidRequestIdConfig", "pack_trace_reason": False}
        },
        "preserve_external_request_id": True,
        "http_filters": filters,
        "http_protocol_options": {"enable_trailers": True},
        "route_config": {
            "name": "pool",
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": route, "request_body_buffer_limit": 64 << 20}],
                }
            ],
        },
    }
    listener = {
        "name": LISTENER,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "per_connection_buffer_limit_bytes": 32768,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    epp_ports = [epp_port] if isinstance(epp_port, int) else epp_port
    breakers = {"thresholds": [{"max_connections": 1 << 20, "max_pending_requests": 1 << 20, "max_requests": 1 << 20}]}
    epp: dict[str, Any] = {
        "name": "epp",
        "type": "STATIC",
        # In turn, one picker would get each pick and the other each observation.
        "lb_policy": "RANDOM",
        "connect_timeout": "300s",
        "circuit_breakers": breakers,
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "load_assignment": _assignment("epp", [f"127.0.0.1:{port}" for port in epp_ports]),
        "typed_extension_protocol_options": {
            _OPTIONS: {
                "@type": f"type.googleapis.com/{_OPTIONS}",
                "explicit_http_config": {
                    "http2_protocol_options": {"connection_keepalive": {"interval": "1s", "timeout": keepalive_timeout}}
                },
            }
        },
    }
    if tls:
        epp["transport_socket"] = {
            "name": "tls",
            "typed_config": {
                "@type": f"{_TYPES}.transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": {"alpn_protocols": ["h2"]},
            },
        }
    least_request = {
        "name": "least_request",
        "typed_config": {"@type": f"{_TYPES}.load_balancing_policies.least_request.v3.LeastRequest"},
    }
    override_host = {
        "name": "override_host",
        "typed_config": {
            "@type": f"{_TYPES}.load_balancing_policies.override_host.v3.OverrideHost",
            "override_host_sources": [{"metadata": {"key": "envoy.lb", "path": [{"key": _DESTINATION}]}}],
            "selected_host_key": {"key": "envoy.lb", "path": [{"key": f"{_DESTINATION}-served"}]},
            "fallback_policy": {"policies": [{"typed_extension_config": least_request}]},
        },
    }
    pool = {
        "name": "pool",
        "type": "STATIC",
        "connect_timeout": "300s",
        "load_assignment": _assignment("pool", endpoints),
        "load_balancing_policy": {"policies": [{"typed_extension_config": override_host}]},
        **_json(_bounds()),
    }
    return {"static_resources": {"listeners": [listener], "clusters": [pool, epp]}}


def set_metadata_filter(namespace: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """An HTTP filter that puts dynamic metadata on each request, as a gateway does with a subset hint."""
    return {
        "name": "set_metadata",
        "typed_config": {
            "@type": f"{_TYPES}.filters.http.set_metadata.v3.Config",
            "metadata": [{"metadata_namespace": namespace, "value": dict(value)}],
        },
    }


def _bounds() -> cluster_pb2.Cluster:
    """What the gateway's cluster of a pool has of breakers and outliers."""
    cluster = cluster_pb2.Cluster()
    cluster.circuit_breakers.CopyFrom(unlimited())
    bound_failures(cluster)
    return cluster


def _json(message: Message) -> dict[str, Any]:
    return dict(MessageToDict(message, preserving_proto_field_name=True))


def _assignment(cluster: str, endpoints: Sequence[str]) -> dict[str, Any]:
    hosts = []
    for endpoint in endpoints:
        address, _, port = endpoint.rpartition(":")
        hosts.append({"endpoint": {"address": {"socket_address": {"address": address, "port_value": int(port)}}}})
    return {"cluster_name": cluster, "endpoints": [{"lb_endpoints": hosts}]}
