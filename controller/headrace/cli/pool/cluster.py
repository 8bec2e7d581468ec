"""What a cluster says of its pools: the objects, and what their endpoint pickers know and did.

Pickers are asked through the API server's proxy to their Pods (needs `get` on `pods/proxy`), or directly at a URL."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from headrace.config.pools import parse_pool
from headrace.core import InvalidPool, Pool
from headrace.core.pool import VERSION_OF_GROUP
from headrace.datalayer.pods import is_ready
from headrace.kube.client import ApiError, Resource, request
from headrace.protocol import http
from headrace.protocol.objects import RESOLVED_REFS

_SERVICES = Resource("", "v1", "services", namespaced=True)
_PODS = Resource("", "v1", "pods", namespaced=True)
# What the gateway controller writes, see `gateway.status`.
_NOT_TRUSTED = "EndpointPickerNotTrusted"
_TIMEOUT = aiohttp.ClientTimeout(total=10)


class NotAnswered(Exception):  # noqa: N818
    """Nobody could say; the message has the reason and what to do."""


@dataclass(frozen=True)
class Parent:
    """What one gateway says of a pool: each condition's status, and the reasons of those that are not True."""

    name: str
    conditions: Mapping[str, str]
    reasons: tuple[str, ...]
    # Of ResolvedRefs.
    resolved_reason: str = ""

    @property
    def trusts_picker(self) -> bool | None:
        """Whether the gateway trusts the endpoint picker's certificate; None: it does not say."""
        if self.resolved_reason == _NOT_TRUSTED:
            return False
        return True if self.conditions.get(RESOLVED_REFS) == "True" else None


@dataclass(frozen=True)
class PoolStatus:
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
            "apiVersion": f"{self.group}/{VERSION_OF_GROUP[self.group]}",
            "failureMode": pool.failure_mode.value if pool is not None else None,
            "pods": {"selected": self.pods, "ready": self.ready_pods},
            "pickers": {"pods": self.pickers, "ready": self.ready_pickers, "trusted": self.trusts_picker},
            "parents": [{"name": p.name, "conditions": dict(p.conditions)} for p in self.parents],
            "picker": self.view,
            "trouble": list(self.trouble),
        }


async def pool_statuses(client: Any, namespace: str | None, name: str, metrics_port: int) -> list[PoolStatus]:
    """The pools of a namespace (None: of all), or the one of that name, of either API group. Raises ApiError."""
    found = [
        (group, obj)
        for group, obj in await _pool_objects(client, namespace)
        if not name or (obj.get("metadata") or {}).get("name") == name
    ]
    return list(await asyncio.gather(*(_status(client, group, obj, metrics_port) for group, obj in found)))


async def decisions_of(
    client: Any, namespace: str | None, name: str, metrics_port: int, request_id: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """What the pools' pickers decided for a request, newest first, and why some could not be asked. Raises ApiError."""
    found: list[dict[str, Any]] = []
    trouble: list[str] = []
    for group, obj in await _pool_objects(client, namespace):
        metadata = obj.get("metadata") or {}
        if name and metadata.get("name") != name:
            continue
        pool, complaint = _parse(group, obj)
        if pool is None:
            trouble.append(complaint)
            continue
        pods, why = await _picker_pods(client, pool)
        trouble += [why] if why else []
        for pod in pods:
            pod_name = pod["metadata"]["name"]
            asked = {"request_id": request_id}
            try:
                page = await _ask_pod(client, pool.namespace, pod_name, metrics_port, "/debug/decisions", asked)
            except NotAnswered as error:
                trouble.append(str(error))
                continue
            whose = {"pool": f"{pool.namespace}/{pool.name}", "picker": pod_name}
            found += [{**whose, **decision} for decision in page.get("decisions") or []]
    found.sort(key=lambda decision: str(decision.get("time")), reverse=True)
    return found, trouble


async def ask_url(url: str, path: str, token: str = "") -> dict[str, Any]:
    """A picker's page at its own address. Raises NotAnswered."""
    headers = {http.AUTHORIZATION: f"Bearer {token}"} if token else {}
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT) as session,
            session.get(url.rstrip("/") + path, headers=headers) as answer,
        ):
            if answer.status in (401, 403):
                raise NotAnswered(f"{url}: {answer.status}: give a token that may read it: --token-file")
            if answer.status != 200:
                raise NotAnswered(f"{url}{path}: status {answer.status}")
            page = await answer.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise NotAnswered(f"{url}: {error or type(error).__name__}: is this a picker's metrics port?") from None
    if not isinstance(page, dict):
        raise NotAnswered(f"{url}{path}: the answer is no JSON object")
    return page


