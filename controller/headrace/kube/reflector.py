"""A list-watch reflector: a dictionary that follows a kind of objects in the API server.

Three layers, each simple because the one below it ends: `run` never ends and backs off after failures; `_follow` lists
once and watches on from there until the server says that it no longer can; `_watch` is a single watch request.
A list is compared with what was known, so an object that vanished while nobody watched is gone here too.
(The shape is that of kopf's watching module; the protocol is "Efficient detection of changes" of the API concepts.)"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, TypedDict

import aiohttp
import msgspec

from headrace.core.fields import mapping, text
from headrace.kube.client import ApiError, Resource, open_response
from headrace.kube.objects import list_with_version

__all__ = ["Object", "ObjectStore", "OnMalformed", "Reflector", "Resource"]

logger = logging.getLogger(__name__)

Object = dict[str, Any]
Key = tuple[str, str]
# Is told the plural of a kind of which something could not be used.
OnMalformed = Callable[[str], None]

# A watch is asked to end after so many seconds, and given up a little later: a peer that keeps the connection and says
# nothing is noticed by that. So what is known is at most 20 s old.
WATCH_SECONDS = (10, 15)
WATCH_GRACE_SECONDS = 3.0
_BACKOFF_SECONDS = (0.2, 10.0)
# A watch that ends sooner is not followed by another at once; one that brought nothing is a failure.
_SHORT_SECONDS = 1.0
# A kind that is forbidden or not served is asked for again now and then: roles and CRDs can come later.
_ABSENT_SECONDS = 15.0
# A starting API server answers 403 or 404 before it has read its roles and CRDs. What is known is kept that often.
_REFUSALS_BELIEVED_AFTER = 3
# Something on the way garbles the watch: it will do so again.
_GARBLED_SECONDS = 1.0
# Complaints about objects that are remembered, so that each is logged once.
_MOST_COMPLAINTS = 1000


class ExpiredError(Exception):
    """The server no longer knows the resource version: list again."""


# An object has at most 1.5 MiB in etcd, and its JSON not much more.
LONGEST_LINE = 8 << 20


class MalformedEvent(ExpiredError):  # noqa: N818
    """A line of a watch that is no event: whatever it was to say can only be had by a list."""


def key_of(found: Mapping[str, Any]) -> Key:
    """(namespace, name) of an object; namespace "" for cluster-scoped kinds."""
    metadata = mapping(found.get("metadata"))
    return (text(metadata.get("namespace")), text(metadata.get("name")))


def check_metadata(found: object) -> str:
    """What is wrong with an object's metadata, which everybody relies on; "" if nothing is."""
    if not isinstance(found, Mapping) or not isinstance(metadata := found.get("metadata"), Mapping):
        return "it has no metadata"
    for field in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp"):
        if not isinstance(metadata.get(field), str | None):
            return f"metadata.{field} is no text"
    if not metadata.get("name"):
        return "metadata.name is missing"
    for field in ("labels", "annotations"):
        value = metadata.get(field)
        if value is not None and not (
            isinstance(value, Mapping) and all(isinstance(part, str) for pair in value.items() for part in pair)
        ):
            return f"metadata.{field} is no map of texts"
    return ""


class _Event(TypedDict):
    type: str
    object: Object


_EVENTS = msgspec.json.Decoder(_Event)


def read_event(line: bytes) -> Mapping[str, Any]:
    """The event of a line of a watch: `type` and `object`. Raises MalformedEvent."""
    try:
        return _EVENTS.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise MalformedEvent(f"a line of a watch is no event: {line[:100]!r}") from None


