"""What no API server should say: it is left out, logged and counted, and ends no informer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.kube.client import connect
from headrace.kube.lease import holder_of
from headrace.kube.reflector import ExpiredError, MalformedEvent, ObjectStore, Reflector, Resource, read_event
from tests.list_watch import ListWatchServer, eventually, following
from tests.malformed import JSON, broken

PODS = Resource("", "v1", "pods", True)
PATH = "/api/v1/namespaces/n/pods"


def made(name: str, **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "n", "name": name, "uid": name, "resourceVersion": "1", **metadata}}


@contextlib.asynccontextmanager
async def followed(directory: Path) -> AsyncIterator[tuple[ListWatchServer, Reflector, Counter[str]]]:
    server = ListWatchServer()
    server.objects[PATH] = [made("a")]
    client = await connect(str(await server.start(directory)))
    malformed: Counter[str] = Counter()
    reflector = Reflector(client, PODS, namespace="n", on_malformed=lambda kind: malformed.update([kind]))
    try:
        async with following(reflector), asyncio.timeout(20):
            await server.watched(PATH)
            yield server, reflector, malformed
    finally:
        await server.close()


@pytest.mark.parametrize(
    "line", [b"null", b"[]", b"7", b"{", b"\xff\xfe", b'{"type":"ADDED"}', b'{"type":[],"object":{}}', b"[" * 100_000]
)
async def test_a_garbled_line_is_skipped_and_what_it_hid_is_listed(line: bytes, tmp_path: Path) -> None:
    async with followed(tmp_path) as (server, reflector, malformed):
        before = server.lists[PATH]
        server.change(PATH, "ADDED", made("hidden"))  # what the garbled line was to say
        server.send(PATH, line, server.change(PATH, "ADDED", made("b")))
        await eventually(lambda: ("n", "b") in reflector.objects)
        assert malformed == {"pods": 1}
        await eventually(lambda: ("n", "hidden") in reflector.objects)
        assert server.lists[PATH] == before + 1
        await server.watched(PATH, times=2)
        server.send(PATH, server.change(PATH, "DELETED", made("a")))
        await eventually(lambda: ("n", "a") not in reflector.objects)


async def test_a_line_without_end_is_given_up_and_what_it_hid_is_listed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("headrace.kube.reflector.LONGEST_LINE", 1 << 20)
    async with followed(tmp_path) as (server, reflector, malformed):
        before = server.lists[PATH]
        server.change(PATH, "ADDED", made("hidden"))
        # Long, and within the bound.
        server.send(PATH, server.change(PATH, "ADDED", made("long", annotations={"a": "x" * 900_000})))
        await eventually(lambda: ("n", "long") in reflector.objects)
        server.send(PATH, b'{"type":"ADDED","object":{"metadata":{"name":"' + b"x" * (2 << 20))
        await eventually(lambda: malformed == {"pods": 1})
        await eventually(lambda: ("n", "hidden") in reflector.objects)
        assert server.lists[PATH] == before + 1


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"metadata": None},
        {"metadata": []},
        made(""),
        made("b", namespace=[]),
        made("b", uid=7),
        made("b", labels=[]),
        made("b", annotations={"a": None}),
    ],
)
async def test_an_object_with_malformed_metadata_is_left_out(
    found: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with followed(tmp_path) as (server, reflector, malformed):
        event = json.dumps({"type": "ADDED", "object": found}).encode()
        with caplog.at_level(logging.WARNING):
            server.send(PATH, event, event, server.change(PATH, "ADDED", made("c")))
            await eventually(lambda: ("n", "c") in reflector.objects)
        assert set(reflector.objects) == {("n", "a"), ("n", "c")}
        assert malformed == {"pods": 2}
        assert sum("left out" in record.getMessage() for record in caplog.records) == 1
        assert server.lists[PATH] == 1


def test_what_was_applied_before_an_error_is_told() -> None:
    told: list[int] = []
    reflector = Reflector(None, PODS, on_change=lambda: told.append(len(reflector.objects)))
    error = b'{"type":"ERROR","object":{"code":410,"message":"too old"}}'
    for last in (error, b"null"):
        with pytest.raises(ExpiredError):
            reflector._apply([json.dumps({"type": "ADDED", "object": made(str(len(told)))}).encode(), last])
    assert told == [1, 2]


POD = made("a", labels={"app": "m"}, annotations={"x": "y"}, creationTimestamp="2026-01-01T00:00:00Z")


@given(st.lists(broken({"type": "ADDED", "object": POD}) | JSON | st.binary(max_size=20), max_size=5))
def test_any_line_is_an_event_or_none(lines: list[Any]) -> None:
    malformed: list[str] = []
    store = ObjectStore(malformed.append)
    for line in lines:
        with contextlib.suppress(ExpiredError):
            store.apply(read_event(line if isinstance(line, bytes) else json.dumps(line).encode()))
    store.replace([*store.objects.values(), *(line for line in lines if not isinstance(line, bytes))])
    for (namespace, name), found in store.objects.items():
        assert name == found["metadata"]["name"]
        assert isinstance(namespace, str)


def test_events_that_are_none() -> None:
    with pytest.raises(MalformedEvent):
        read_event(b"null")


LEASE = {"metadata": {"name": "l"}, "spec": {"holderIdentity": "h", "leaseDurationSeconds": 15, "leaseTransitions": 1}}


@given(broken(LEASE) | st.none())
def test_any_lease_has_a_holder_or_none(lease: Any) -> None:
    assert isinstance(holder_of(lease), str)