async def _pool_objects(client: Any, namespace: str | None) -> list[tuple[str, Mapping[str, Any]]]:
    """Group and object of every pool. A group whose CRD is not installed has none. Raises ApiError."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    absent: list[ApiError] = []
    for group, version in VERSION_OF_GROUP.items():
        resource = Resource(group, version, "inferencepools", namespaced=True)
        try:
            page = await request(client, "GET", resource.path(namespace))
        except ApiError as error:
            if error.status != 404:
                raise
            absent.append(error)
            continue
        found += [(group, obj) for obj in page.get("items") or []]
    if len(absent) == len(VERSION_OF_GROUP):
        raise ApiError(404, "NotFound", "the cluster has no InferencePool CRD; run the role inference_crds")
    return sorted(found, key=lambda entry: _key(entry[1]))


def _key(obj: Mapping[str, Any]) -> tuple[str, str]:
    metadata = obj.get("metadata") or {}
    return str(metadata.get("namespace")), str(metadata.get("name"))


def _parse(group: str, obj: Mapping[str, Any]) -> tuple[Pool | None, str]:
    try:
        api_version = f"{group}/{VERSION_OF_GROUP[group]}"
        return parse_pool({"apiVersion": api_version, "kind": "InferencePool", **obj}), ""
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
        pods = await _pods(client, namespace, pool.label_selector)
        if not pods:
            trouble.append(f"no Pod has the labels {pool.label_selector}")
        pickers, why = await _picker_pods(client, pool)
        if why:
            trouble.append(why)
        complaints = []
        for pod in sorted(pickers, key=is_ready, reverse=True):
            try:
                view = await _ask_pod(client, namespace, pod["metadata"]["name"], metrics_port, "/debug/endpoints")
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
    status = obj.get("status") or {}
    found = []
    for entry in status.get("parents") or status.get("parent") or []:
        reference = entry.get("parentRef") or {}
        if reference.get("kind") == "Status":
            continue
        conditions = {str(c.get("type")): str(c.get("status")) for c in entry.get("conditions") or []}
        reasons = tuple(
            f"{c.get('type')}={c.get('status')} ({c.get('reason')}: {c.get('message')})"
            for c in entry.get("conditions") or []
            if c.get("status") != "True"
        )
        resolved = [c.get("reason") for c in entry.get("conditions") or [] if c.get("type") == RESOLVED_REFS]
        found.append(Parent(str(reference.get("name")), conditions, reasons, str(next(iter(resolved), ""))))
    return tuple(found)


async def _picker_pods(client: Any, pool: Pool) -> tuple[list[Mapping[str, Any]], str]:
    """The Pods behind the Service that the pool names, and what is wrong with it. Raises ApiError."""
    if pool.picker is None:
        return [], f"pool {pool.namespace}/{pool.name} names no endpoint picker"
    if pool.picker.kind != "Service":
        return [], f"its picker is a {pool.picker.kind}; only Services are followed"
    try:
        service = await request(client, "GET", _SERVICES.path(pool.namespace, pool.picker.name))
    except ApiError as error:
        if error.status != 404:
            raise
        return [], f"Service {pool.namespace}/{pool.picker.name}, its endpoint picker, does not exist"
    labels = (service.get("spec") or {}).get("selector") or {}
    if not labels:
        return [], f"Service {pool.namespace}/{pool.picker.name} selects no Pods"
    pods = await _pods(client, pool.namespace, ",".join(f"{k}={v}" for k, v in sorted(labels.items())))
    return pods, "" if pods else f"no Pod is behind Service {pool.namespace}/{pool.picker.name}"


async def _pods(client: Any, namespace: str, selector: str) -> list[Mapping[str, Any]]:
    page = await request(client, "GET", _PODS.path(namespace), query={"labelSelector": selector})
    return list(page.get("items") or [])


async def _ask_pod(
    client: Any, namespace: str, pod: str, port: int, path: str, query: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A page of a Pod, through the API server. Raises NotAnswered."""
    proxied = f"{_PODS.path(namespace)}/{pod}:{port}/proxy{path}"
    try:
        return await request(client, "GET", proxied, query=query)
    except ApiError as error:
        fix = {
            401: "it runs with --metrics-endpoint-auth, which the API server's proxy cannot pass: ask it with --url",
            403: "you need get on pods/proxy, or ask it with --url",
        }.get(error.status, "is it Headrace's, and is this its metrics port (--metrics-port)?")
        raise NotAnswered(f"picker {namespace}/{pod} does not tell: {error}; {fix}") from None