class ObjectStore:
    """The objects of one kind, changed by lists and watch events. No I/O.

    An object with malformed metadata is left out; `on_malformed` is told what is wrong with it."""

    def __init__(self, on_malformed: Callable[[str], None] = lambda why: None) -> None:
        self.objects: dict[Key, Object] = {}
        self._on_malformed = on_malformed

    def replace(self, listed: Iterable[Object]) -> bool:
        """Everything is now what was listed. True if that changed anything."""
        new = {key_of(found): _trimmed(found) for found in listed if self._is_usable(found)}
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
            raise ExpiredError(str(mapping(found).get("message", "unreadable watch event"))[:200])
        key = key_of(found)
        if kind in ("ADDED", "MODIFIED") and self._is_usable(found):
            old = self.objects.get(key)
            self.objects[key] = _trimmed(found)
            return old is None or _version(old) != _version(found)
        if kind == "DELETED":
            return self.objects.pop(key, None) is not None
        return False

    def _is_usable(self, found: object) -> bool:
        why = check_metadata(found)
        if why:
            namespace, name = key_of(mapping(found))
            self._on_malformed(f"{namespace}/{name} is left out: {why}")
        return not why


def _version(found: Mapping[str, Any]) -> tuple[str, str]:
    metadata = mapping(found.get("metadata"))
    return (text(metadata.get("uid")), text(metadata.get("resourceVersion")))


def _trimmed(found: Object) -> Object:
    # Often the larger half of an object, and nobody here reads it.
    found["metadata"].pop("managedFields", None)
    return found


