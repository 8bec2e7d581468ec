"""The smoke test fails when it should: each of its promises is broken once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType
from typing import Any

import pytest

from ...serving import serving

POOLS = [{"name": "llama", "selector": {"app": "llama"}, "picker": "llama-epp"}]
SERVERS = [{"name": "llama", "model": "meta/llama", "adapters": [{"name": "sql"}, {"name": "chat"}]}]
ROUTES = [{"name": "llama", "rules": [{"path": "/a", "backends": [{"pool": "llama"}]}]}]


class Gateway:
    """A server that answers as a Gateway with a model server behind it does, or as one that is broken does."""

    def __init__(self) -> None:
        self.status = 200
        self.pod = "llama-1"
        self.model = ""
        self.text = "water"
        self.done = True
        self.finish_reason = "stop"
        self.asked: list[tuple[str, dict[str, Any]]] = []
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                gateway.asked.append((self.path, body))
                chat = "chat" in self.path
                kind = ("delta" if body["stream"] else "message") if chat else "text"
                choice = {"text": gateway.text} if kind == "text" else {kind: {"content": gateway.text}}
                choice["finish_reason"] = gateway.finish_reason
                part = json.dumps({"model": gateway.model or body["model"], "choices": [choice]})
                answer = f"data: {part}\n\n" + ("data: [DONE]\n\n" if gateway.done else "") if body["stream"] else part
                self.send_response(gateway.status)
                self.send_header("content-type", "text/event-stream" if body["stream"] else "application/json")
                self.send_header("content-length", str(len(answer)))
                self.send_header("x-headrace-pod", gateway.pod)
                self.send_header("x-request-id", "its-own")
                self.end_headers()
                self.wfile.write(answer.encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


class Cluster:
    """The two things that are asked of a cluster."""

    def __init__(self) -> None:
        self.winner = "llama-1"

    def pods(self, namespace: str, labels: dict[str, str]) -> list[str]:
        return ["llama-1", "llama-2"] if labels == {"app": "llama"} else []

    def decision(self, namespace: str, picker: str, answer: dict[str, Any]) -> dict[str, Any] | None:
        assert answer["request_id"] == "its-own", "an Envoy at the edge has given the request another id"
        return {"winner_pod": self.winner, "reason": "shortest queue"}


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    with serving(gateway.server):
        yield gateway


def run(smoke: ModuleType, gateway: Gateway, cluster: Cluster | None = None) -> Any:
    return smoke.run(gateway.url, cluster or Cluster(), smoke.targets(ROUTES, POOLS, SERVERS), 4, 10)


def test_every_kind_of_request_is_sent_to_the_routes_path(smoke: ModuleType, gateway: Gateway) -> None:
    answers = run(smoke, gateway)
    asked = [(path, body["model"], body["stream"]) for path, body in gateway.asked]
    assert sorted(asked) == sorted(
        [("/a/v1/completions", model, stream) for model in ("meta/llama", "sql") for stream in (False, True)]
        + [("/a/v1/chat/completions", "meta/llama", stream) for stream in (False, True)]
    )
    lines = smoke.table(answers)
    assert len(lines) == 7
    assert all("llama-1" in line and "shortest queue" in line for line in lines[1:])


@pytest.mark.parametrize(
    ("attribute", "value", "says"),
    [
        ("status", 503, "status 503"),
        ("pod", "stranger-1", "not in pool llama"),
        ("model", "other", "of model 'other'"),
        ("text", "", "empty"),
        ("done", False, "cut"),
        ("finish_reason", "abort", "cut the answer"),
    ],
)
def test_a_wrong_answer_fails(smoke: ModuleType, gateway: Gateway, attribute: str, value: Any, says: str) -> None:
    setattr(gateway, attribute, value)
    with pytest.raises(smoke.Failed, match=says):
        run(smoke, gateway)


def test_a_pod_that_was_not_picked_fails(smoke: ModuleType, gateway: Gateway) -> None:
    cluster = Cluster()
    cluster.winner = "llama-2"
    with pytest.raises(smoke.Failed, match="picked was llama-2"):
        run(smoke, gateway, cluster)


def test_nobody_there_is_told_with_the_next_step(smoke: ModuleType, gateway: Gateway) -> None:
    target = smoke.targets(ROUTES, POOLS, SERVERS)[0]
    with pytest.raises(smoke.Failed, match="Next:"):
        smoke.ask("http://127.0.0.1:1", target, "/v1/completions", "m", False, 1, 1)


def test_routes_without_a_pool_of_the_inventory_are_left_out(smoke: ModuleType) -> None:
    service = [{"name": "web", "rules": [{"backends": [{"service": "web", "port": 80}]}]}]
    drained = [{"name": "old", "rules": [{"backends": [{"pool": "llama", "weight": 0}]}]}]
    assert smoke.targets(service, POOLS, SERVERS) == []
    assert smoke.targets(drained, POOLS, SERVERS) == []
    assert smoke.targets(ROUTES, POOLS, [{"name": "qwen", "model": "q"}]) == []
