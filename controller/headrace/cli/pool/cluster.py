"""What a cluster says of its pools: the objects, and what their endpoint pickers know and did.

Pickers are asked through the API server's proxy to their Pods (needs `get` on `pods/proxy`), or directly at a URL."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from headrace.core import InvalidPool, Pool
from headrace.core.fields import mapping, mappings
from headrace.datalayer.pods import is_ready
from headrace.kube.client import ApiError, request
from headrace.kube.members import pickers_of, pods_of, proxy_path, read_pool
from headrace.kube.objects import POOLS, list_all
from headrace.protocol import http
from headrace.protocol.objects import RESOLVED_REFS
from headrace.serving.http_client import HttpClient, HttpError

# What the gateway controller writes, see `gateway.status`.
_NOT_TRUSTED = "EndpointPickerNotTrusted"
_SECONDS = 10.0
# A thousand decisions among a thousand endpoints.
_MOST_BYTES = 256 << 20


class NotAnswered(Exception):  # noqa: N818
    """No picker answered; the message has the reason and the fix."""


class Parent(Struct, frozen=True):
    """What one gateway says of a pool."""

    name: str
    said: tuple[Mapping[str, Any], ...]

    @property
    def conditions(self) -> dict[str, str]:
        """The status of each condition."""
        return {str(c.get("type")): str(c.get("status")) for c in self.said}

    @property
    def reasons(self) -> list[str]:
        """Why conditions are not True."""
        refused = (c for c in self.said if c.get("status") != "True")
        return [f"{c.get('type')}={c.get('status')} ({c.get('reason')}: {c.get('message')})" for c in refused]

    @property
    def trusts_picker(self) -> bool | None:
        """Whether the gateway trusts the endpoint picker's certificate; None: it does not say."""
        resolved: Mapping[str, Any] = next((c for c in self.said if c.get("type") == RESOLVED_REFS), {})
        if resolved.get("reason") == _NOT_TRUSTED:
            return False
        return True if resolved.get("status") == "True" else None


class PoolStatus(Struct, frozen=True):
    """One pool. `view` is its picker's /debug/endpoints, None where no picker told; `trouble` says why, and what else
    is wrong."""

    namespace: str
    name: str
    group: str
    pool: Pool | None
    pods: int
    ready_pods: int
    pickers: int
    ready_pickers: int
    parents: tuple[Parent, ...]
    view: Mapping[str, Any] | None
    trouble: tuple[str, ...]

    @property
    def trusts_picker(self) -> bool | None:
        """Whether all gateways trust the endpoint picker's certificate; None: nobody says."""
        said = [parent.trusts_picker for parent in self.parents]
        return False if False in said else True if True in said else None

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        pool = self.pool
        return {
            "namespace": self.namespace,
            "name": self.name,
            "apiVersion": POOLS[self.group].api_version,
            "failureMode": pool.failure_mode.value if pool is not None else None,
            "pods": {"selected": self.pods, "ready": self.ready_pods},
            "pickers": {"pods": self.pickers, "ready": self.ready_pickers, "trusted": self.trusts_picker},
            "parents": [{"name": p.name, "conditions": p.conditions} for p in self.parents],
            "picker": self.view,
            "trouble": list(self.trouble),
        }


async def pool_statuses(client: Any, namespace: str | None, name: str, metrics_port: int) -> list[PoolStatus]:
    """The pools of a namespace (None: of all), or the one of that name, of either API group. Raises ApiError."""
    found = await _pool_objects(client, namespace, name)
    return list(await asyncio.gather(*(_status(client, group, obj, metrics_port) for group, obj in found)))


