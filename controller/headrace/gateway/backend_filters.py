"""Filters of a route's backendRef on the weighted cluster of a pool. Pure.

Source: Gateway API, HTTPHeaderFilter: `set` overwrites, `add` appends, `remove` takes away."""

from __future__ import annotations

from typing import Any

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2

from headrace.gateway.snapshot import Object, mapping, mappings

_Append = base_pb2.HeaderValueOption.HeaderAppendAction
_KINDS = {"RequestHeaderModifier": "request", "ResponseHeaderModifier": "response"}


def apply_filter(found: Object, weight: route_components_pb2.WeightedCluster.ClusterWeight) -> bool:
    """Put a filter on a weighted cluster. False: its type cannot be had there."""
    kind = str(found.get("type"))
    direction = _KINDS.get(kind)
    if direction is None:
        return False
    spec = mapping(found.get(kind[0].lower() + kind[1:]))
    added: Any = getattr(weight, f"{direction}_headers_to_add")
    for key, action in (
        ("set", _Append.OVERWRITE_IF_EXISTS_OR_ADD),
        ("add", _Append.APPEND_IF_EXISTS_OR_ADD),
    ):
        for header in mappings(spec.get(key)):
            value = base_pb2.HeaderValue(key=str(header.get("name") or ""), value=str(header.get("value") or ""))
            if value.key:
                added.add(header=value, append_action=action)
    removed: Any = getattr(weight, f"{direction}_headers_to_remove")
    names = spec.get("remove")
    if isinstance(names, list):
        removed.extend(str(name) for name in names if name)
    return True
