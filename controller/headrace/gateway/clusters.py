"""Envoy clusters of a pool: its endpoints, and its endpoint picker. Pure.

Sources: Envoy's API reference (cluster, override_host, SDS); Gateway API Inference Extension, proposal 004."""

from __future__ import annotations

from google.protobuf import any_pb2, duration_pb2, wrappers_pb2
from google.protobuf.message import DecodeError, Message

from headrace.core import H2C, Pool
from headrace.gateway import names
from headrace.gateway.snapshot import PickerService
from headrace.protocol import http, rpc
from headrace.xds.envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2
from headrace.xds.envoy.config.core.v3 import base_pb2, config_source_pb2, extension_pb2
from headrace.xds.envoy.config.route.v3 import route_components_pb2
from headrace.xds.envoy.extensions.load_balancing_policies.least_request.v3 import least_request_pb2
from headrace.xds.envoy.extensions.load_balancing_policies.override_host.v3 import override_host_pb2
from headrace.xds.envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from headrace.xds.envoy.extensions.transport_sockets.tls.v3 import common_pb2, tls_pb2
from headrace.xds.envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from headrace.xds.envoy.type.metadata.v3 import metadata_pb2

_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_TLS = "envoy.transport_sockets.tls"
_NO_LIMIT = 1 << 20
# A starting Envoy waits this long for a controller that does not answer, and then serves its other routes.
_FIRST_FETCH_SECONDS = 2.0
_CONNECT_SECONDS = 1.0
# A picker that hangs cannot fire its own deadline: Envoy notices within interval plus timeout, less than two seconds.
# One that gets no CPU for a second hangs not: the timeout is longer.
_KEEPALIVE_SECONDS = 0.65
_KEEPALIVE_TIMEOUT_SECONDS = 1.25
_FORMER_KEEPALIVE = (1.0, 0.8)
# Then it is tried again: it is back in use within two seconds of its recovery.
_PASSED_BY_SECONDS = 1.5
_RETRY_SECONDS = 0.025
# Of two endpoints, five draws would give the one just tried again in one case of 32.
_HOST_SELECTIONS = 20


def pack(message: Message) -> any_pb2.Any:
    """A message as Any."""
    content = message.SerializeToString(deterministic=True)
    return any_pb2.Any(type_url=f"type.googleapis.com/{message.DESCRIPTOR.full_name}", value=content)


def seconds(value: float) -> duration_pb2.Duration:
    """A duration of `value` seconds."""
    whole = int(value)
    return duration_pb2.Duration(seconds=whole, nanos=int((value - whole) * 1e9))


def number(value: int) -> wrappers_pb2.UInt32Value:
    """A wrapped number."""
    return wrappers_pb2.UInt32Value(value=value)


def retry_elsewhere(policy: route_components_pb2.RetryPolicy | base_pb2.RetryPolicy) -> None:
    """Have a retry go, after a moment, to another endpoint than those tried already, where there is one."""
    policy.retry_back_off.base_interval.CopyFrom(seconds(_RETRY_SECONDS))
    tried = policy.retry_host_predicate.add(name="envoy.retry_host_predicates.previous_hosts")
    tried.typed_config.CopyFrom(pack(previous_hosts_pb2.PreviousHostsPredicate()))
    policy.host_selection_retry_max_attempts = _HOST_SELECTIONS


def pool_cluster(pool: Pool, template: cluster_pb2.Cluster | None, name: str) -> cluster_pb2.Cluster:
    """The cluster of a pool's endpoints, named `name`.

    `template` is the cluster that Envoy Gateway made for the rule: timeouts, keepalives, health checks and whatever
    else its policies put there stay. The endpoint comes from the picker's metadata alone, never from a header: a
    header would let a client choose hosts. Where nothing was picked, or what was picked is gone: least request."""
    cluster = cluster_pb2.Cluster()
    if template is not None:
        cluster.CopyFrom(template)
    others = ("load_assignment", "transport_socket_matches", "alt_stat_name", "lb_policy", "dns_lookup_family")
    for field in (*others, *(f"{name}_lb_config" for name in ("least_request", "ring_hash", "maglev", "round_robin"))):
        cluster.ClearField(field)
    cluster.name = name
    if not cluster.HasField("connect_timeout"):
        cluster.connect_timeout.CopyFrom(seconds(10))
    cluster.type = cluster_pb2.Cluster.EDS
    cluster.ClearField("eds_cluster_config")
    cluster.eds_cluster_config.service_name = names.pool_cluster_name(names.pool_key(pool))
    _from_controller(cluster.eds_cluster_config.eds_config)
    cluster.circuit_breakers.CopyFrom(unlimited())
    cluster.load_balancing_policy.CopyFrom(_override_host())
    if pool.app_protocol == H2C:
        _force_http2(cluster)
    return cluster


