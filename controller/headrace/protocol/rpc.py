"""Names of gRPC services and their metadata, and of Envoy's filter metadata."""

from __future__ import annotations

EXT_PROC_SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
EDS_SERVICE = "envoy.service.endpoint.v3.EndpointDiscoveryService"
SDS_SERVICE = "envoy.service.secret.v3.SecretDiscoveryService"
# The types of the resources that the two serve.
EDS_TYPE = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
SDS_TYPE = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
EXTENSION_SERVICE = "envoygateway.extension.EnvoyGatewayExtension"
HEALTH_SERVICE = "grpc.health.v1.Health"
PEERS_SERVICE = "headrace.peers.Peers"

# Headers and trailers of gRPC itself.
STATUS = "grpc-status"
MESSAGE = "grpc-message"
TIMEOUT = "grpc-timeout"
ACCEPT_ENCODING = "grpc-accept-encoding"
CONTENT_TYPE = "application/grpc"

# Metadata with which a gateway says that a filter of its own observes responses. Without it, the first observation
# stream says so for the rest of the process's life.
OBSERVED = "x-headrace-observed"
# Metadata of body-based routing: which Gateway asks, as NAMESPACE/NAME.
GATEWAY = "x-headrace-gateway"

# Namespaces of filter metadata: where the pick and the served endpoint go, and where the subset hint comes from.
LOAD_BALANCER_NAMESPACE = "envoy.lb"
SUBSET_NAMESPACE = "envoy.lb.subset_hint"
