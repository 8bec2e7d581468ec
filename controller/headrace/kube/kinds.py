"""The kinds that several parts read or write."""

from __future__ import annotations

from headrace.core.pool import VERSION_OF_GROUP
from headrace.kube.client import Resource
from headrace.protocol.objects import COORDINATION_GROUP, GATEWAY_GROUP

PODS = Resource("", "v1", "pods", True)
SERVICES = Resource("", "v1", "services", True)
CONFIG_MAPS = Resource("", "v1", "configmaps", True)
EVENTS = Resource("", "v1", "events", True)
ENDPOINT_SLICES = Resource("discovery.k8s.io", "v1", "endpointslices", True)
LEASES = Resource(COORDINATION_GROUP, "v1", "leases", True)
GATEWAYS = Resource(GATEWAY_GROUP, "v1", "gateways", True)
GATEWAY_CLASSES = Resource(GATEWAY_GROUP, "v1", "gatewayclasses", False)
REFERENCE_GRANTS = Resource(GATEWAY_GROUP, "v1beta1", "referencegrants", True)
BACKEND_TLS_POLICIES = Resource(GATEWAY_GROUP, "v1", "backendtlspolicies", True)
# Routes by their kind. Both have rules with backendRefs alike.
ROUTES = {
    "HTTPRoute": Resource(GATEWAY_GROUP, "v1", "httproutes", True),
    "GRPCRoute": Resource(GATEWAY_GROUP, "v1", "grpcroutes", True),
}
# InferencePools by their API group, in its served version.
POOLS = {group: Resource(group, version, "inferencepools", True) for group, version in VERSION_OF_GROUP.items()}