def picker_cluster(
    pool: Pool, service: PickerService, sni: str, *, failure_detection: bool = True
) -> cluster_pb2.Cluster:
    """The cluster of a pool's endpoint picker: its Pods, from our EDS, over HTTP/2.

    TLS unless the Service's port says cleartext. Which CA is trusted comes by SDS: it can change without a
    translation."""
    key = names.pool_key(pool)
    cluster = cluster_pb2.Cluster(
        name=names.picker_cluster_name(key),
        type=cluster_pb2.Cluster.EDS,
        connect_timeout=seconds(_CONNECT_SECONDS),
        lb_policy=cluster_pb2.Cluster.LEAST_REQUEST,
        circuit_breakers=unlimited(),
    )
    cluster.eds_cluster_config.service_name = names.picker_endpoints_name(key)
    _from_controller(cluster.eds_cluster_config.eds_config)
    # With no healthy picker left, its failure mode decides at once: no tries on dead ones.
    cluster.common_lb_config.healthy_panic_threshold.value = 0
    # Envoy's workers hear of a picker that became healthy at once. By default they hear of it up to a second after the
    # endpoints changed, and refuse requests meanwhile where the picker before it has gone.
    cluster.common_lb_config.update_merge_window.FromSeconds(0)
    # A picker that left the endpoints is gone, whatever its last health check said.
    cluster.ignore_health_on_host_removal = True
    options = http_protocol_options_pb2.HttpProtocolOptions()
    http2 = options.explicit_http_config.http2_protocol_options
    http2.initial_stream_window_size.value = 1 << 20
    http2.initial_connection_window_size.value = 16 << 20
    http2.connection_keepalive.interval.CopyFrom(seconds(_KEEPALIVE_SECONDS))
    http2.connection_keepalive.timeout.CopyFrom(seconds(_KEEPALIVE_TIMEOUT_SECONDS))
    # By default Envoy adds up to 15 % to each interval.
    http2.connection_keepalive.interval_jitter.SetInParent()
    cluster.typed_extension_protocol_options[_HTTP_OPTIONS].CopyFrom(pack(options))
    if failure_detection and service.is_ours:
        # One late answer is a busy machine: a pool that fails closed would refuse everything for it. What hangs is
        # noticed sooner by the connection's keepalive.
        check = cluster.health_checks.add(
            timeout=seconds(1), interval=seconds(1), no_traffic_interval=seconds(1), unhealthy_threshold=number(2)
        )
        check.healthy_threshold.value = 1
        # Only our own picker is asked: others need not serve gRPC health on their ext_proc port.
        check.grpc_health_check.service_name = rpc.EXT_PROC_SERVICE
    elif failure_detection:
        _detect_by_failures(cluster)
    if not service.cleartext:
        context = tls_pb2.UpstreamTlsContext(sni=sni)
        context.common_tls_context.alpn_protocols.append("h2")
        versions = common_pb2.TlsParameters
        context.common_tls_context.tls_params.tls_minimum_protocol_version = versions.TLSv1_2
        # Envoy's own default as a client ends at 1.2.
        context.common_tls_context.tls_params.tls_maximum_protocol_version = versions.TLSv1_3
        secret = context.common_tls_context.validation_context_sds_secret_config
        secret.name = names.trust_secret_name(key)
        _from_controller(secret.sds_config)
        cluster.transport_socket.name = _TLS
        cluster.transport_socket.typed_config.CopyFrom(pack(context))
    return cluster


