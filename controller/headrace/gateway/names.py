"""Names in Envoy's configuration that several parts agree on: clusters, secrets and filters."""

from __future__ import annotations

import re

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

_PREFIX = "inferencepool/"
_PICKER_SUFFIX = "/picker"
_PICKER_ENDPOINTS_SUFFIX = "/epp"
_TRUST_SUFFIX = "/epp/ca"
_RESOURCE = re.compile(rf"{_PREFIX}([^/]+)/([^/]+)/([^/]+)(|{_PICKER_ENDPOINTS_SUFFIX}|{_TRUST_SUFFIX})")

# (group, namespace, name)
PoolKey = tuple[str, str, str]


def pool_key(pool: Pool) -> PoolKey:
    """What tells pools apart: two of different groups may share namespace and name."""
    return (pool.group, pool.namespace, pool.name)


def pool_cluster_name(key: PoolKey) -> str:
    """The cluster of a pool's endpoints, and their name in EDS."""
    return _PREFIX + "/".join(key)


def picker_cluster_name(key: PoolKey) -> str:
    """The cluster of a pool's endpoint picker. One with other settings needs another name: see `clusters`."""
    return pool_cluster_name(key) + _PICKER_SUFFIX


def picker_endpoints_name(key: PoolKey) -> str:
    """The endpoints of a pool's endpoint picker in EDS."""
    return pool_cluster_name(key) + _PICKER_ENDPOINTS_SUFFIX


def trust_secret_name(key: PoolKey) -> str:
    """The SDS secret that says by which CA a pool's endpoint picker is verified."""
    return pool_cluster_name(key) + _TRUST_SUFFIX


def split_resource_name(name: str) -> tuple[PoolKey, str] | None:
    """The pool of a resource name, and what is asked of it: "" endpoints, "/epp", "/epp/ca". None: not one of ours."""
    found = _RESOURCE.fullmatch(name)
    return None if found is None else ((found[1], found[2], found[3]), found[4])
