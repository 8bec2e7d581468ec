"""A list-watch reflector: a dictionary that follows a kind of objects in the API server.

Three layers, each simple because the one below it ends: `run` never ends and backs off after failures; `_follow` lists
once and watches on from there until the server says that it no longer can; `_watch` is a single watch request.
A list is compared with what was known, so an object that vanished while nobody watched is gone here too.
(The shape is that of kopf's watching module; the protocol is "Efficient detection of changes" of the API concepts.)"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

import aiohttp

from headrace.kube.client import ApiError, Resource, open_response, request

__all__ = ["Object", "ObjectStore", "Reflector", "Resource"]

logger = logging.getLogger(__name__)

Object = dict[str, Any]
Key = tuple[str, str]

# A watch is asked to end after about this many seconds, so a connection that died silently is noticed soon after.
_WATCH_SECONDS = (45, 60)
_WATCH_GRACE_SECONDS = 15.0
_BACKOFF_SECONDS = (0.2, 10.0)
# A kind that is forbidden or not served is asked for again now and then: roles and CRDs can come later.
_ABSENT_SECONDS = 15.0
# A starting API server answers 403 or 404 before it has read its roles and CRDs. What is known is kept that often.
_REFUSALS_BELIEVED_AFTER = 3
_PAGE_SIZE = 500


class ExpiredError(Exception):
    """The server no longer knows the resource version: list again."""


def key_of(found: Mapping[str, Any]) -> Key:
    """(namespace, name) of an object; namespace "" for cluster-scoped kinds."""
    metadata = found.get("metadata") or {}
    return (metadata.get("namespace") or "", metadata.get("name") or "")


class ObjectStore:
    """The objects of one kind, changed by lists and watch events. No I/O."""

    def __init__(self) -> None:
        self.objects: dict[Key, Object] = {}

    def replace(self, listed: Iterable[Object]) -> bool:
        """Everything is now what was listed. True if that changed anything."""
        new = {key_of(found): _trimmed(found) for found in listed}
        changed = {key: _version(found) for key, found in new.items()} != {
            key: _version(found) for key, found in self.objects.items()
        }
        self.objects = new
        return changed

    def apply(self, event: Mapping[str, Any]) -> bool:
        """One watch event. True if it changed an object; bookmarks do not.

        Raises ExpiredError for the server's own errors: what follows them is not to be trusted."""
        kind, found = event.get("type"), event.get("object")
        if kind == "ERROR" or not isinstance(found, dict):
            raise ExpiredError(str((found or {}).get("message", "unreadable watch event"))[:200])
        key = key_of(found)
        if kind in ("ADDED", "MODIFIED"):
            old = self.objects.get(key)
            self.objects[key] = _trimmed(found)
            return old is None or _version(old) != _version(found)
        if kind == "DELETED":
            return self.objects.pop(key, None) is not None
        return False


def _version(found: Mapping[str, Any]) -> tuple[str, str]:
    metadata = found.get("metadata") or {}
    return (metadata.get("uid") or "", metadata.get("resourceVersion") or "")


def _trimmed(found: Object) -> Object:
    # Often the larger half of an object, and nobody here reads it.
    found.get("metadata", {}).pop("managedFields", None)
    return found


