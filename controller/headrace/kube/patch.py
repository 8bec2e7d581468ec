"""Writes to the API server: status by merge patch under an optimistic lock, and server-side apply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.kube.client import APPLY_PATCH, MERGE_PATCH, Resource, request

FIELD_MANAGER = "headrace"


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
