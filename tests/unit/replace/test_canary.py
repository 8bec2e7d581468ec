"""The routes of a replacement's own: one for each Gateway, found again, and never somebody else's."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from headrace.kube import objects
from headrace.kube.client import ApiError
from headrace.protocol.objects import HOLD_LABEL
from headrace.replace import cluster
from headrace.replace.canary import MOST, parents_of, stem
from headrace.replace.cluster import Cluster
from headrace.replace.machine import WarmedUp
from headrace.replace.plan import PoolRef
from headrace.replace.routes import records
from headrace.replace.state import State
from headrace.replace.warmup import Address

from .test_routes import GA, PLAN, pool, route, rule

ROUTES = "/apis/gateway.networking.k8s.io/v1"


class _Lease:
    async def ensure(self) -> None: ...


class Api:
    """Routes and Gateways in memory; `forbidden` are namespaces where nothing may be made or deleted."""

    def __init__(self, *routes: dict[str, Any]) -> None:
        self.routes = {(one["metadata"]["namespace"], one["metadata"]["name"]): one for one in routes}
        self.gateways: dict[str, dict[str, Any]] = {}
        self.forbidden: set[str] = set()

    async def request(self, client: Any, method: str, path: str, *, body: Any = None, **more: Any) -> Any:
        parts = path.removeprefix(f"{ROUTES}/").split("/")
        namespace = parts[1] if parts[0] == "namespaces" else ""
        if method != "GET" and namespace in self.forbidden:
            raise ApiError(403, "Forbidden", "may not")
        if method == "GET" and path == f"{ROUTES}/httproutes":
            return {"items": copy.deepcopy(list(self.routes.values()))}
        if path == f"{ROUTES}/grpcroutes":
            return {"items": []}
        if parts[2] == "gateways" and parts[3] in self.gateways:
            return self.gateways[parts[3]]
        if method == "POST":
            key = (namespace, body["metadata"]["name"])
            assert key not in self.routes, "somebody else's"
            self.routes[key] = copy.deepcopy(body)
            return copy.deepcopy(body)
        if method == "DELETE":
            return self.routes.pop((namespace, parts[3]))
        raise ApiError(404, "NotFound", path)

    def ours(self) -> list[tuple[str, str]]:
        return sorted(key for key in self.routes if key[1].startswith(stem(PLAN.old)))


def attached(name: str, *gateways: str, namespace: str = "serving") -> dict[str, Any]:
    found = route(rule(pool("old", namespace="serving")), name=name, namespace=namespace)
    found["spec"]["parentRefs"] = [{"name": gateway} for gateway in gateways]
    return found


def world(api: Api, monkeypatch: pytest.MonkeyPatch) -> tuple[Cluster, State]:
    async def no_wait(seconds: float) -> None: ...

    for module in (cluster, objects):
        monkeypatch.setattr(module, "request", api.request)
    monkeypatch.setattr(cluster.asyncio, "sleep", no_wait)
    state = State(run="1", started=0.0, since=0.0, records=records(api.routes.values(), PLAN))
    return Cluster(None, None, PLAN, _Lease(), None), state  # type: ignore[arg-type]


async def test_every_gateway_has_a_route_of_ours_once(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api(attached("a", "one"), attached("b", "one"), attached("c", "two"), attached("d", "one", namespace="far"))
    found, state = world(api, monkeypatch)
    held = await found._hold(state, await found.routes())
    names = [f"{stem(PLAN.old)}0", f"{stem(PLAN.old)}1"]
    # A Gateway that is named without a namespace is in the route's own.
    assert api.ours() == [("far", names[0]), ("serving", names[0]), ("serving", names[1])]
    parents = sorted(str(parent) for each in held for parent in parents_of(each))
    assert parents == ["Gateway far/one", "Gateway serving/one", "Gateway serving/two"]
    assert len({each["spec"]["rules"][0]["matches"][0]["headers"][-1]["value"] for each in held}) == 3
    assert sorted(each["metadata"]["name"] for each in await found._hold(state, await found.routes())) == sorted(
        [names[0], *names]
    )
    await found._release(await found.routes())
    assert api.ours() == []
    assert len(api.routes) == 4


async def test_what_has_the_name_and_is_not_ours_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = attached(f"{stem(PLAN.old)}0", "other")
    theirs["metadata"]["labels"] = {"app": "x"}
    api = Api(attached("a", "one"))
    found, state = world(api, monkeypatch)
    api.routes["serving", theirs["metadata"]["name"]] = copy.deepcopy(theirs)
    await found._hold(state, await found.routes())
    assert api.ours() == [("serving", f"{stem(PLAN.old)}0"), ("serving", f"{stem(PLAN.old)}1")]
    await found._release(await found.routes())
    assert api.routes["serving", theirs["metadata"]["name"]] == theirs
    assert api.ours() == [("serving", theirs["metadata"]["name"])]


def test_pools_of_one_name_have_names_of_their_own() -> None:
    name = "x" * 70
    first, other = PoolRef(GA, "one", name), PoolRef(GA, "two", name)
    assert stem(first) != stem(other)
    assert stem(first).startswith(f"headrace-replace-{name}-canary-")
    assert len(stem(PoolRef(GA, "one", "y" * 253))) < 253
    assert MOST == 8, "as many as role pool_replacement gives the right to delete"


async def test_a_namespace_where_nothing_may_be_made_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api(attached("a", "one"), attached("d", "one", namespace="far"))
    api.forbidden = {"far"}
    found, state = world(api, monkeypatch)
    assert len(await found._hold(state, await found.routes())) == 1
    await found._release(await found.routes())
    api.forbidden = {"far", "serving"}
    with pytest.raises(ApiError):
        await found._hold(state, await found.routes())


async def test_the_warm_up_goes_through_every_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = attached("mesh", "own")
    mesh["spec"]["parentRefs"][0] |= {"group": "", "kind": "Service"}
    api = Api(attached("a", "one"), attached("c", "two"), attached("gone", "none"), mesh)
    for number, name in enumerate(("one", "two")):
        api.gateways[name] = {
            "metadata": {"name": name, "namespace": "serving"}, "spec": {"listeners": [{"name": "http", "port": 80}]},
            "status": {"addresses": [{"value": f"10.0.0.{number}"}]},
        }  # fmt: skip
    found, state = world(api, monkeypatch)
    asked: list[str] = []

    async def warm_up(session: Any, address: Address, requests: int, timeout: float) -> str:  # noqa: ASYNC109
        asked.append(address.url)
        return "answered"

    monkeypatch.setattr(cluster, "warm_up", warm_up)
    done = await found.warm_up(state)
    assert sorted(asked) == ["http://10.0.0.0:80", "http://10.0.0.1:80"]
    without = "no warm-up: Service serving/own: set gateway_url to where it is reached"
    assert done == WarmedUp(f"answered; answered; no warm-up: there is no Gateway serving/none; {without}")
    assert all(HOLD_LABEL in api.routes[key]["metadata"]["labels"] for key in api.ours())
