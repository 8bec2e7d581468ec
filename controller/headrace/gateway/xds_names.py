"""The names that Envoy Gateway gives to what it makes of routes: an unversioned contract, kept in one place. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

from headrace.protocol.translated import RouteKey

# The versions whose output the translation is tested against. Others may name or nest things differently.
TESTED_VERSIONS = ("v1.9.1",)

# Envoy Gateway v1.9: irRouteName and irRouteDestinationName. Tested against its real output.
_ROUTE_NAME = re.compile(r"((httproute|grpcroute)/([^/]+)/([^/]+)/rule/([0-9]{1,9}))/match/")
_KINDS = {"httproute": "HTTPRoute", "grpcroute": "GRPCRoute"}


class RuleName(NamedTuple):
    """A rule of a route. `destination` is Envoy Gateway's name of it."""

    destination: str
    route: RouteKey
    rule: int


def parse_route_name(name: str) -> RuleName | None:
    """The rule that an xDS route was made for; None for names of another shape."""
    found = _ROUTE_NAME.match(name)
    if found is None:
        return None
    destination, kind, namespace, route, index = found.groups()
    return RuleName(destination, (_KINDS[kind], namespace, route), int(index))


def untested_version(version: str) -> str:
    """What to say of an Envoy Gateway of this version: "" of a tested one, and of one that is not known."""
    wanted = version.strip()
    if not wanted or f"v{wanted.removeprefix('v')}" in TESTED_VERSIONS:
        return ""
    tested = ", ".join(TESTED_VERSIONS)
    return f"Envoy Gateway {wanted} is outside the tested range ({tested}): its names and hook input may differ"
