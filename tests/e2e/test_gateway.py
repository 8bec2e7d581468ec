"""Weights, mixed backends, other namespaces, dead endpoints and pickers: in a cluster, through the Gateway."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import yaml

from headrace.gateway.retries import LEAST_BUDGET

from ..shares import is_likely
from ..stranger import PLAYBOOK, install, play
from .stack import Stack

GROUP = "inference.networking.k8s.io"
LLAMA = {"group": "inference.networking.x-k8s.io", "kind": "InferencePool", "name": "vllm-llama3-8b-instruct"}
QWEN = {"group": GROUP, "kind": "InferencePool", "name": "vllm-qwen3-8b"}
ELSEWHERE = {"group": GROUP, "kind": "InferencePool", "name": "elsewhere", "namespace": "elsewhere"}
MISSING = {"group": GROUP, "kind": "InferencePool", "name": "nowhere"}
SELECTION = "test-epp-endpoint-selection"


@contextmanager
def routed(stack: Stack, name: str, refs: Sequence[Mapping[str, Any]], ready: int = 200) -> Iterator[str]:
    """A route of path `/name` to the backends; yields the path once it is answered as `ready` says."""
    prefix = f"/{name}"
    rewrite = {"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}}
    rule = {
        "matches": [{"path": {"type": "PathPrefix", "value": prefix}}],
        "filters": [rewrite],
        "backendRefs": list(refs),
    }
    route = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"parentRefs": [{"name": "inference-gateway"}], "rules": [rule]},
    }
    stack.kubectl("apply", "--server-side", "--validate=strict", "-f", "-", stdin=json.dumps(route))
    try:
        # The pool of `/` answers other paths 404 until the route is there.
        stack.wait_for(f"{prefix} answers {ready}", lambda: stack.request(f"{prefix}/v1/models").status == ready)
        yield prefix
    finally:
        stack.kubectl("delete", "httproute", name, "-n", "default")


def answered(stack: Stack, path: str, count: int) -> Counter[str]:
    """Who answered so many requests: an app, or a status that is not 200."""
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: stack.request(f"{path}/v1/models"), range(count)))
    return Counter(answer.pod.rsplit("-", 2)[0] if answer.status == 200 else str(answer.status) for answer in answers)


def resolved(stack: Stack, route: str) -> str:
    """The reason of a route's ResolvedRefs."""
    (found,) = stack.objects("httproute", route, "-n", "default")
    (parent,) = found["status"]["parents"]
    return next(str(one["reason"]) for one in parent["conditions"] if one["type"] == "ResolvedRefs")


def test_two_pools_get_their_weights(stack: Stack) -> None:
    with routed(stack, "split", [{**LLAMA, "weight": 70}, {**QWEN, "weight": 30}]) as path:
        found = answered(stack, path, 200)
    assert set(found) == {LLAMA["name"], QWEN["name"]}
    assert is_likely(0.7, found[LLAMA["name"]], 200), found


def test_a_pool_beside_a_service(stack: Stack) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "beside", "namespace": "default"},
        "spec": {"selector": {"app": QWEN["name"]}, "ports": [{"port": 80, "targetPort": 8000}]},
    }
    stack.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(service))
    try:
        with routed(stack, "beside", [LLAMA, {"name": "beside", "port": 80}]) as path:
            stack.wait_for("the Service serves", lambda: answered(stack, path, 20)["503"] == 0)
            found = answered(stack, path, 100)
    finally:
        stack.kubectl("delete", "service", "beside", "-n", "default")
    assert set(found) == {LLAMA["name"], QWEN["name"]}
    assert is_likely(0.5, found[LLAMA["name"]], 100), found


def test_the_share_of_a_missing_pool_is_answered_500(stack: Stack) -> None:
    with routed(stack, "lacking", [QWEN, MISSING]) as path:
        found = answered(stack, path, 100)
        assert resolved(stack, "lacking") == "BackendNotFound"
    assert set(found) == {QWEN["name"], "500"}
    assert is_likely(0.5, found["500"], 100), found


