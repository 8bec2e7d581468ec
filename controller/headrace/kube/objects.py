"""Objects of the API server: the kinds that several parts use; finding, listing, making, changing and deleting them.

Status is written by merge patch under an optimistic lock; whole objects by server-side apply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.core.fields import mapping, text
from headrace.core.pool import VERSION_OF_GROUP
from headrace.kube.client import APPLY_PATCH, MERGE_PATCH, ApiError, Resource, request
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

_PAGE_SIZE = 500
FIELD_MANAGER = "headrace"


async def find(client: Any, path: str) -> dict[str, Any] | None:
    """The object at a path; None where there is none. Raises ApiError."""
    try:
        return await request(client, "GET", path)
    except ApiError as error:
        if error.status == 404:
            return None
        raise


async def list_all(client: Any, resource: Resource, namespace: str | None = None, labels: str = "") -> list[Any]:
    """All objects of a kind, page by page, of one namespace or all. `labels` is a label selector. Raises ApiError."""
    found, _ = await list_with_version(client, resource.path(namespace), {"labelSelector": labels} if labels else {})
    return found


async def list_with_version(client: Any, path: str, selectors: Mapping[str, str]) -> tuple[list[Any], str]:
    """All objects of a path that selectors leave, page by page, and the version of that list. Raises ApiError."""
    found: list[Any] = []
    query = {**selectors, "limit": str(_PAGE_SIZE)}
    while True:
        page = await request(client, "GET", path, query=query)
        items, metadata = page.get("items"), mapping(page.get("metadata"))
        if not isinstance(items, list | None):
            raise ApiError(0, "Unreadable", f"GET {path}: items is no list")
        found += items or []
        token = text(metadata.get("continue"))
        if not token:
            return found, text(metadata.get("resourceVersion"))
        query["continue"] = token


async def create(client: Any, resource: Resource, body: Mapping[str, Any]) -> dict[str, Any]:
    """Make an object; it is returned as the API server has it then. Raises ApiError; status 409: there is one."""
    path = resource.path(body["metadata"].get("namespace"))
    return await request(client, "POST", path, body=body, content_type="application/json")


async def put(client: Any, path: str, body: Mapping[str, Any]) -> None:
    """Replace an object of the version that `body` names. Raises ApiError; status 409: it is of another one by now."""
    await request(client, "PUT", path, body=dict(body), content_type="application/json")


async def delete(client: Any, path: str) -> bool:
    """Delete an object in the background. Whether there was anything to delete. Raises ApiError."""
    try:
        await request(client, "DELETE", path, query={"propagationPolicy": "Background"})
    except ApiError as error:
        if error.status == 404:
            return False
        raise
    return True


async def patch_status(
    client: Any, resource: Resource, found: Mapping[str, Any], status: Mapping[str, Any]
) -> dict[str, Any]:
    """Replace keys of an object's status, provided that nobody changed the object since it was read. The object then.

    Raises ApiError; status 409 means somebody did: read again and decide again."""
    metadata = found["metadata"]
    body = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "status": dict(status)}
    path = resource.path(metadata.get("namespace"), metadata["name"], "status")
    query = {"fieldManager": FIELD_MANAGER}
    return await request(client, "PATCH", path, query=query, body=body, content_type=MERGE_PATCH)


async def apply(client: Any, resource: Resource, wanted: Mapping[str, Any], *, force: bool = False) -> dict[str, Any]:
    """Server-side apply of a whole object. Raises ApiError; status 409 names the other field manager."""
    metadata = wanted["metadata"]
    query = {"fieldManager": FIELD_MANAGER, "force": "true" if force else "false"}
    path = resource.path(metadata.get("namespace"), metadata["name"])
    return await request(client, "PATCH", path, query=query, body=dict(wanted), content_type=APPLY_PATCH)
