"""Who belongs to a pool: its Pods and its picker's, page by page, and why there are none."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.config.pools import parse_pool
from headrace.core import Pool
from headrace.kube import objects
from headrace.kube.client import ApiError
from headrace.kube.members import pickers_of, pods_of, proxy_path

SERVICE = {"spec": {"selector": {"app": "epp", "tier": "x"}, "ports": [{"name": "grpc", "port": 9002}]}}


def pool(**reference: Any) -> Pool:
    picker = {"name": "epp", "port": {"number": 9002}, **reference}
    spec = {"selector": {"matchLabels": {"app": "m"}}, "targetPorts": [{"number": 8000}], "endpointPickerRef": picker}
    return parse_pool(
        {"apiVersion": "inference.networking.k8s.io/v1", "metadata": {"name": "p", "namespace": "n"}, "spec": spec}
    )


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The Service, and the Pods of each label selector in pages of two."""
    held: dict[str, Any] = {"service": SERVICE, "pods": {}, "asked": []}

    async def request(client: Any, method: str, path: str, *, query: dict[str, str] | None = None, **_: Any) -> Any:
        assert method == "GET"
        if path.endswith("/services/epp"):
            if held["service"] is None:
                raise ApiError(404, "NotFound", path)
            return held["service"]
        assert query is not None
        held["asked"].append(query["labelSelector"])
        found, start = held["pods"].get(query["labelSelector"], []), int(query.get("continue", "0"))
        more = {"continue": str(start + 2)} if start + 2 < len(found) else {}
        return {"items": found[start : start + 2], "metadata": more}

    monkeypatch.setattr(objects, "request", request)
    return held


def pods(count: int) -> list[dict[str, Any]]:
    return [{"metadata": {"name": f"pod-{number}"}} for number in range(count)]


async def test_all_pages_of_pods_are_read(api: dict[str, Any]) -> None:
    api["pods"]["app=m"] = pods(5)
    assert list(await pods_of(None, pool())) == pods(5)
    assert api["asked"] == ["app=m"] * 3


@pytest.mark.parametrize(
    ("ports", "port"),
    [
        ([{"name": "grpc", "port": 9002}], 9090),
        ([{"name": "metrics", "port": 9100}], 9100),
        ([{"name": "http-metrics", "port": 80, "targetPort": 9200}], 9200),
        ([{"name": "metrics", "port": 80, "targetPort": "named"}], 9090),
    ],
)
async def test_where_a_picker_has_its_metrics(api: dict[str, Any], ports: list[Any], port: int) -> None:
    api["service"] = {"spec": {**SERVICE["spec"], "ports": ports}}
    api["pods"]["app=epp,tier=x"] = pods(1)
    found = await pickers_of(None, pool())
    assert (list(found.pods), found.metrics_port, found.trouble) == (pods(1), port, "")


@pytest.mark.parametrize(
    ("service", "reference", "words"),
    [
        (SERVICE, {"kind": "Picker"}, "is a Picker"),
        (None, {}, "does not exist"),
        ({"spec": {}}, {}, "selects no Pods"),
        (SERVICE, {}, "no Pod is behind Service n/epp"),
    ],
)
async def test_why_there_is_no_picker(api: dict[str, Any], service: Any, reference: Any, words: str) -> None:
    api["service"] = service
    found = await pickers_of(None, pool(**reference))
    assert not found.pods
    assert words in found.trouble


def test_the_path_of_a_pods_page() -> None:
    assert proxy_path("n", "a", 9090, "/metrics") == "/api/v1/namespaces/n/pods/a:9090/proxy/metrics"
