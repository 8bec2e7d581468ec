"""Requests through the Gateway: client, Envoy, endpoint picker, simulated server."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from .stack import Stack

LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"
QWEN = "Qwen/Qwen3-8B"
POOLS = [("", LLAMA, "vllm-llama3-8b-instruct"), ("/qwen", QWEN, "vllm-qwen3-8b")]


@pytest.mark.parametrize(("prefix", "model", "pool"), POOLS, ids=["v1alpha2", "v1"])
def test_a_completion_is_served_by_a_pod_of_the_pool(stack: Stack, prefix: str, model: str, pool: str) -> None:
    answer = stack.request(f"{prefix}/v1/completions", {"model": model, "prompt": "Once upon", "max_tokens": 8})
    assert answer.status == 200, answer.body
    assert answer.json()["choices"][0]["text"]
    assert answer.json()["usage"]["completion_tokens"] == 8
    assert answer.pod in {pod["metadata"]["name"] for pod in stack.pods(f"app={pool}")}


@pytest.mark.parametrize(("prefix", "model", "pool"), POOLS, ids=["v1alpha2", "v1"])
def test_a_chat_streams_event_by_event(stack: Stack, prefix: str, model: str, pool: str) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "Count."}], "max_tokens": 12, "stream": True}
    answer = stack.request(f"{prefix}/v1/chat/completions", body)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.events[-1] == "[DONE]"
    assert sum(bool(json.loads(event)["choices"][0]["delta"].get("content")) for event in answer.events[:-1]) >= 12


def test_an_adapter_is_a_model_of_its_own(stack: Stack) -> None:
    answer = stack.request("/v1/completions", {"model": "sql-lora", "prompt": "select", "max_tokens": 4})
    assert answer.status == 200
    assert answer.json()["model"] == "sql-lora"
    assert {model["id"] for model in stack.request("/v1/models").json()["data"]} >= {LLAMA, "sql-lora", "chat-lora"}


def test_errors_of_the_model_server_reach_the_client(stack: Stack) -> None:
    answer = stack.request("/v1/completions", {"model": "no-such-model", "prompt": "x"})
    assert answer.status == 404
    assert "no-such-model" in answer.json()["error"]["message"]


def test_a_large_prompt_passes(stack: Stack) -> None:
    answer = stack.request("/v1/completions", {"model": LLAMA, "prompt": "word " * 400_000, "max_tokens": 1})
    assert answer.status == 400, "2 MB is more than the context: the server itself must say so"
    assert "context" in answer.json()["error"]["message"]


def test_equal_prefixes_go_to_the_pod_that_has_them(stack: Stack) -> None:
    prefix = "You are a careful assistant who answers in verse. " * 60
    bodies = [{"model": LLAMA, "prompt": f"{prefix} Question {i}", "max_tokens": 2} for i in range(8)]
    served = Counter(stack.request("/v1/completions", body).pod for body in bodies)
    assert len(served) == 1, served


@pytest.mark.parametrize(
    "header",
    [
        "x-gateway-destination-endpoint",
        "x-gateway-destination-endpoint-served",
        "x-gateway-destination-endpoint-subset",
    ],
)
def test_a_client_cannot_name_its_destination(stack: Stack, header: str) -> None:
    outside = stack.pods("k8s-app=kube-dns", "kube-system")[0]["status"]["podIP"]
    pods = {pod["metadata"]["name"] for pod in stack.pods("app=vllm-llama3-8b-instruct")}
    for _ in range(4):
        answer = stack.request("/v1/models", headers={header: f"{outside}:8080"})
        assert answer.status == 200
        assert answer.pod in pods


def test_simulated_gpus_are_real_to_the_scheduler(stack: Stack) -> None:
    nodes = stack.objects("nodes")
    assert len(nodes) == 2
    assert all(int(node["status"]["allocatable"]["nvidia.com/gpu"]) > 0 for node in nodes)
    pod = stack.pods("app=vllm-llama3-8b-instruct")[0]
    limits = pod["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] in ("1", 1)
