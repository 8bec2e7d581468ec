"""What happens without an endpoint picker: the page's promise, word for word."""

from __future__ import annotations

import hashlib
import http.client
import json
from pathlib import Path

import pytest

from ..hang import HANG_SECONDS
from .stack import Stack

LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"
POOL = "vllm-llama3-8b-instruct"
PAGE_EPP = f"app.kubernetes.io/name={POOL}-epp"
BODY = {"model": LLAMA, "prompt": "Hello", "max_tokens": 4}


def serves(stack: Stack, path: str = "/v1/completions", body: object = BODY) -> bool:
    return stack.request(path, body).status == 200


@pytest.fixture
def serving(stack: Stack) -> Stack:
    """The stack, once the page's pool answers: a test that scaled something may have come before."""
    stack.wait_for("the page's pool serves", lambda: serves(stack))
    return stack


def test_the_pages_example_applied_unchanged_serves_traffic(serving: Stack) -> None:
    page = (serving.repository / "tests/data/page-example.yaml").read_text()
    resource = "inferencepools.inference.networking.x-k8s.io"
    before = serving.objects(resource, POOL)[0]["spec"]
    serving.kubectl("delete", resource, POOL, "-n", "default")
    serving.wait_for("a route to a pool that is gone answers 5xx", lambda: serving.request("/v1/models").status >= 500)
    serving.kubectl("create", "--validate=strict", "-n", "default", "-f", "-", stdin=page)
    serving.wait_for("the page's example serves", lambda: serves(serving))
    assert serving.objects(resource, POOL)[0]["spec"] == before, "the role's pool and the page's are the same"


def test_fail_close_drops_requests_at_once(serving: Stack) -> None:
    with serving.scaled_to_zero(f"{POOL}-epp", PAGE_EPP):
        serving.wait_for("requests are dropped", lambda: not serves(serving))
        for path, body in (("/v1/completions", BODY), ("/v1/models", None)):
            answer = serving.request(path, body)
            assert 500 <= answer.status < 600
            print(f"dropped after {answer.seconds:.2f} s")
    serving.wait_for("requests pass again", lambda: serves(serving))


def test_fail_open_serves_from_a_pod_of_the_pool(serving: Stack) -> None:
    pods = {pod["metadata"]["name"] for pod in serving.pods("app=vllm-qwen3-8b")}
    body = {**BODY, "model": "Qwen/Qwen3-8B"}
    with serving.scaled_to_zero("vllm-qwen3-8b-epp", "app.kubernetes.io/name=vllm-qwen3-8b-epp"):
        serving.wait_for("fails open", lambda: serves(serving, "/qwen/v1/completions", body))
        for _ in range(5):
            answer = serving.request("/qwen/v1/completions", body)
            assert answer.status == 200
            assert answer.pod in pods


def test_an_answer_that_streams_when_the_picker_is_killed_arrives_whole(serving: Stack) -> None:
    tokens = 600
    name = serving.pods(PAGE_EPP)[0]["metadata"]["name"]
    host, port = serving.gateway.rsplit(":", 1)
    connection = http.client.HTTPConnection(host, int(port), timeout=HANG_SECONDS)
    body = {**BODY, "max_tokens": tokens, "ignore_eos": True, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200
    events, killed = [], False
    while line := response.readline():
        if line.startswith(b"data:"):
            events.append(line[5:].strip())
        if len(events) == 20 and not killed:
            serving.kubectl("delete", "pod", name, "-n", "default", "--grace-period=0", "--force")
            killed = True
    connection.close()
    assert killed, "the answer ended before the picker could be killed: make it longer"
    assert events[-1] == b"[DONE]"
    assert sum(1 for event in events[:-1] if json.loads(event)["choices"]) >= tokens
    serving.wait_for("the new picker serves", lambda: serves(serving))


def test_a_stopped_pod_gets_no_new_request(serving: Stack) -> None:
    (picker, *_), (victim, *_) = serving.pods(PAGE_EPP), serving.pods(f"app={POOL}")
    page = f"/api/v1/namespaces/default/pods/{picker['metadata']['name']}:9090/proxy/debug/endpoints"

    def is_left_out() -> bool:
        answer = serving.request("/v1/completions", BODY)
        assert answer.status == 200, answer.body
        endpoints = json.loads(serving.kubectl("get", "--raw", page))["endpoints"]
        return victim["status"]["podIP"] not in {entry["endpoint"].rpartition(":")[0] for entry in endpoints}

    serving.wait_for("the picker knows it", lambda: not is_left_out())
    serving.kubectl("delete", "pod", victim["metadata"]["name"], "-n", "default", "--wait=false")
    serving.wait_for("the picker leaves it out", is_left_out)
    for _ in range(40):
        answer = serving.request("/v1/completions", BODY)
        assert answer.status == 200, answer.body
        assert answer.pod != victim["metadata"]["name"]


def test_pools_carry_the_gateways_verdict(serving: Stack) -> None:
    for group, key in (("inference.networking.x-k8s.io", "parent"), ("inference.networking.k8s.io", "parents")):
        for pool in serving.objects(f"inferencepools.{group}", "-n", "default"):
            parents = [parent for parent in pool["status"][key] if parent["parentRef"].get("kind") != "Status"]
            assert [parent["parentRef"]["name"] for parent in parents] == ["inference-gateway"]
            conditions = {condition["type"]: condition["status"] for condition in parents[0]["conditions"]}
            translated = {"headrace.dev/RoutesTranslated": "True"}
            assert conditions == {"Accepted": "True", "ResolvedRefs": "True", **translated}


def test_page_example_is_the_pages(repository: Path) -> None:
    """Byte for byte: a changed example would prove something else."""
    content = (repository / "tests/data/page-example.yaml").read_bytes()
    assert hashlib.sha256(content).hexdigest() == "1657f29a0a9c638adb03dad4b1330e474dd780ebea6b644577fb8b2926a04003"
