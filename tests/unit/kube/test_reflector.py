"""The object store: lists compared with what was known, watch events applied, errors that end a watch."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.kube.client import ApiError, Resource
from headrace.kube.reflector import ExpiredError, ObjectStore, Reflector, key_of


def made(name: str, version: int = 1) -> dict[str, Any]:
    metadata = {"namespace": "default", "name": name, "uid": f"uid-{name}", "resourceVersion": str(version)}
    return {"metadata": {**metadata, "managedFields": [{"manager": "kubectl"}]}}


def test_a_list_removes_what_vanished_while_nobody_watched() -> None:
    store = ObjectStore()
    assert store.replace([made("a"), made("b")])
    assert store.replace([made("b"), made("c")])
    assert set(store.objects) == {("default", "b"), ("default", "c")}


def test_an_equal_list_changes_nothing() -> None:
    store = ObjectStore()
    store.replace([made("a")])
    assert not store.replace([made("a")])
    assert store.replace([made("a", 2)])


def test_an_object_deleted_and_made_again_is_a_change() -> None:
    store = ObjectStore()
    store.replace([made("a")])
    again = made("a")
    again["metadata"]["uid"] = "another"
    assert store.replace([again])


@pytest.mark.parametrize(
    ("event", "changed", "names"),
    [
        ({"type": "ADDED", "object": made("b")}, True, {"a", "b"}),
        ({"type": "MODIFIED", "object": made("a", 2)}, True, {"a"}),
        ({"type": "MODIFIED", "object": made("a")}, False, {"a"}),
        ({"type": "DELETED", "object": made("a", 3)}, True, set()),
        ({"type": "DELETED", "object": made("z")}, False, {"a"}),
        ({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}}, False, {"a"}),
    ],
)
def test_events(event: dict[str, Any], changed: bool, names: set[str]) -> None:
    store = ObjectStore()
    store.replace([made("a")])
    assert store.apply(event) is changed
    assert {name for _, name in store.objects} == names


@pytest.mark.parametrize(
    "event", [{"type": "ERROR", "object": {"code": 410, "message": "too old"}}, {"type": "ADDED"}, {}]
)
def test_errors_of_the_server_end_the_watch(event: dict[str, Any]) -> None:
    with pytest.raises(ExpiredError):
        ObjectStore().apply(event)


def test_managed_fields_are_not_kept() -> None:
    store = ObjectStore()
    store.replace([made("a")])
    store.apply({"type": "ADDED", "object": made("b")})
    assert all("managedFields" not in found["metadata"] for found in store.objects.values())


@given(
    st.lists(st.tuples(st.sampled_from(["ADDED", "MODIFIED", "DELETED"]), st.sampled_from("abc"), st.integers(1, 4)))
)
def test_the_store_is_what_the_events_say(events: list[tuple[str, str, int]]) -> None:
    store, expected = ObjectStore(), {}
    for kind, name, version in events:
        store.apply({"type": kind, "object": made(name, version)})
        if kind == "DELETED":
            expected.pop(name, None)
        else:
            expected[name] = str(version)
    assert {name: found["metadata"]["resourceVersion"] for (_, name), found in store.objects.items()} == expected


class Scripted(Reflector):
    """Its watches bring what the test says, and then end; past the last one they fail."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.script: list[list[bytes]] = []

    async def _list(self) -> str:
        self._recovered()
        return "1"

    async def _watch(self, version: str) -> AsyncGenerator[list[bytes], None]:
        if not self.script:
            raise GONE
        if lines := self.script.pop(0):
            yield [line for line in lines if line != b"GONE"]
        if b"GONE" in lines:
            raise GONE


PODS = Resource("", "v1", "pods", True)
GONE = ApiError(0, "Unreachable", "m")


async def test_pauses_grow_until_a_watch_has_worked() -> None:
    reflector = Scripted(None, PODS)
    first = [reflector._failed(GONE) for _ in range(9)]
    assert first == sorted(first)
    assert first[-1] == 10.0
    with pytest.raises(ApiError):
        await reflector._follow()  # a list alone is no sign that the next watch works
    assert reflector._failed(GONE) == 10.0
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "7"}}}
    # One that brought something, and broke then, is one.
    reflector.script = [[json.dumps(bookmark).encode(), b"GONE"]]
    with pytest.raises(ApiError):
        await reflector._follow()
    assert reflector._failed(GONE) == first[0] < first[1]


async def test_a_watch_that_ends_at_once_is_a_failure() -> None:
    reflector = Scripted(None, PODS)
    reflector.script = [[], []]
    with pytest.raises(ApiError, match="ended at once"):
        await reflector._follow()
    assert reflector.script == [[]]


def test_paths() -> None:
    pods = Resource("", "v1", "pods", True)
    pools = Resource("inference.networking.k8s.io", "v1", "inferencepools", True)
    classes = Resource("gateway.networking.k8s.io", "v1", "gatewayclasses", False)
    assert pods.path() == "/api/v1/pods"
    assert pods.path("default", "a") == "/api/v1/namespaces/default/pods/a"
    assert pools.path("x", "p", "status") == "/apis/inference.networking.k8s.io/v1/namespaces/x/inferencepools/p/status"
    assert classes.path("ignored", "c") == "/apis/gateway.networking.k8s.io/v1/gatewayclasses/c"
    assert key_of({"metadata": {"name": "c"}}) == ("", "c")