def former_picker_cluster(current: cluster_pb2.Cluster) -> cluster_pb2.Cluster:
    """The cluster that the version before made for the same picker.

    Envoy resets the picks that are on their way to a cluster when that changes or goes. So the former one stays as it
    was, though no route leads there any more, until a version later."""
    cluster = cluster_pb2.Cluster()
    cluster.CopyFrom(current)
    cluster.name = current.eds_cluster_config.service_name
    options = http_protocol_options_pb2.HttpProtocolOptions()
    current.typed_extension_protocol_options[_HTTP_OPTIONS].Unpack(options)
    keepalive = options.explicit_http_config.http2_protocol_options.connection_keepalive
    interval, timeout = _FORMER_KEEPALIVE
    keepalive.Clear()
    keepalive.interval.CopyFrom(seconds(interval))
    keepalive.timeout.CopyFrom(seconds(timeout))
    cluster.typed_extension_protocol_options[_HTTP_OPTIONS].CopyFrom(pack(options))
    return cluster


def _detect_by_failures(cluster: cluster_pb2.Cluster) -> None:
    """Pass by a picker that cannot be connected to or falls silent, for a while: it cannot be asked for its health."""
    detection = cluster.outlier_detection
    detection.split_external_local_origin_errors = True
    detection.consecutive_local_origin_failure.value = 2
    detection.enforcing_consecutive_local_origin_failure.value = 100
    for other in ("consecutive_5xx", "consecutive_gateway_failure", "success_rate", "local_origin_success_rate"):
        getattr(detection, f"enforcing_{other}").value = 0
    detection.interval.CopyFrom(seconds(0.5))
    detection.base_ejection_time.CopyFrom(seconds(_PASSED_BY_SECONDS))
    detection.max_ejection_time.CopyFrom(seconds(_PASSED_BY_SECONDS))
    detection.max_ejection_percent.value = 100


def _from_controller(source: config_source_pb2.ConfigSource) -> None:
    source.resource_api_version = config_source_pb2.V3
    source.initial_fetch_timeout.CopyFrom(seconds(_FIRST_FETCH_SECONDS))
    source.api_config_source.api_type = config_source_pb2.ApiConfigSource.GRPC
    source.api_config_source.transport_api_version = config_source_pb2.V3
    source.api_config_source.set_node_on_first_message_only = True
    source.api_config_source.grpc_services.add().envoy_grpc.cluster_name = names.DISCOVERY_CLUSTER


def unlimited() -> circuit_breaker_pb2.CircuitBreakers:
    """No limits: Envoy's own of 1024 are far below one stream for each running request."""
    limit = number(_NO_LIMIT)
    thresholds = circuit_breaker_pb2.CircuitBreakers.Thresholds(
        max_connections=limit, max_pending_requests=limit, max_requests=limit, max_retries=limit
    )
    return circuit_breaker_pb2.CircuitBreakers(thresholds=[thresholds])


def _metadata_key(name: str) -> metadata_pb2.MetadataKey:
    path = [metadata_pb2.MetadataKey.PathSegment(key=name)]
    return metadata_pb2.MetadataKey(key=rpc.LOAD_BALANCER_NAMESPACE, path=path)


def _policy(name: str, config: any_pb2.Any) -> cluster_pb2.LoadBalancingPolicy:
    extension = extension_pb2.TypedExtensionConfig(name=name, typed_config=config)
    return cluster_pb2.LoadBalancingPolicy(
        policies=[cluster_pb2.LoadBalancingPolicy.Policy(typed_extension_config=extension)]
    )


def _override_host() -> cluster_pb2.LoadBalancingPolicy:
    source = override_host_pb2.OverrideHost.OverrideHostSource(metadata=_metadata_key(http.DESTINATION))
    fallback = _policy("envoy.load_balancing_policies.least_request", pack(least_request_pb2.LeastRequest()))
    policy = override_host_pb2.OverrideHost(
        override_host_sources=[source], selected_host_key=_metadata_key(http.SERVED), fallback_policy=fallback
    )
    return _policy("envoy.load_balancing_policies.override_host", pack(policy))


def _force_http2(cluster: cluster_pb2.Cluster) -> None:
    options = http_protocol_options_pb2.HttpProtocolOptions()
    found = cluster.typed_extension_protocol_options.get(_HTTP_OPTIONS)
    if found is not None:
        try:
            found.Unpack(options)
        except DecodeError:
            options.Clear()
    http2 = options.explicit_http_config.http2_protocol_options
    if not http2.HasField("initial_stream_window_size"):
        http2.initial_stream_window_size.value = 1 << 20
        http2.initial_connection_window_size.value = 16 << 20
    cluster.typed_extension_protocol_options[_HTTP_OPTIONS].CopyFrom(pack(options))
