"""Role lora_adapters: what it keeps for sidecars, how it splits requests, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from headrace.simulator.adapters import Models
from headrace.simulator.openai import ApiError

from ..serving import serving
from .apiserver import ApiServer
from .roles import Run, refusals, render, run_role, validate

ROLE = "lora_adapters"
POOL = {
    "name": "servers",
    "adapters": [
        {"name": "sql-v1", "source": "/v1"},
        {"name": "sql-v2", "source": "/v2", "state": "present"},
        {"name": "old", "state": "absent"},
    ],
}
CANARY = {"name": "sql", "group": "servers", "pool": "llama", "model": "sql", "from": "sql-v1", "to": "sql-v2"}


def test_the_list_for_the_sidecars(tmp_path: Path) -> None:
    [config] = render(tmp_path, ROLE, "adapters.yaml.j2", {"lora_adapters_pools": [POOL]}, "__lora_adapters_pools")
    assert config["metadata"]["name"] == "servers-adapters"
    assert json.loads(config["data"]["adapters.json"]) == {
        "present": [{"name": "sql-v1", "source": "/v1"}, {"name": "sql-v2", "source": "/v2"}],
        "absent": ["old"],
    }


@pytest.mark.parametrize(
    ("share", "targets"),
    [
        (10, [{"modelRewrite": "sql-v2", "weight": 10}, {"modelRewrite": "sql-v1", "weight": 90}]),
        (100, [{"modelRewrite": "sql-v2", "weight": 100}]),
        (0, [{"modelRewrite": "sql-v1", "weight": 100}]),
    ],
)
def test_requests_are_split_by_weight(tmp_path: Path, share: int, targets: list[dict[str, Any]]) -> None:
    variables = {"lora_adapters_pools": [POOL], "lora_adapters_namespace": "llms"}
    canary = {**CANARY, "pool_api_version": "v1"}
    [rewrite] = render(
        tmp_path, ROLE, "rewrite.yaml.j2", variables, __lora_adapters_canary=canary, __lora_adapters_share=share
    )
    assert rewrite["metadata"]["namespace"] == "llms"
    assert rewrite["spec"]["poolRef"] == {
        "group": "inference.networking.k8s.io",
        "kind": "InferencePool",
        "name": "llama",
    }
    assert rewrite["spec"]["rules"] == [{"matches": [{"model": {"type": "Exact", "value": "sql"}}], "targets": targets}]


def canary(**keys: Any) -> dict[str, Any]:
    return {"lora_adapters_pools": [POOL], "lora_adapters_canaries": [{**CANARY, **keys}]}


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "source": ({"lora_adapters_pools": [{"name": "s", "adapters": [{"name": "a"}]}]}, "an adapter of s has no source"),
    "twice": (
        {
            "lora_adapters_pools": [
                {"name": "s", "adapters": [{"name": "a", "source": "/a"}, {"name": "a", "source": "/b"}]}
            ]
        },
        "s names an adapter twice",
    ),
    "group": (canary(group="other"), "group is an entry of lora_adapters_pools"),
    "to": (canary(to="none"), "replaces sql-v1 by none"),
    "gone": (canary(to="old"), "replaces sql-v1 by old"),
    "same": (canary(**{"from": "sql-v2"}), "replaces sql-v2 by sql-v2"),
    "steps": ({**canary(), "lora_adapters_steps": [50, 10, 100]}, "rise to 100"),
    "last": ({**canary(), "lora_adapters_steps": [10, 50]}, "rise to 100"),
    "fine": (canary(), ""),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return refusals(tmp_path_factory.mktemp("refusals"), ROLE, {name: case[0] for name, case in CASES.items()})


@pytest.mark.parametrize("name", sorted(CASES))
def test_wrong_input_is_refused(told: dict[str, str], name: str) -> None:
    assert CASES[name][1] in told[name]
    assert bool(CASES[name][1]) == bool(told[name])


def test_the_rewrite_is_valid_to_the_letter(api: ApiServer, tmp_path: Path) -> None:
    """Against the CRD of InferenceModelRewrite, where this collection has it."""
    if api.kubectl("get", "crd", "inferencemodelrewrites.inference.networking.x-k8s.io").returncode != 0:
        pytest.skip("crds/ has no InferenceModelRewrite")
    canary = {**CANARY, "pool_api_version": "v1alpha2"}
    variables = {"lora_adapters_pools": [POOL], "lora_adapters_namespace": "llms"}
    for number, share in enumerate((10, 100)):
        folder = tmp_path / str(number)
        folder.mkdir()
        objects = render(
            folder, ROLE, "rewrite.yaml.j2", variables, __lora_adapters_canary=canary, __lora_adapters_share=share
        )
        assert validate(api, objects) == ""


class Servers:
    """Two model servers, the simulator's own models, behind what an API server answers of Pods and for them.

    The real one has no Pods here, and would pass no request on to an address of this machine.
    """

    def __init__(self, folder: Path) -> None:
        self.models = {
            pod: Models(model="base", served_names=(), adapters={"sql-v1": "/v1", "sql-v2": "/v2"})
            for pod in ("servers-a", "servers-b")
        }
        # Adapters that load, and do not answer.
        self.mute: set[tuple[str, str]] = set()
        servers = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(*servers.get(self.path.partition("?")[0]))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                self.answer(*servers.post(self.path, body))

            def answer(self, status: int, content: Any) -> None:
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.kubeconfig = folder / "servers.json"
        cluster = {"server": f"http://127.0.0.1:{self.http.server_port}"}
        context = {"cluster": "servers", "user": "servers"}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "servers",
            "clusters": [{"name": "servers", "cluster": cluster}],
            "users": [{"name": "servers", "user": {}}],
            "contexts": [{"name": "servers", "context": context}],
        }
        self.kubeconfig.write_text(json.dumps(content))

    def get(self, path: str) -> tuple[int, Any]:
        if path.endswith("/pods"):
            status = {"conditions": [{"type": "Ready", "status": "True"}]}
            return 200, {"items": [{"metadata": {"name": pod}, "status": status} for pod in self.models]}
        if path.endswith("/proxy/v1/models"):
            return 200, self.models[self.pod(path)].listing(0, 1)
        # What the client asks first: the server's version, and the groups of its API.
        return 200, {"kind": "APIGroupList", "major": "1", "minor": "34", "groups": []}

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        pod, models = self.pod(path), self.models[self.pod(path)]
        try:
            if path.endswith("/load_lora_adapter"):
                return 200, models.load(body)
            if path.endswith("/unload_lora_adapter"):
                return 200, models.unload(body)
            found = models.find(body["model"]).name
        except ApiError as error:
            return error.status, str(error)
        return (500, "no such weights") if (pod, found) in self.mute else (200, {"model": found, "choices": ["x"]})

    def pod(self, path: str) -> str:
        return path.partition("/pods/")[2].partition(":")[0]

    def has(self) -> list[set[str]]:
        return [{one["id"] for one in models.listing(0, 1)["data"] if one["parent"]} for models in self.models.values()]


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    servers = Servers(tmp_path)
    with serving(servers.http):
        yield servers


def run(api: ApiServer, servers: Servers, folder: Path, namespace: str, *arguments: str, **more: Any) -> Run:
    """The role, with the rewrite on the real API server."""
    api.kubectl("create", "namespace", namespace)
    variables = {
        "headrace_kubeconfig": str(servers.kubeconfig),
        "lora_adapters_namespace": namespace,
        "lora_adapters_pools": [{"name": "servers", "minimum": 2, "adapters": [{"name": "sql-v2", "source": "/v2"}]}],
        "lora_adapters_canaries": [CANARY],
        "lora_adapters_steps": [50, 100],
        "lora_adapters_pause_seconds": 0,
        "lora_adapters_keep": False,
        **more,
    }
    return run_role(api, folder, ROLE, variables, *arguments)


def weights(api: ApiServer, namespace: str) -> list[dict[str, Any]]:
    found = api.get("inferencemodelrewrites.inference.networking.x-k8s.io", "-n", namespace)["items"]
    return [target for one in found for target in one["spec"]["rules"][0]["targets"]]


def test_check_mode_says_that_a_canary_would_change_something(api: ApiServer, servers: Servers, tmp_path: Path) -> None:
    planned = run(api, servers, tmp_path, "canary", "--check")
    assert (planned.returncode, planned.changed) == (0, 1), planned.output[-6000:]
    assert "sql-v2 gets 0 % of the requests now, and would get 50 %, 100 %" in planned.said
    assert weights(api, "canary") == []
    done = run(api, servers, tmp_path, "canary")
    assert (done.returncode, done.changed) == (0, 2), done.output[-6000:]
    assert weights(api, "canary") == [{"modelRewrite": "sql-v2", "weight": 100}]
    again = run(api, servers, tmp_path, "canary", "--check")
    assert (again.returncode, again.changed) == (0, 0), again.output[-6000:]


@pytest.mark.parametrize("arguments", [(), ("--check",)])
def test_a_canary_from_an_adapter_that_nobody_has_is_refused(
    api: ApiServer, servers: Servers, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """With a misspelt one nine requests of ten would fail, and every one once it was taken back."""
    refused = run(api, servers, tmp_path, "misspelt", *arguments, lora_adapters_canaries=[{**CANARY, "from": "sql-vl"}])
    assert refused.returncode != 0
    assert "does not answer for adapter sql-vl: status 404" in refused.said
    assert "no request was moved" in refused.said
    assert weights(api, "misspelt") == []


def test_an_adapter_that_loads_and_does_not_answer_stays_nowhere(
    api: ApiServer, servers: Servers, tmp_path: Path
) -> None:
    servers.mute.add(("servers-b", "new"))
    pools = [{"name": "servers", "adapters": [{"name": "new", "source": "/new"}]}]
    failed = run(api, servers, tmp_path, "mute", lora_adapters_pools=pools, lora_adapters_canaries=[])
    assert failed.returncode != 0
    assert "Pod servers-b does not answer for adapter new: status 500" in failed.said
    assert "2 changes of this run were undone" in failed.said
    assert servers.has() == [{"sql-v1", "sql-v2"}] * 2