@pytest.fixture(scope="module")
def elsewhere(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A pool of a namespace of its own, which a ReferenceGrant opens to routes of the default one.

    It is made as a stranger would make it: by a playbook of two roles of the installed collection, from a folder that
    has nothing of the checkout, in a cluster that is there."""
    environment = install(stack.repository, tmp_path_factory.mktemp("home"))
    folder = tmp_path_factory.mktemp("stranger")
    (folder / "play.yml").write_text(PLAYBOOK)
    (picker,) = stack.objects("deployment", f"{LLAMA['name']}-epp", "-n", "default")
    given = {
        **yaml.safe_load((stack.repository / "tests/e2e/elsewhere.yml").read_text()),
        "headrace_kubeconfig": str(stack.kubeconfig),
        "headrace_context": stack.variables["local_cluster_context"],
        "headrace_controller_image": picker["spec"]["template"]["spec"]["containers"][0]["image"],
    }
    done = play(folder, environment, "play.yml", "-e", json.dumps(given))
    assert done.returncode == 0, done.stdout[-6000:]
    yield stack
    stack.kubectl("delete", "namespace", "elsewhere", "--wait=false")


def grant() -> dict[str, Any]:
    return {
        "apiVersion": "gateway.networking.k8s.io/v1beta1",
        "kind": "ReferenceGrant",
        "metadata": {"name": "routes", "namespace": "elsewhere"},
        "spec": {
            "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "default"}],
            "to": [{"group": GROUP, "kind": "InferencePool"}],
        },
    }


def test_a_pool_of_another_namespace_needs_a_grant(elsewhere: Stack) -> None:
    with routed(elsewhere, "across", [ELSEWHERE], ready=500) as path:
        assert resolved(elsewhere, "across") == "RefNotPermitted"
        for verb, status in (("apply", 200), ("delete", 500), ("apply", 200)):
            elsewhere.kubectl(verb, "-f", "-", stdin=json.dumps(grant()))
            elsewhere.wait_for(
                f"{status} after {verb}", lambda want=status: elsewhere.request(f"{path}/v1/models").status == want
            )
        assert answered(elsewhere, path, 5) == {"elsewhere": 5}


def test_a_strangers_playbook_serves_traffic(elsewhere: Stack) -> None:
    elsewhere.kubectl("apply", "-f", "-", stdin=json.dumps(grant()))
    with routed(elsewhere, "stranger", [ELSEWHERE]) as path:
        answer = elsewhere.request(f"{path}/v1/completions", {"model": "elsewhere", "prompt": "Hi", "max_tokens": 3})
    assert answer.status == 200, answer.body
    assert answer.json()["choices"][0]["text"]
    assert answer.pod in {pod["metadata"]["name"] for pod in elsewhere.pods("app=elsewhere", "elsewhere")}


def test_a_dead_endpoint_costs_no_request(elsewhere: Stack) -> None:
    """Its container is killed: until the kubelet says so, every other pick names it, and the other endpoint answers.

    The kubelet starts it again, sooner or later: then it answers as well."""
    elsewhere.kubectl("apply", "-f", "-", stdin=json.dumps(grant()))
    with routed(elsewhere, "dead", [ELSEWHERE]) as path:
        first, second = elsewhere.pods("app=elsewhere", "elsewhere")
        chosen = ",".join(f"{pod['status']['podIP']}:8000" for pod in (first, second))
        for number in elsewhere.processes(first):
            os.kill(number, signal.SIGKILL)
        elsewhere.wait_for("its processes are gone", lambda: not elsewhere.processes(first))

        def ask(number: int) -> tuple[int, str]:
            body = {"model": "elsewhere", "prompt": f"{number}", "max_tokens": 2}
            answer = elsewhere.request(f"{path}/v1/completions", body, headers={SELECTION: chosen})
            return answer.status, answer.headers.get("x-headrace-pod", answer.body.decode())

        # Each of Envoy's workers has seen that its connections to the dead container are closed, once it has answered
        # requests that came later: one that was sent on such a connection cannot be sent again.
        answered(elsewhere, "", 40)
        names = [pod["metadata"]["name"] for pod in (first, second)]
        # So many may be sent once more at a time, whatever is in flight.
        with ThreadPoolExecutor(LEAST_BUDGET) as pool:
            answers = Counter(pool.map(ask, range(40)))
        assert set(answers) <= {(200, name) for name in names}, answers
        assert answers[200, names[1]] > 0


@contextmanager
def hanging(stack: Stack, picker: str) -> Iterator[Callable[[], bool]]:
    """A picker that does not move, though its Pod looks ready for a while; yields whether it does so still."""
    numbers = [number for pod in stack.pods(f"app.kubernetes.io/name={picker}") for number in stack.processes(pod)]
    assert numbers
    for number in numbers:
        os.kill(number, signal.SIGSTOP)
    try:
        yield lambda: all(map(stack.is_process, numbers))
    finally:
        for number in numbers:
            # The kubelet may have replaced it meanwhile.
            if stack.is_process(number):
                os.kill(number, signal.SIGCONT)


REQUESTS = {
    "GET": None,
    "small": {"model": "Qwen/Qwen3-8B", "prompt": "x", "max_tokens": 2},
    "5 MB": {"model": "Qwen/Qwen3-8B", "prompt": "x", "max_tokens": 2, "metadata": {"padding": "x" * 5_000_000}},
    "SSE": {"model": "Qwen/Qwen3-8B", "prompt": "x", "max_tokens": 5, "stream": True},
}


def test_a_picker_that_hangs_fails_open(stack: Stack) -> None:
    pods = {pod["metadata"]["name"] for pod in stack.pods(f"app={QWEN['name']}")}
    with hanging(stack, f"{QWEN['name']}-epp"):
        for _ in range(2):
            for what, body in REQUESTS.items():
                answer = stack.request(f"/qwen/v1/{'completions' if body else 'models'}", body)
                assert answer.status == 200, (what, answer.body[:200])
                assert answer.pod in pods
                assert what != "SSE" or answer.events[-1] == "[DONE]"
    stack.wait_for("a pick again", lambda: stack.request("/qwen/v1/models").status == 200)


def test_a_picker_that_hangs_fails_closed(stack: Stack) -> None:
    body = {"model": "meta-llama/Meta-Llama-3-8B-Instruct", "prompt": "x", "max_tokens": 2}
    with hanging(stack, f"{LLAMA['name']}-epp") as hangs:
        for asked in (None, body, {**body, "stream": True}):
            answer = stack.request(f"/v1/{'completions' if asked else 'models'}", asked)
            if not hangs():
                break  # the kubelet has replaced it
            assert answer.status in (503, 504), answer.body
            assert "x-headrace-pod" not in answer.headers
    stack.wait_for("it serves again", lambda: stack.request("/v1/completions", body).status == 200)


def test_without_the_gateway_controller_traffic_goes_on_and_changes_wait(stack: Stack) -> None:
    controller = "app.kubernetes.io/name=headrace-gateway"
    with routed(stack, "waits", [QWEN]) as path:
        with stack.scaled_to_zero("headrace-gateway", controller, "envoy-gateway-system"):
            route = stack.objects("httproute", "waits", "-n", "default")[0]
            changed = json.dumps({"spec": {"rules": [{**route["spec"]["rules"][0], "backendRefs": [LLAMA]}]}})
            stack.kubectl("patch", "httproute", "waits", "-n", "default", "--type=merge", "-p", changed)
            assert answered(stack, path, 40) == {QWEN["name"]: 40}
        stack.wait_for("the change is there", lambda: stack.request(f"{path}/v1/models").pod.startswith(LLAMA["name"]))


def test_what_servers_have_for_whoever_runs_them_is_not_published(stack: Stack) -> None:
    unload = "/v1/unload_lora_adapter"
    for path, status in (("/metrics", 404), (unload, 404), ("/qwen/metrics", 404), (f"/qwen{unload}", 500)):
        answer = stack.request(path, {"lora_name": "sql-lora"})
        assert answer.status == status, path
        assert "x-headrace-pod" not in answer.headers, path
