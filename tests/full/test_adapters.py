"""One LoRA adapter takes another's place under requests: by weights, verified, taken back on an error."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import yaml

from ..e2e.stack import PlaybookResult, Stack

DOWN = "playbooks/local_cluster_down.yml"
NAMESPACE = "adapters"
GROUP = {
    "name": "servers",
    "model": "full/base",
    "replicas": 2,
    "gpus": 0,
    "runtime_lora_updating": True,
    "adapter_sync": True,
}
ROUTE = {"path": "/adapters", "rewrite_prefix": "/", "backends": [{"pool": "adapters", "namespace": NAMESPACE}]}
VARIABLES: dict[str, Any] = {
    "vllm_model_server_namespace": NAMESPACE,
    "vllm_model_server_prestop_seconds": 2,
    "vllm_model_server_drain_seconds": 3,
    "vllm_model_server_groups": [GROUP],
    "inference_pool_namespace": NAMESPACE,
    "inference_pool_pools": [{"name": "adapters", "selector": {"app": "servers"}, "picker": "adapters-epp"}],
    "inference_gateway_namespace": NAMESPACE,
    "inference_gateway_gateways": [
        {"name": "adapters", "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}]}
    ],
    "inference_gateway_routes": [{"name": "adapters", "gateway": "adapters", "rules": [ROUTE]}],
}
V1, V2 = {"name": "sql-v1", "source": "/adapters/sql-v1"}, {"name": "sql-v2", "source": "/adapters/sql-v2"}
V3 = {"name": "sql-v3", "source": "/adapters/sql-v3"}


@pytest.fixture(scope="module")
def servers(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two servers that take adapters, behind a pool and a Gateway of their own, on a cluster that goes at the end."""
    stack.site()
    cluster = {"kubeconfig": "{{ headrace_kubeconfig }}", "context": "{{ headrace_context }}"}
    roles = ["vllm_model_server", "inference_pool", "inference_gateway"]
    image = {"ansible.builtin.include_role": {"name": "container_images", "tasks_from": "facts"}}
    play = {
        "hosts": "headrace",
        "gather_facts": False,
        "module_defaults": {"group/kubernetes.core.k8s": cluster},
        "pre_tasks": [{"name": "Image", **image}],
        "roles": roles,
    }
    playbook = tmp_path_factory.mktemp("adapters") / "servers.yml"
    playbook.write_text(yaml.safe_dump([play]))
    stack.playbook(str(playbook), "-e", json.dumps(VARIABLES))
    try:
        yield stack
    finally:
        stack.playbook(DOWN)


def address(stack: Stack) -> str:
    """The Gateway's own address, which this machine reaches."""
    found: list[dict[str, Any]] = []

    def known() -> bool:
        found[:] = stack.objects("gateway", "adapters", "-n", NAMESPACE)[0].get("status", {}).get("addresses") or []
        return bool(found)

    stack.wait_for("the Gateway has an address", known, 120)
    return f"http://{found[0]['value']}:80"


def adapters(
    stack: Stack, present: list[dict[str, str]], canary: tuple[str, str], check: bool = True, **more: Any
) -> PlaybookResult:
    """playbooks/adapters.yml, with one canary."""
    replaced = {"name": "sql", "group": "servers", "pool": "adapters", "model": "sql", "path": "/adapters"}
    variables = {
        **VARIABLES,
        "lora_adapters_namespace": NAMESPACE,
        "lora_adapters_pools": [{"name": "servers", "minimum": 2, "adapters": present}],
        "lora_adapters_canaries": [{**replaced, "from": canary[0], "to": canary[1]}],
        "lora_adapters_pause_seconds": 5,
        "lora_adapters_url": address(stack),
        **more,
    }
    return stack.playbook("playbooks/adapters.yml", "-e", json.dumps(variables), check=check)


def weights(stack: Stack) -> dict[str, int]:
    """Who answers for `sql`, in percent."""
    answer = stack.kubectl("get", "inferencemodelrewrite", "sql", "-n", NAMESPACE, "-o", "json", check=False)
    if not answer.startswith("{"):
        return {}
    targets = json.loads(answer)["spec"]["rules"][0]["targets"]
    return {target["modelRewrite"]: target["weight"] for target in targets}


