"""Objects that a replacement deals with, in the API server's terms: where they are, listing and deleting them."""

from __future__ import annotations

from typing import Any

from headrace.kube.client import ApiError, Resource, request
from headrace.protocol.objects import GATEWAY_GROUP
from headrace.replace.ownership import Object
from headrace.replace.routes import RouteRecord

ROUTES = {
    "HTTPRoute": Resource(GATEWAY_GROUP, "v1", "httproutes", True),
    "GRPCRoute": Resource(GATEWAY_GROUP, "v1", "grpcroutes", True),
}
GATEWAYS = Resource(GATEWAY_GROUP, "v1", "gateways", True)
REFERENCE_GRANTS = Resource(GATEWAY_GROUP, "v1beta1", "referencegrants", True)
_PAGE_SIZE = 500


def key_of(route: Object) -> tuple[str, str, str]:
    """(kind, namespace, name) of a route that says its kind."""
    metadata = route["metadata"]
    return (str(route["kind"]), str(metadata.get("namespace") or "default"), str(metadata["name"]))


def path_of(record: RouteRecord) -> str:
    """The path of a recorded route."""
    return ROUTES[record.kind].path(record.namespace, record.name)


async def list_all(client: Any, resource: Resource) -> list[Object]:
    """All objects of a kind in the cluster, page by page. Raises ApiError."""
    found: list[Object] = []
    query = {"limit": str(_PAGE_SIZE)}
    while True:
        page = await request(client, "GET", resource.path(), query=query)
        found += page.get("items") or []
        token = (page.get("metadata") or {}).get("continue")
        if not token:
            return found
        query = {"limit": str(_PAGE_SIZE), "continue": token}


async def delete(client: Any, path: str) -> bool:
    """Delete an object in the background. Whether there was anything to delete. Raises ApiError."""
    try:
        await request(client, "DELETE", path, query={"propagationPolicy": "Background"})
    except ApiError as error:
        if error.status == 404:
            return False
        raise
    return True


async def exists(client: Any, path: str) -> bool:
    """Whether there is an object at this path. Raises ApiError."""
    try:
        await request(client, "GET", path)
    except ApiError as error:
        if error.status == 404:
            return False
        raise
    return True
