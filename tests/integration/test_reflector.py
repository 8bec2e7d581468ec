"""The reflector against a real API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from headrace.kube.client import ApiError, ConfigurationError, Resource, connect
from headrace.kube.objects import apply, patch_status
from headrace.kube.reflector import Reflector

from ..hang import HANG_SECONDS
from ..list_watch import eventually
from .apiserver import ApiServer

CONFIG_MAPS = Resource("", "v1", "configmaps", True)
POOLS = Resource("inference.networking.k8s.io", "v1", "inferencepools", True)


def config_map(name: str, **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default", "labels": labels},
        "data": {"key": "value"},
    }


@asynccontextmanager
async def following(api: ApiServer, resource: Resource, **arguments: Any) -> AsyncIterator[tuple[Any, Reflector, Any]]:
    """A client, a running reflector, and a function that waits until a condition on its objects holds."""
    client = await connect(str(api.kubeconfig))
    changed = asyncio.Event()
    reflector = Reflector(client, resource, on_change=changed.set, **arguments)
    task = asyncio.create_task(reflector.run())

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(HANG_SECONDS):
            while not condition():
                changed.clear()
                if not condition():
                    await changed.wait()

    try:
        yield client, reflector, until
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.close()


async def test_objects_come_change_and_go(api: ApiServer) -> None:
    async with following(api, CONFIG_MAPS, namespace="default", label_selector="follow=yes") as (client, found, until):
        await asyncio.wait_for(found.wait_settled(), HANG_SECONDS)
        await apply(client, CONFIG_MAPS, config_map("one", follow="yes"))
        await apply(client, CONFIG_MAPS, config_map("other", follow="no"))
        await until(lambda: ("default", "one") in found.objects)
        await apply(client, CONFIG_MAPS, {**config_map("one", follow="yes"), "data": {"key": "new"}})
        await until(lambda: found.objects["default", "one"]["data"] == {"key": "new"})
        await asyncio.to_thread(api.kubectl, "delete", "configmap", "one")
        await until(lambda: not found.objects)


async def test_a_kind_that_is_not_served_settles_and_comes_to_life_later(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.kube.reflector._ABSENT_SECONDS", 0.2)
    later = Resource("later.headrace.dev", "v1", "things", True)
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.later.headrace.dev"},
        "spec": {
            "group": "later.headrace.dev",
            "names": {"kind": "Thing", "plural": "things"},
            "scope": "Namespaced",
            "versions": [{
                "name": "v1", "served": True, "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object"}},
            }],
        },
    }  # fmt: skip
    async with following(api, later) as (_, found, _until):
        await asyncio.wait_for(found.wait_settled(), HANG_SECONDS)
        assert found.absent
        assert not found.synced
        await asyncio.to_thread(api.apply, definition)
        async with asyncio.timeout(HANG_SECONDS):
            await eventually(lambda: found.synced)
        assert not found.absent


async def test_status_is_written_only_over_the_version_that_was_read(api: ApiServer) -> None:
    pool = {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": {"name": "status", "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": "x"}}, "targetPorts": [{"number": 8000}]},
    }
    status = {"parents": [{"parentRef": {"name": "gateway"}, "conditions": []}]}
    client = await connect(str(api.kubeconfig))
    try:
        made = await apply(client, POOLS, pool)
        await patch_status(client, POOLS, made, status)
        with pytest.raises(ApiError) as conflict:
            await patch_status(client, POOLS, made, {"parents": []})
        assert conflict.value.status == 409
    finally:
        await client.close()
    assert api.get("infpool", "status")["status"]["parents"][0]["parentRef"]["name"] == "gateway"


async def test_without_a_cluster_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    with pytest.raises(ConfigurationError, match="--kubeconfig"):
        await connect()
    with pytest.raises(ConfigurationError, match="no kubeconfig at"):
        await connect("/does/not/exist")


async def test_an_unreachable_server_is_one_error_class(tmp_path: Any, api: ApiServer) -> None:
    text = api.kubeconfig.read_text()
    port = text.split("https://127.0.0.1:")[1].split('"')[0]
    broken = tmp_path / "kubeconfig"
    broken.write_text(text.replace(f"127.0.0.1:{port}", "127.0.0.1:1"))
    client = await connect(str(broken))
    try:
        with pytest.raises(ApiError) as error:
            await apply(client, CONFIG_MAPS, config_map("never"))
        assert error.value.status == 0
    finally:
        await client.close()
