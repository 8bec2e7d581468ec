"""The answers of endpoint discovery: which endpoints a pool and its picker have, from a snapshot. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from headrace.core import Pool, fields
from headrace.datalayer.pods import endpoints_of
from headrace.gateway.clusters import number
from headrace.gateway.snapshot import PickerService, Snapshot, mapping, mappings
from headrace.protocol.objects import SERVICE_LABEL
from headrace.xds.envoy.config.core.v3 import address_pb2, health_check_pb2
from headrace.xds.envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2

Address = tuple[str, int]


def pool_addresses(snapshot: Snapshot, pool: Pool) -> tuple[Address, ...]:
    """Ready Pods of the pool, not terminating, with each of their active target ports."""
    return tuple(sorted((found.address, found.port) for found in endpoints_of(snapshot.pods_of(pool), pool)))


def picker_addresses(snapshot: Snapshot, pool: Pool) -> tuple[Address, ...]:
    """The ready endpoints of the picker's Service, on the port that the pool names. Without a Service: none.

    One of our own that ends stays as well, for as long as Envoy's health checks find it serving: its successor is new
    to Envoy, and may answer its first check late. Often one change has the one ending and the other ready."""
    service, problem = snapshot.picker_service(pool)
    return () if problem else tuple(sorted(set(_of_slices(snapshot, service))))


def _of_slices(snapshot: Snapshot, service: PickerService) -> Iterable[Address]:
    for endpoint_slice in snapshot.endpoint_slices.values():
        metadata = mapping(endpoint_slice.get("metadata"))
        owner = mapping(metadata.get("labels")).get(SERVICE_LABEL)
        if metadata.get("namespace") != service.namespace or owner != service.name:
            continue
        if endpoint_slice.get("addressType") not in ("IPv4", "IPv6"):
            continue
        # A Service's port leads to the slice's port of the same name; an unnamed one has the name "".
        ports = [
            port for port in mappings(endpoint_slice.get("ports")) if (port.get("name") or "") == service.port_name
        ]
        for endpoint in mappings(endpoint_slice.get("endpoints")):
            conditions = mapping(endpoint.get("conditions"))
            ends = conditions.get("terminating") is True
            # No answer counts as ready, says the API.
            if not (service.is_ours if ends else conditions.get("ready") is not False):
                continue
            addresses = endpoint.get("addresses")
            for found in filter(None, map(fields.address, addresses if isinstance(addresses, list) else ())):
                yield from ((found, listens) for port in ports if (listens := fields.port(port.get("port"))))


def assignment(name: str, addresses: Iterable[Address]) -> endpoint_pb2.ClusterLoadAssignment:
    """Addresses as EDS says them."""
    found = endpoint_pb2.ClusterLoadAssignment(cluster_name=name)
    # A weight, because clusters with locality weighting, as Envoy Gateway makes them, send nothing to one without.
    locality = found.endpoints.add(load_balancing_weight=number(1))
    for address, port in addresses:
        socket = address_pb2.SocketAddress(address=address, port_value=port)
        endpoint = endpoint_components_pb2.Endpoint(address=address_pb2.Address(socket_address=socket))
        locality.lb_endpoints.add(endpoint=endpoint, health_status=health_check_pb2.HEALTHY)
    return found
