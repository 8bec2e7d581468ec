"""Filters of a route's backendRef on the weighted cluster of a pool. Pure.

Envoy Gateway leaves them out where the backend is a pool. They are checked by the rules that it has for its own
(v1.9, internal/gatewayapi/filters.go), for Envoy refuses the configuration of all routes of a listener for one header
that it does not take. A `%` is escaped: what stands between two of them Envoy would replace, by a variable of its
environment for one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from headrace.core.invalid import InvalidField
from headrace.gateway.snapshot import Object, mapping, mappings
from headrace.protocol import http
from headrace.xds.envoy.config.core.v3 import base_pb2
from headrace.xds.envoy.config.route.v3 import route_components_pb2

_Append = base_pb2.HeaderValueOption.HeaderAppendAction
_KINDS = {"RequestHeaderModifier": "request", "ResponseHeaderModifier": "response"}
# `add` first, as Envoy Gateway does it: of two entries for one header the first counts.
_ACTIONS = (("add", _Append.APPEND_IF_EXISTS_OR_ADD), ("set", _Append.OVERWRITE_IF_EXISTS_OR_ADD))
# HTTPHeaderName and HTTPHeader.value of the Gateway API, with its lengths.
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}")
# Envoy Gateway's HeaderValueRegexp, without its nested repetition.
_VALUE = re.compile(r"[!-~]+(?:[\t ][!-~]+)*")
_MAX_VALUE = 4096
# Envoy takes 1,000 in one list.
_MAX_HEADERS = 500


class InvalidFilter(InvalidField):
    """A filter that cannot be had: names the field of the backendRef, its value and the fix."""


class HeaderChanges(Struct):
    """What the filters of one backendRef do to requests and responses. Keys are direction and name, in lower case."""

    added: dict[tuple[str, str], tuple[str, str, Any]] = {}
    removed: dict[tuple[str, str], str] = {}

    def apply(self, weight: route_components_pb2.WeightedCluster.ClusterWeight) -> None:
        """Put them on a weighted cluster."""
        for (direction, _), (name, value, action) in self.added.items():
            header = base_pb2.HeaderValue(key=name, value=value.replace("%", "%%"))
            getattr(weight, f"{direction}_headers_to_add").add(header=header, append_action=action)
        for (direction, _), name in self.removed.items():
            getattr(weight, f"{direction}_headers_to_remove").append(name)

    def read(self, direction: str, spec: Object, field: str) -> None:
        """Take what a filter says. Raises InvalidFilter."""
        for key, action in _ACTIONS:
            for index, header in enumerate(mappings(spec.get(key))):
                name = _name(header.get("name"), f"{field}.{key}[{index}].name")
                value = header.get("value")
                if not isinstance(value, str) or len(value) > _MAX_VALUE or not _VALUE.fullmatch(value):
                    fix = f"use up to {_MAX_VALUE} printable ASCII characters, single spaces between words"
                    raise InvalidFilter(f"{field}.{key}[{index}].value", value, fix)
                self.added.setdefault((direction, name.lower()), (name, value, action))
        names = spec.get("remove")
        for index, entry in enumerate(names if isinstance(names, list) else ()):
            name = _name(entry, f"{field}.remove[{index}]")
            self.removed.setdefault((direction, name.lower()), name)
        for many in (self.added, self.removed):
            if (count := sum(key[0] == direction for key in many)) > _MAX_HEADERS:
                raise InvalidFilter(field, count, f"change {_MAX_HEADERS} headers at most")


def header_changes(filters: Iterable[Object]) -> HeaderChanges:
    """What the filters of a backendRef do. Raises InvalidFilter: Gateway API lets no filter be skipped."""
    changes = HeaderChanges()
    for index, found in enumerate(filters):
        kind = found.get("type")
        direction = _KINDS.get(kind) if isinstance(kind, str) else None
        if direction is None:
            fix = f"a backendRef to a pool can have {' and '.join(_KINDS)} only: put other filters on the rule"
            raise InvalidFilter(f"filters[{index}].type", kind, fix)
        field = f"{direction}HeaderModifier"
        changes.read(direction, mapping(found.get(field)), f"filters[{index}].{field}")
    return changes


def _name(value: object, field: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value) or value.lower() == http.HOST:
        raise InvalidFilter(field, value, "give the name of a header; Host is changed by URLRewrite of the rule")
    return value