async def decisions_of(
    client: Any, namespace: str | None, name: str, metrics_port: int, request_id: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """What the pools' pickers decided for a request, newest first, and why some could not be asked. Raises ApiError."""
    found: list[dict[str, Any]] = []
    trouble: list[str] = []
    for group, obj in await _pool_objects(client, namespace, name):
        pool, complaint = _parse(group, obj)
        if pool is None:
            trouble.append(complaint)
            continue
        pickers = await pickers_of(client, pool)
        trouble += filter(None, [pickers.trouble])
        for pod in pickers.pods:
            asked = {"request_id": request_id}
            try:
                page = await _ask_pod(client, pod, metrics_port, "/debug/decisions", asked)
            except NotAnswered as error:
                trouble.append(str(error))
                continue
            whose = {"pool": f"{pool.namespace}/{pool.name}", "picker": _key(pod)[1]}
            found += [{**whose, **decision} for decision in page.get("decisions") or []]
    found.sort(key=lambda decision: str(decision.get("time")), reverse=True)
    return found, trouble


async def ask_url(url: str, path: str, token: str = "") -> dict[str, Any]:
    """A picker's page at its own address. Raises NotAnswered."""
    headers = {http.AUTHORIZATION: f"Bearer {token}"} if token else {}
    where = url.rstrip("/") + path
    try:
        async with HttpClient() as client:
            status, body = await client.read("GET", where, max_bytes=_MOST_BYTES, seconds=_SECONDS, headers=headers)
        if status in (401, 403):
            raise NotAnswered(f"{url}: {status}: give a token that may read it: --token-file")
        if status != 200:
            raise NotAnswered(f"{url}{path}: status {status}")
        page = json.loads(body)
    except (HttpError, ValueError, RecursionError) as error:
        raise NotAnswered(f"{url}: {error}: is this a picker's metrics port?") from None
    if not isinstance(page, dict):
        raise NotAnswered(f"{url}{path}: the answer is no JSON object")
    return page


async def _pool_objects(client: Any, namespace: str | None, name: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Group and object of every pool, or of those with a name. A group whose CRD is not installed has none. Raises
    ApiError."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    absent = 0
    for group, resource in POOLS.items():
        try:
            found += [(group, obj) for obj in await list_all(client, resource, namespace)]
        except ApiError as error:
            if error.status != 404:
                raise
            absent += 1
    if absent == len(POOLS):
        raise ApiError(404, "NotFound", "the cluster has no InferencePool CRD; run the role inference_crds")
    named = [(group, obj) for group, obj in found if name in ("", _key(obj)[1])]
    return sorted(named, key=lambda entry: _key(entry[1]))


def _key(obj: Mapping[str, Any]) -> tuple[str, str]:
    metadata = mapping(obj.get("metadata"))
    return str(metadata.get("namespace")), str(metadata.get("name"))


def _parse(group: str, obj: Mapping[str, Any]) -> tuple[Pool | None, str]:
    try:
        return read_pool(group, obj), ""
    except InvalidPool as error:
        return None, f"pool {'/'.join(_key(obj))} cannot be used: {error}"


async def _status(client: Any, group: str, obj: Mapping[str, Any], metrics_port: int) -> PoolStatus:
    namespace, name = _key(obj)
    pool, complaint = _parse(group, obj)
    trouble = [complaint] if complaint else []
    pods: Sequence[Mapping[str, Any]] = ()
    pickers: Sequence[Mapping[str, Any]] = ()
    view = None
    if pool is not None:
        pods, behind = await pods_of(client, pool), await pickers_of(client, pool)
        if not pods:
            trouble.append(f"no Pod has the labels {pool.label_selector}")
        trouble += filter(None, [behind.trouble])
        pickers, complaints = behind.pods, []
        for pod in sorted(pickers, key=is_ready, reverse=True):
            try:
                view = await _ask_pod(client, pod, metrics_port, "/debug/endpoints")
                break
            except NotAnswered as error:
                complaints.append(str(error))
        trouble += complaints if view is None else []
    return PoolStatus(
        namespace=namespace,
        name=name,
        group=group,
        pool=pool,
        pods=len(pods),
        ready_pods=sum(map(is_ready, pods)),
        pickers=len(pickers),
        ready_pickers=sum(map(is_ready, pickers)),
        parents=parents_of(obj),
        view=view,
        trouble=tuple(trouble),
    )


def parents_of(obj: Mapping[str, Any]) -> tuple[Parent, ...]:
    """What gateways wrote into a pool's status, of either version; the placeholder without a gateway is left out."""
    status = mapping(obj.get("status"))
    return tuple(
        Parent(str(mapping(entry.get("parentRef")).get("name")), tuple(mappings(entry.get("conditions"))))
        for entry in mappings(status.get("parents") or status.get("parent"))
        if mapping(entry.get("parentRef")).get("kind") != "Status"
    )


async def _ask_pod(
    client: Any, pod: Mapping[str, Any], port: int, path: str, query: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A page of a Pod, through the API server. Raises NotAnswered."""
    namespace, name = _key(pod)
    try:
        return await request(client, "GET", proxy_path(namespace, name, port, path), query=query)
    except ApiError as error:
        fix = {
            401: "it runs with --metrics-endpoint-auth, which the API server's proxy cannot pass: ask it with --url",
            403: "you need get on pods/proxy, or ask it with --url",
        }.get(error.status, "is it Headrace's, and is this its metrics port (--metrics-port)?")
        raise NotAnswered(f"picker {namespace}/{name} does not tell: {error}; {fix}") from None