class Reflector:
    """Follows the objects of a resource, in one namespace or all, narrowed by selectors.

    `objects` is the newest known state, keyed by (namespace, name). `on_change` is called, synchronously, after
    each batch of changes and after the first list, whatever it held. `run` has to run for anything to happen."""

    def __init__(
        self,
        client: Any,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self._client = client
        self.resource = resource
        self._namespace = namespace
        selectors = {"labelSelector": label_selector, "fieldSelector": field_selector}
        self._selectors = {name: value for name, value in selectors.items() if value}
        self._on_change = on_change or (lambda: None)
        self._store = ObjectStore()
        self._synced = asyncio.Event()
        self._settled = asyncio.Event()
        self._unavailable = ""
        self._refusals = 0
        self._failing = False
        self._watching = False

    @property
    def objects(self) -> Mapping[Key, Object]:
        """The newest known objects. Not to be changed by the reader."""
        return self._store.objects

    @property
    def synced(self) -> bool:
        """Whether a list has succeeded since the start."""
        return self._synced.is_set()

    @property
    def forbidden(self) -> bool:
        """Whether the API server last said that we may not read this."""
        return self._unavailable == "forbidden"

    @property
    def absent(self) -> bool:
        """Whether the API server last said that it does not serve this kind: its CRD is not installed."""
        return self._unavailable == "absent"

    @property
    def live(self) -> bool:
        """Whether a watch is open now: changes reach us as they happen."""
        return self._watching

    async def wait_synced(self) -> None:
        """Until the first list has succeeded."""
        await self._synced.wait()

    async def wait_settled(self) -> None:
        """Until the first list has succeeded, or the server has said that there is nothing to be had."""
        await self._settled.wait()

    async def run(self) -> None:
        """Follow until cancelled. Failures are logged, once for each spell of them, and waited out."""
        delay = _BACKOFF_SECONDS[0]
        while True:
            try:
                await self._follow()
                delay = _BACKOFF_SECONDS[0]
            except ExpiredError as error:
                logger.info("listing %s again: %s", self.resource, error)
                await asyncio.sleep(random.uniform(0, _BACKOFF_SECONDS[0]))
            except ApiError as error:
                pause = self._failed(error, delay)
                delay = min(delay * 2, _BACKOFF_SECONDS[1]) if self._failing else _BACKOFF_SECONDS[0]
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    async def _follow(self) -> None:
        """List, then watch on from there until the server cannot."""
        version = await self._list()
        while True:
            async for events in self._watch(version):
                changed = False
                for event in events:
                    changed = self._store.apply(event) or changed
                    version = (event["object"].get("metadata") or {}).get("resourceVersion") or version
                if changed:
                    self._on_change()

    async def _list(self) -> str:
        items: list[Object] = []
        query = {**self._selectors, "limit": str(_PAGE_SIZE)}
        path = self.resource.path(self._namespace)
        while True:
            try:
                page = await request(self._client, "GET", path, query=query)
            except ApiError as error:
                if error.status == 410:
                    raise ExpiredError("the list took too long for its continue token") from error
                raise
            items += page.get("items") or []
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                break
            query["continue"] = metadata["continue"]
        self._recovered()
        changed = self._store.replace(items)
        first = not self._synced.is_set()
        self._synced.set()
        self._settled.set()
        if changed or first:
            self._on_change()
        return str(metadata.get("resourceVersion") or "")

    async def _watch(self, version: str) -> AsyncIterator[list[Mapping[str, Any]]]:
        """One watch request: batches of events, as they arrive together. Ends when the server ends it."""
        seconds = random.randint(*_WATCH_SECONDS)
        query = {
            **self._selectors,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(seconds),
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=seconds + _WATCH_GRACE_SECONDS)
        path = self.resource.path(self._namespace)
        try:
            response = await open_response(self._client, "GET", path, query=query, timeout=timeout)
        except ApiError as error:
            if error.status == 410:
                raise ExpiredError(str(error)) from error
            raise
        rest = b""
        self._watching = True
        try:
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                if lines:
                    yield [json.loads(line) for line in lines if line]
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, "Unreachable", f"watch of {path}: {error or type(error).__name__}") from error
        except ValueError as error:
            raise ExpiredError("unreadable watch event") from error
        finally:
            self._watching = False
            response.close()

    def _failed(self, error: ApiError, delay: float) -> float:
        """Note a failure; the seconds to wait before the next try."""
        unavailable = {403: "forbidden", 404: "absent"}.get(error.status, "")
        if not unavailable:
            if not self._failing:
                logger.warning("%s: %s; keeping what is known and trying again", self.resource, error)
            self._failing = True
            return delay
        self._refusals += 1
        if unavailable != self._unavailable:
            logger.warning("%s cannot be read (%s); asking again now and then", self.resource, error)
        self._unavailable = unavailable
        self._settled.set()
        if self._refusals < _REFUSALS_BELIEVED_AFTER:
            return _BACKOFF_SECONDS[1] / 5
        # Forbidden objects are still there, as far as we know. Those of a kind that is gone are not.
        if unavailable == "absent" and self._store.replace(()):
            self._on_change()
        return _ABSENT_SECONDS

    def _recovered(self) -> None:
        if self._failing or self._unavailable:
            logger.info("%s can be read again", self.resource)
        self._failing = False
        self._refusals = 0
        self._unavailable = ""