def pods(stack: Stack) -> list[str]:
    return [pod["metadata"]["name"] for pod in stack.pods("app=servers", NAMESPACE)]


def path(pod: str, what: str) -> str:
    return f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}:8000/proxy/v1/{what}"


def models(stack: Stack, pod: str) -> set[str]:
    answer = stack.kubectl("get", "--raw", path(pod, "models"), check=False)
    return {model["id"] for model in json.loads(answer)["data"]} if answer.startswith("{") else set()


@contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run `work` in a thread for the length of the block. It looks at the event to see when to end."""
    end = threading.Event()
    thread = threading.Thread(target=work, args=(end,), name="beside the playbook")
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(60)


def test_a_canary_takes_the_steps_one_by_one(servers: Stack) -> None:
    seen: list[dict[str, int]] = []

    def look(end: threading.Event) -> None:
        while not end.wait(0.5):
            now = weights(servers)
            if now and (not seen or seen[-1] != now):
                seen.append(now)

    with beside(look):
        adapters(servers, [V1, V2], ("sql-v1", "sql-v2"))
    assert {"sql-v2": 10, "sql-v1": 90} in seen
    assert {"sql-v2": 50, "sql-v1": 50} in seen
    assert [one["sql-v2"] for one in seen] == sorted(one["sql-v2"] for one in seen)
    assert weights(servers) == {"sql-v2": 100}
    for pod in pods(servers):
        assert models(servers, pod) >= {"full/base", "sql-v1", "sql-v2"}
    again = adapters(servers, [V1, V2], ("sql-v1", "sql-v2"))
    assert again.changed == 0, again.output[-6000:]


def test_a_replica_that_restarts_gets_its_adapters_again(servers: Stack) -> None:
    """The container alone: its Pod, and so its name, stays."""
    name = pods(servers)[0]

    def restarts() -> int:
        statuses = servers.objects("pod", name, "-n", NAMESPACE)[0]["status"]["containerStatuses"]
        return sum(int(status["restartCount"]) for status in statuses if status["name"] == "simulator")

    before = restarts()
    end = "import os, signal; os.kill(1, signal.SIGTERM)"
    servers.kubectl("exec", name, "-n", NAMESPACE, "-c", "simulator", "--", "python3", "-c", end)
    servers.wait_for("the server has restarted", lambda: restarts() > before, 120)
    servers.wait_for("it has its adapters", lambda: models(servers, name) >= {"sql-v1", "sql-v2"}, 120)


def test_an_error_in_the_middle_gives_the_old_adapter_everything_again(servers: Stack) -> None:
    pod = pods(servers)[0]
    unload = json.dumps({"lora_name": "sql-v3"})
    broken = threading.Event()

    def break_it(end: threading.Event) -> None:
        while not end.wait(0.2):
            if weights(servers).get("sql-v3") == 10:
                servers.kubectl(
                    "create", "--raw", path(pod, "unload_lora_adapter"), "-f", "-", stdin=unload, check=False
                )
                if "sql-v3" not in models(servers, pod):
                    broken.set()
                    return

    with beside(break_it):
        # Not kept, so that no sidecar mends what is broken here.
        result = adapters(
            servers,
            [V2, V3],
            ("sql-v2", "sql-v3"),
            check=False,
            lora_adapters_keep=False,
            lora_adapters_pause_seconds=15,
        )
    assert broken.is_set(), result.output[-6000:]
    assert result.returncode != 0
    said = " ".join(result.output.split())
    assert "sql-v3 did not stand the test, and sql-v2 answers all requests again" in said
    assert f"Pod {pod} does not answer for adapter sql-v3" in said
    assert weights(servers) == {"sql-v2": 100}


def test_an_adapter_that_the_gateway_does_not_answer_for_is_taken_back(servers: Stack) -> None:
    """Every replica answers for it; the way through the Gateway does not."""
    result = adapters(
        servers, [V2, V3], ("sql-v2", "sql-v3"), check=False, lora_adapters_keep=False,
        lora_adapters_url=f"{address(servers)}/nowhere", lora_adapters_timeout=5,
    )  # fmt: skip
    assert result.returncode != 0
    assert "did not stand the test" in " ".join(result.output.split())
    assert weights(servers) == {"sql-v2": 100}
