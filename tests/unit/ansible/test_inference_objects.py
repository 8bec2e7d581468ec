"""What is told of objects that several queries find: who they are, and nothing of what they contain."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest


def query(kind: str, **keys: Any) -> dict[str, Any]:
    return {"api_version": "v1", "kind": kind, "namespace": "", "name": "", "labels": [], "tag": "", **keys}


def item(name: str, namespace: str = "n", **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace, **metadata}, "data": {"secret": "hidden"}}


def test_an_object_is_told_once_and_of_the_first_query(objects: ModuleType) -> None:
    listed = {"Secret": [item("a"), item("b", namespace="")], "Lease": [item("a")]}
    queries = [query("Secret", tag="first"), query("Secret", tag="second"), query("Lease", tag="third")]
    found = objects.find(lambda one: listed[one["kind"]], queries)
    assert [(one["tag"], one["kind"], one["namespace"], one["name"]) for one in found] == [
        ("first", "Secret", "n", "a"),
        ("first", "Secret", "", "b"),
        ("third", "Lease", "n", "a"),
    ]


def test_nothing_of_the_content_is_told(objects: ModuleType) -> None:
    [found] = objects.find(lambda one: [item("a", annotations={"last-applied": "hidden"})], [query("Secret")])
    assert "hidden" not in str(found)


def test_a_name_is_matched_whole(objects: ModuleType) -> None:
    names = ["eg", "eg2", "x.gateway.envoyproxy.io"]
    for pattern, right in (("eg", ["eg"]), (r".*\.gateway\.envoyproxy\.io", names[2:]), ("", names)):
        found = objects.find(lambda one: [item(name) for name in names], [query("Lease", name=pattern)])
        assert [one["name"] for one in found] == right


def test_who_wrote_it_whether_it_is_owned_and_whether_it_ends(objects: ModuleType) -> None:
    managed = [{"manager": "headrace"}, {"manager": "kubectl"}, {"manager": "headrace"}]
    ending = item("a", managedFields=managed, ownerReferences=[{}], deletionTimestamp="now", labels={"l": "v"})
    plain, other = objects.find(lambda one: [item("b"), ending], [query("Pod")])
    assert (plain["managers"], plain["owned"], plain["ending"], plain["labels"]) == ([], False, False, {})
    assert (other["managers"], other["owned"], other["ending"]) == (["headrace", "kubectl"], True, True)
    assert other["labels"] == {"l": "v"}


def test_a_kind_whose_definition_has_just_gone_has_no_objects(objects: ModuleType) -> None:
    """Discovery is cached on disk: the client still knows the kind, and the API server says 404."""
    cluster = objects.Cluster.__new__(objects.Cluster)

    class Client:
        def __init__(self, status: int) -> None:
            self.resources, self.status = self, status

        def get(self, **_: Any) -> Client:
            return self

        def path(self, **_: Any) -> str:
            return "/apis/gone"

        def request(self, *_: Any, **__: Any) -> Any:
            raise objects.kubernetes.client.exceptions.ApiException(status=self.status, reason="so")

    cluster.client = Client(404)
    assert cluster.listed(query("Gone")) == []
    cluster.client = Client(403)
    with pytest.raises(objects.kubernetes.client.exceptions.ApiException):
        cluster.listed(query("Hidden"))
