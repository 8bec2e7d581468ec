"""A thin layer over `kubernetes.aio`: connect, ask, and have every failure as one error class."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio import client as kubernetes_client
from kubernetes.aio import config as kubernetes_config
from msgspec import Struct

from headrace.core.invalid import CannotServe

# Content types of PATCH, by what they do.
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"

_REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=30)
# Error bodies are for logs: enough for the API server's message, too little for a secret or a dump.
_MESSAGE_LIMIT = 500


class ApiError(Exception):
    """The API server refused, or could not be reached (`status` 0)."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}" if status else message)
        self.status = status
        self.reason = reason


class ConfigurationError(CannotServe):
    """There is no way to reach a cluster: neither a kubeconfig nor a service account."""


class Resource(Struct, frozen=True):
    """A kind as the API server's paths name it. `group` is "" for the core group."""

    group: str
    version: str
    plural: str
    namespaced: bool

    @property
    def api_version(self) -> str:
        """Group and version as objects have them."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The path of a list (no name), an object, or one of its subresources."""
        root = f"/apis/{self.api_version}" if self.group else f"/api/{self.version}"
        scope = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return "/".join(part for part in (f"{root}{scope}/{self.plural}", name, subresource) if part)

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


async def connect(kubeconfig: str | None = None, context: str | None = None) -> Any:
    """A `kubernetes.aio` ApiClient: from `kubeconfig`, else $KUBECONFIG, else the Pod's service account.

    `context` names one of the kubeconfig's; by default it is the current one.

    Raises ConfigurationError if none of them serves. The caller closes the client."""
    configuration = kubernetes_client.Configuration()
    path = kubeconfig or os.environ.get("KUBECONFIG")
    try:
        if path:
            if not Path(path).is_file():  # noqa: ASYNC240 (once, at start)
                raise ConfigurationError(f"there is no kubeconfig at {path}: give --kubeconfig or set KUBECONFIG")
            await kubernetes_config.load_kube_config(
                config_file=path, context=context, client_configuration=configuration
            )
        else:
            kubernetes_config.load_incluster_config(client_configuration=configuration)
    except kubernetes_config.ConfigException as error:
        hint = "give --kubeconfig, set KUBECONFIG, or run in a Pod with a service account"
        raise ConfigurationError(f"no cluster to talk to ({error}): {hint}") from error
    # Every watch holds a connection; the library's default of a few would leave none for requests.
    configuration.connection_pool_maxsize = 0
    return kubernetes_client.ApiClient(configuration=configuration)


async def open_response(
    client: Any,
    method: str,
    path: str,
    *,
    query: Mapping[str, str] | None = None,
    body: Any = None,
    content_type: str | None = None,
    timeout: aiohttp.ClientTimeout = _REQUEST_TIMEOUT,  # noqa: ASYNC109
) -> aiohttp.ClientResponse:
    """Send one request; the response is open and its status below 300. Raises ApiError."""
    headers = {"Accept": "application/json"}
    if content_type:
        headers["Content-Type"] = content_type
    arguments = await client.param_serialize(
        method=method,
        resource_path=path,
        query_params=list((query or {}).items()),
        header_params=headers,
        body=body,
        auth_settings=["BearerToken"],
    )
    try:
        answer = await client.call_api(*arguments, _request_timeout=timeout)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ApiError(0, "Unreachable", f"{method} {path}: {error or type(error).__name__}") from error
    response: aiohttp.ClientResponse = answer.response
    if response.status < 300:
        return response
    try:
        content = await response.read()
    except (aiohttp.ClientError, TimeoutError, OSError):
        content = b""
    raise _refused(response.status, response.reason or "", content)


async def request(
    client: Any,
    method: str,
    path: str,
    *,
    query: Mapping[str, str] | None = None,
    body: Any = None,
    content_type: str | None = None,
) -> dict[str, Any]:
    """Send one request and read its answer, a JSON object. Raises ApiError."""
    response = await open_response(client, method, path, query=query, body=body, content_type=content_type)
    try:
        content = await response.read()
        answer = json.loads(content) if content else {}
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ApiError(0, "Unreachable", f"{method} {path}: {error or type(error).__name__}") from error
    except (ValueError, RecursionError) as error:
        raise ApiError(0, "Unreadable", f"{method} {path}: the answer is not JSON") from error
    if not isinstance(answer, dict):
        raise ApiError(0, "Unreadable", f"{method} {path}: the answer is not a JSON object")
    return answer


def _refused(status: int, reason: str, content: bytes) -> ApiError:
    try:
        answer = json.loads(content)
        reason = answer.get("reason") or reason
        message = answer.get("message") or ""
    except (ValueError, AttributeError, RecursionError):
        message = content.decode("utf-8", "replace")
    return ApiError(status, reason, str(message)[:_MESSAGE_LIMIT])
