"""Names that several parts agree on: clusters and secrets in Envoy, filters, annotations, metadata keys."""

from __future__ import annotations

from headrace.core import Pool

# The bootstrap's static cluster that leads to the controller's EDS and SDS.
DISCOVERY_CLUSTER = "headrace_eds"

# Envoy answers 500 for it: Envoy Gateway uses the same name for references that do not resolve.
INVALID_CLUSTER = "invalid-backend-cluster"

HEADERS_FILTER = "envoy.filters.http.header_mutation/headrace"
PICK_FILTER = "envoy.filters.http.ext_proc/headrace-pick"
OBSERVE_FILTER = "envoy.filters.http.ext_proc/headrace-observe"

# Body-based routing: how long bodies are held back, and the question which model they name.
BUFFER_FILTER = "envoy.filters.http.match_delegate/headrace-buffer"
MODEL_FILTER = "envoy.filters.http.match_delegate/headrace-model"
OWN_FILTERS = (BUFFER_FILTER, MODEL_FILTER, HEADERS_FILTER, PICK_FILTER, OBSERVE_FILTER)

# Headers that body-based routing sets, and that no client can: routes match them.
MODEL_HEADER = "x-gateway-model-name"
BASE_MODEL_HEADER = "x-gateway-base-model-name"
MODEL_HEADERS = (MODEL_HEADER, BASE_MODEL_HEADER)
# gRPC metadata of that question: which Gateway asks, as NAMESPACE/NAME.
GATEWAY_METADATA = "x-headrace-gateway"
# ConfigMaps with this label say which adapters a base model has (keys baseModel, adapters).
BASE_MODEL_SELECTOR = "inference.networking.k8s.io/bbr-managed=true"

# On an endpoint picker's Service: it is ours, and takes the pick and the observation as two streams.
PICKER_ANNOTATION = "headrace.dev/endpoint-picker"
PICKER_ANNOTATION_OURS = "headrace"
# gRPC metadata of a pick's stream to a picker of ours: responses are observed.
OBSERVED_METADATA = "x-headrace-observed"
# On a pool.
BODY_MODE_ANNOTATION = "headrace.dev/request-body-mode"
OBSERVATION_ANNOTATION = "headrace.dev/response-observation"
POOL_ANNOTATIONS = (BODY_MODE_ANNOTATION, OBSERVATION_ANNOTATION)

DESTINATION = "x-gateway-destination-endpoint"
SERVED = "x-gateway-destination-endpoint-served"
SUBSET = "x-gateway-destination-endpoint-subset"
# They steer the gateway: what a client sends under these names is dropped before anyone reads it.
UNTRUSTED_HEADERS = (DESTINATION, SERVED, SUBSET)

LOAD_BALANCER_METADATA = "envoy.lb"
SUBSET_METADATA = "envoy.lb.subset_hint"

_PREFIX = "inferencepool/"
_PICKER_SUFFIX = "/epp"
_TRUST_SUFFIX = "/epp/ca"

# (group, namespace, name)
PoolKey = tuple[str, str, str]


def pool_key(pool: Pool) -> PoolKey:
    """What tells pools apart: two of different groups may share namespace and name."""
    return (pool.group, pool.namespace, pool.name)


def pool_cluster_name(key: PoolKey) -> str:
    """The cluster of a pool's endpoints, and their name in EDS."""
    return _PREFIX + "/".join(key)


def picker_cluster_name(key: PoolKey) -> str:
    """The cluster of a pool's endpoint picker, and the name of its endpoints in EDS."""
    return pool_cluster_name(key) + _PICKER_SUFFIX


def trust_secret_name(key: PoolKey) -> str:
    """The SDS secret that says by which CA a pool's endpoint picker is verified."""
    return pool_cluster_name(key) + _TRUST_SUFFIX


def split_resource_name(name: str) -> tuple[PoolKey, str] | None:
    """The pool of a resource name, and what is asked of it: "" endpoints, "/epp", "/epp/ca". None: not one of ours."""
    if not name.startswith(_PREFIX):
        return None
    group, _, rest = name.removeprefix(_PREFIX).partition("/")
    namespace, _, rest = rest.partition("/")
    pool, slash, suffix = rest.partition("/")
    if not group or not namespace or not pool or slash + suffix not in ("", _PICKER_SUFFIX, _TRUST_SUFFIX):
        return None
    return (group, namespace, pool), slash + suffix
