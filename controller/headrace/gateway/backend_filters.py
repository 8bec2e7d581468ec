"""Filters of a route's backendRef on the weighted cluster of a pool. Pure.

Envoy Gateway leaves them out where the backend is a pool. They are checked by the rules that it has for its own
(v1.9, internal/gatewayapi/filters.go), for Envoy refuses the configuration of all routes of a listener for one header
that it does not take. A `%` is escaped: what stands between two of them Envoy would replace, by a variable of its
environment for one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

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


@dataclass
class HeaderChanges:
    """What the filters of one backendRef do to requests and responses, by direction."""

    added: dict[str, list[tuple[str, str, Any]]]
    removed: dict[str, list[str]]

    def apply(self, weight: route_components_pb2.WeightedCluster.ClusterWeight) -> None:
        """Put them on a weighted cluster."""
        for direction, headers in self.added.items():
            options: Any = getattr(weight, f"{direction}_headers_to_add")
            for name, value, action in headers:
                header = base_pb2.HeaderValue(key=name, value=value.replace("%", "%%"))
                options.add(header=header, append_action=action)
        for direction, names in self.removed.items():
            getattr(weight, f"{direction}_headers_to_remove").extend(names)


def header_changes(filters: Iterable[Object]) -> HeaderChanges:
    """What the filters of a backendRef do. Raises InvalidFilter: Gateway API lets no filter be skipped."""
    changes = HeaderChanges({"request": [], "response": []}, {"request": [], "response": []})
    for index, found in enumerate(filters):
        kind = found.get("type")
        direction = _KINDS.get(kind) if isinstance(kind, str) else None
        if direction is None:
            fix = f"a backendRef to a pool can have {' and '.join(_KINDS)} only: put other filters on the rule"
            raise InvalidFilter(f"filters[{index}].type", kind, fix)
        field = f"{direction}HeaderModifier"
        _read(
            mapping(found.get(field)), f"filters[{index}].{field}", changes.added[direction], changes.removed[direction]
        )
    return changes


def _read(spec: Object, field: str, added: list[tuple[str, str, Any]], removed: list[str]) -> None:
    taken = {name.lower() for name, _, _ in added}
    for key, action in _ACTIONS:
        for index, header in enumerate(mappings(spec.get(key))):
            name = _name(header.get("name"), f"{field}.{key}[{index}].name")
            value = header.get("value")
            if not isinstance(value, str) or len(value) > _MAX_VALUE or not _VALUE.fullmatch(value):
                fix = f"use up to {_MAX_VALUE} printable ASCII characters, single spaces between words"
                raise InvalidFilter(f"{field}.{key}[{index}].value", value, fix)
            if name.lower() not in taken:
                taken.add(name.lower())
                added.append((name, value, action))
    names = spec.get("remove")
    for index, entry in enumerate(names if isinstance(names, list) else ()):
        name = _name(entry, f"{field}.remove[{index}]")
        if name.lower() not in map(str.lower, removed):
            removed.append(name)
    for many in (added, removed):
        if len(many) > _MAX_HEADERS:
            raise InvalidFilter(field, len(many), f"change {_MAX_HEADERS} headers at most")


def _name(value: object, field: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value) or value.lower() == http.HOST:
        raise InvalidFilter(field, value, "give the name of a header; Host is changed by URLRewrite of the rule")
    return value