@dataclass(eq=False)
class Reflector:
    """Follows the objects of a resource, in one namespace or all, narrowed by selectors.

    `objects` is the newest known state, keyed by (namespace, name). `on_change` is called, synchronously, after
    each batch of changes and after the first list, whatever it held; `on_malformed`, with the kind's plural, for
    each object and each line of a watch that cannot be used: it is logged and left out. `run` has to run for anything
    to happen. A watch is asked to end after `watch_seconds`, from the first to the second, and given up `grace_seconds`
    later."""

    client: Any
    resource: Resource
    _: KW_ONLY
    namespace: str | None = None
    label_selector: str | None = None
    field_selector: str | None = None
    on_change: Callable[[], None] = lambda: None
    on_malformed: OnMalformed = lambda kind: None
    watch_seconds: tuple[int, int] = WATCH_SECONDS
    grace_seconds: float = WATCH_GRACE_SECONDS

    def __post_init__(self) -> None:
        # Whether a list has succeeded since the start.
        self.synced = False
        # Whether a watch is open now: changes reach us as they happen.
        self.live = False
        selectors = {"labelSelector": self.label_selector, "fieldSelector": self.field_selector}
        self._selectors = {name: value for name, value in selectors.items() if value}
        self._complaints: set[str] = set()
        self._store = ObjectStore(self._malformed)
        self._settled = asyncio.Event()
        self._unavailable = ""
        self._refusals = 0
        self._failing = False
        self._delay = _BACKOFF_SECONDS[0]

    @property
    def objects(self) -> Mapping[Key, Object]:
        """The newest known objects. Not to be changed by the reader."""
        return self._store.objects

    @property
    def forbidden(self) -> bool:
        """Whether the API server last said that we may not read this."""
        return self._unavailable == "forbidden"

    @property
    def absent(self) -> bool:
        """Whether the API server last said that it does not serve this kind: its CRD is not installed."""
        return self._unavailable == "absent"

    async def wait_settled(self) -> None:
        """Until the first list has succeeded, or the server has said that there is nothing to be had."""
        await self._settled.wait()

    async def run(self) -> None:
        """Follow until cancelled. Failures are logged, once for each spell of them, and waited out."""
        while True:
            try:
                await self._follow()
            except ExpiredError as error:
                logger.info("listing %s again: %s", self.resource, error)
                garbled = isinstance(error, MalformedEvent)
                await asyncio.sleep(_GARBLED_SECONDS if garbled else random.uniform(0, _BACKOFF_SECONDS[0]))
            except ApiError as error:
                await asyncio.sleep(self._failed(error) * random.uniform(0.5, 1.0))

    async def _follow(self) -> None:
        """List, then watch on from there until the server cannot."""
        version = await self._list()
        now = asyncio.get_running_loop().time
        while True:
            opened, spoke = now(), False
            # Closed at once where an event ends it: `live` would still say that changes reach us.
            async with contextlib.aclosing(self._watch(version)) as batches:
                async for lines in batches:
                    spoke, self._delay = True, _BACKOFF_SECONDS[0]
                    version = self._apply(lines) or version
            if now() - opened >= _SHORT_SECONDS:
                self._delay = _BACKOFF_SECONDS[0]
            elif spoke:
                await asyncio.sleep(_BACKOFF_SECONDS[0])
            else:
                raise ApiError(0, "Unreachable", f"the watch of {self.resource} ended at once")

    def _apply(self, lines: Iterable[bytes]) -> str:
        """The events of some lines. Gives the newest version they name. Raises ExpiredError."""
        changed = False
        version = ""
        garbled: MalformedEvent | None = None
        try:
            for line in filter(None, lines):
                try:
                    event = read_event(line)
                except MalformedEvent as error:
                    self._malformed(str(error))
                    garbled = error
                    continue
                changed = self._store.apply(event) or changed
                version = _version(event["object"])[1] or version
        finally:
            # Also before a list: that would find nothing new in what was applied here.
            if changed:
                self.on_change()
        if garbled is not None:
            raise garbled
        return version

    def _too_long(self) -> MalformedEvent:
        error = MalformedEvent(f"a line of a watch has over {LONGEST_LINE} bytes")
        self._malformed(str(error))
        return error

    def _malformed(self, why: str) -> None:
        self.on_malformed(self.resource.plural)
        if why not in self._complaints and len(self._complaints) < _MOST_COMPLAINTS:
            self._complaints.add(why)
            logger.warning("%s: %s", self.resource, why)

    async def _list(self) -> str:
        try:
            path = self.resource.path(self.namespace)
            items, version = await list_with_version(self.client, path, self._selectors)
        except ApiError as error:
            if error.status == 410:
                raise ExpiredError("the list took too long for its continue token") from error
            raise
        self._recovered()
        changed = self._store.replace(items)
        first, self.synced = not self.synced, True
        self._settled.set()
        if changed or first:
            self.on_change()
        return version

    async def _watch(self, version: str) -> AsyncGenerator[list[bytes], None]:
        """One watch request: batches of lines, as they arrive together. Ends when the server does, or should."""
        seconds = random.randint(*self.watch_seconds)
        query = {
            **self._selectors,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(seconds),
        }
        timeout = aiohttp.ClientTimeout(total=seconds + self.grace_seconds)
        path = self.resource.path(self.namespace)
        try:
            response = await open_response(self.client, "GET", path, query=query, timeout=timeout)
        except ApiError as error:
            if error.status == 410:
                raise ExpiredError(str(error)) from error
            raise
        parts: list[bytes] = []
        size = 0
        self.live = True
        try:
            async for chunk in response.content.iter_any():
                end, *lines = chunk.split(b"\n")
                parts.append(end)
                size += len(end)
                if size > LONGEST_LINE:
                    raise self._too_long()
                if lines:
                    yield [b"".join(parts), *lines[:-1]]
                    parts, size = lines[-1:], len(lines[-1])
        except TimeoutError:
            logger.info("%s: the watch has not ended in time; opening another", self.resource)
        except (aiohttp.ClientError, OSError) as error:
            raise ApiError(0, "Unreachable", f"watch of {path}: {error or type(error).__name__}") from error
        finally:
            self.live = False
            response.close()

    def _failed(self, error: ApiError) -> float:
        """Note a failure; the seconds to wait before the next try."""
        unavailable = {403: "forbidden", 404: "absent"}.get(error.status, "")
        if not unavailable:
            if not self._failing:
                logger.warning("%s: %s; keeping what is known and trying again", self.resource, error)
            self._failing = True
            delay, self._delay = self._delay, min(self._delay * 2, _BACKOFF_SECONDS[1])
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
            self.on_change()
        return _ABSENT_SECONDS

    def _recovered(self) -> None:
        if self._failing or self._unavailable:
            logger.info("%s can be read again", self.resource)
        self._failing = False
        self._refusals = 0
        self._unavailable = ""
