"""The playbooks that are verbs, against a real API server: site, upgrade, teardown, without Envoy Gateway's chart."""

from __future__ import annotations

import base64
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from headrace.gateway.nudge import GRANT_NAME

from ..objects import differences, everything
from .apiserver import ApiServer, running
from .roles import ROOT, Run, play, stack

pytestmark = pytest.mark.slow

LEASE_SUFFIX = ".gateway-api-inference-extension.sigs.k8s.io"
STACK = {
    "Deployment.apps llms/servers",
    "InferencePool.inference.networking.k8s.io llms/llama",
    "Gateway.gateway.networking.k8s.io llms/gw",
}


@pytest.fixture(scope="module")
def cluster(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server of its own, with one node and the third parties' CRDs, which teardown must leave."""
    with running(repository / "build/bin", tmp_path_factory.mktemp("verbs")) as server:
        for folder in ("gateway-api", "envoy-gateway"):
            done = server.kubectl("apply", "--server-side", "-R", "-f", str(repository / "build/bin/crds" / folder))
            assert done.returncode == 0, done.stderr
        # Somebody else's namespace.
        server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "envoy-gateway-system"}})
        server.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {"gpu": "yes"}}})
        yield server


@pytest.fixture(scope="module")
def variables(cluster: ApiServer) -> dict[str, Any]:
    """An inventory: a namespace of its own, one of everything. Nothing is waited for, as nothing runs."""
    return {
        **stack(cluster),
        "headrace_teardown_wait": False,
        "headrace_teardown_timeout": 30,
        "headrace_monitoring": True,
        "inference_crds_gateway_api_source": "",
        "inference_crds_envoy_gateway_source": "",
        "gpu_node_pools": [
            {
                "name": "gpu",
                "node_selector": {"gpu": "yes"},
                "taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}],
            }
        ],
        "gpu_node_pool_require_gpus": False,
        "vllm_model_server_namespace": "llms",
        "vllm_model_server_wait": False,
        "vllm_model_server_groups": [{"name": "servers", "model": "m", "replicas": 2, "cache_size": "1Gi"}],
        "inference_pool_namespace": "llms",
        "inference_pool_wait": False,
        "inference_pool_pools": [{"name": "llama", "selector": {"app": "servers"}, "picker": "llama-epp"}],
        "inference_gateway_namespace": "llms",
        "inference_gateway_wait": False,
        "inference_gateway_gateways": [{"name": "gw", "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}]}],
        "inference_gateway_routes": [{"name": "r", "gateway": "gw", "rules": [{"backends": [{"pool": "llama"}]}]}],
    }


def run(playbook: str, variables: dict[str, Any], *arguments: str, **more: Any) -> Run:
    return play(
        ROOT / "playbooks" / f"{playbook}.yml", {**variables, **more}, "--skip-tags", "envoy_gateway", *arguments
    )


def found(cluster: ApiServer) -> dict[str, Any]:
    """Every object of every kind, but for what the API server writes of itself now and then."""

    def kubectl(*arguments: str) -> str:
        done = cluster.kubectl(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return everything(kubectl)


def made_by_controllers(namespace: str = "llms") -> list[dict[str, Any]]:
    """What the gateway controller, endpoint pickers and a replacement write, where they run."""
    record: dict[str, Any] = {
        "name": "headrace-replace-llama",
        "namespace": namespace,
        "labels": {"app.kubernetes.io/part-of": "headrace", "app.kubernetes.io/component": "pool-replacement"},
    }
    replace = {"name": "replace", "image": "registry.example.com/headrace/controller:1"}
    return [
        {
            "apiVersion": "gateway.networking.k8s.io/v1beta1",
            "kind": "ReferenceGrant",
            "metadata": {"name": GRANT_NAME, "namespace": "envoy-gateway-system"},
            "spec": {
                "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "default"}],
                "to": [{"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "none"}],
            },
        },
        {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": f"epp-{namespace}-llama{LEASE_SUFFIX}", "namespace": namespace},
        },
        {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": record},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": record, "data": {"state.json": "{}"}},
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": record,
            "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [replace]}}},
        },
    ]


def test_what_controllers_made_goes(cluster: ApiServer, variables: dict[str, Any]) -> None:
    """Also where what made it is gone already; and what nobody uses goes with it."""
    before = found(cluster)
    labels = {"app.kubernetes.io/part-of": "headrace", "app.kubernetes.io/managed-by": "ansible"}
    for name in ("left", "used"):
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    theirs = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "theirs", "namespace": "used"}}
    cluster.apply(*made_by_controllers("left"), theirs)
    elsewhere = {name: "left" for name, value in variables.items() if value == "llms"}
    gone = run("teardown", {**variables, **elsewhere}, headrace_confirm=True)
    assert gone.returncode == 0, gone.output[-6000:]
    assert "Kept: namespace used, which holds Secret." in gone.said
    assert differences(before, found(cluster)) == ["+ Namespace /used", "+ Secret used/theirs"]
    assert cluster.kubectl("delete", "namespace", "used", "--wait=false").returncode == 0
    assert cluster.kubectl("delete", "secret", "theirs", "-n", "used").returncode == 0


EXTENSION = ("config", "envoyGateway", "extensionManager", "service", "fqdn", "hostname")
HELM_CHART = {
    "Chart.yaml": {"apiVersion": "v2", "name": "named", "version": "1.0.0"},
    "templates/config.yaml": {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "of-{{ .Release.Name }}"}},
}


def nested(path: tuple[str, ...], value: str) -> dict[str, Any]:
    inner: Any = value
    for key in reversed(path):
        inner = {key: inner}
    return dict(inner)


def test_a_release_of_the_same_name_stays_if_it_is_somebody_elses(
    cluster: ApiServer, variables: dict[str, Any], repository: Path, tmp_path: Path
) -> None:
    """`eg` is what Envoy Gateway's own documentation calls its release, and `gpu-operator` what NVIDIA's does."""
    before = found(cluster)
    (tmp_path / "templates").mkdir()
    for name, content in HELM_CHART.items():
        (tmp_path / name).write_text(json.dumps(content))
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "gpu-operator"}})
    # Envoy Gateway writes it, and Helm knows nothing of it.
    written = {"name": "envoy", "namespace": "envoy-gateway-system", "labels": {"control-plane": "envoy-gateway"}}
    cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": written})

    def helm(*arguments: str, content: dict[str, Any] | None = None) -> None:
        command = [str(repository / "build/bin/helm"), "--kubeconfig", str(cluster.kubeconfig), *arguments]
        done = subprocess.run(command, input=json.dumps(content or {}), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def released(name: str, namespace: str, content: dict[str, Any]) -> None:
        helm("upgrade", "--install", name, str(tmp_path), "-n", namespace, "--values", "-", content=content)

    given = {**variables, "gpu_node_pool_software": "operator"}
    released("gpu-operator", "gpu-operator", {"driver": {"enabled": True}})
    for content in ({}, nested(EXTENSION, "theirs.example.com"), {"config": "text"}):
        released("eg", "envoy-gateway-system", content)
        # Another revision is another Secret of Helm's.
        theirs = found(cluster)
        kept = run("teardown", given, headrace_confirm=True)
        assert kept.returncode == 0, kept.output[-6000:]
        assert "Kept: Helm release envoy-gateway-system/eg, which is not ours" in kept.said
        assert "Kept: Helm release gpu-operator/gpu-operator, which is not ours" in kept.said
        assert differences(theirs, found(cluster)) == []

    released("eg", "envoy-gateway-system", nested(EXTENSION, "headrace-gateway.envoy-gateway-system.svc.cluster.local"))
    released("gpu-operator", "gpu-operator", {"global": {"partOf": "headrace"}})
    gone = run("teardown", given, headrace_confirm=True)
    assert gone.returncode == 0, gone.output[-6000:]
    assert "Helm release of Envoy Gateway" in gone.said
    assert "Helm release of the GPU Operator" in gone.said
    assert cluster.kubectl("delete", "namespace", "gpu-operator", "--wait=false").returncode == 0
    assert differences(before, found(cluster)) == []


def test_life_of_a_stack(cluster: ApiServer, variables: dict[str, Any]) -> None:
    """Teardown after site leaves the cluster as it was found, object by object."""
    before = found(cluster)

    nothing = run("upgrade", variables, headrace_confirm=True)
    assert nothing.returncode != 0
    assert "Nothing that Headrace made runs in context test" in nothing.said

    made = run("site", variables)
    assert made.returncode == 0, made.output[-6000:]
    assert set(found(cluster)) >= STACK
    marked = cluster.get("node", "n1")
    assert marked["metadata"]["labels"]["headrace.dev/gpu-node-pool"] == "gpu"
    assert "nvidia.com/gpu" in [taint["key"] for taint in marked["spec"]["taints"]]

    # An upgrade brings pickers to the new image, and model servers only where that is asked for.
    newer = {"headrace_controller_image": "registry.example.com/headrace/controller:2", "headrace_confirm": True}
    upgraded = run("upgrade", variables, **newer, vllm_model_server_image="docker.io/vllm/vllm-openai:v9")
    assert upgraded.returncode == 0, upgraded.output[-6000:]
    assert (
        "llms/llama-epp: registry.example.com/headrace/controller:1 -> registry.example.com/headrace/controller:2"
        in (upgraded.said)
    )
    containers = cluster.get("deployment", "servers", "-n", "llms")["spec"]["template"]["spec"]["containers"]
    assert containers[0]["image"] != "docker.io/vllm/vllm-openai:v9"

    # Nothing happens unless somebody says so.
    cluster.apply(*made_by_controllers())
    with_stack = found(cluster)
    asked = run("teardown", variables)
    assert asked.returncode != 0
    assert "Nothing was changed" in asked.said
    planned = run("teardown", variables, "--check")
    assert planned.returncode == 0, planned.output[-6000:]
    assert "Deployment llms/servers" in planned.said
    assert "ReferenceGrant envoy-gateway-system/headrace-gateway-retranslate" in planned.said
    assert differences(with_stack, found(cluster)) == []
    assert run("teardown", variables, headrace_context="", headrace_confirm=True).returncode != 0

    gone = run("teardown", variables, headrace_confirm=True)
    assert gone.returncode == 0, gone.output[-6000:]
    assert "CRDs (headrace_teardown_crds removes them" in gone.said
    assert "1 volume claims (headrace_teardown_volumes removes them)" in gone.said
    assert "namespace llms, which holds PersistentVolumeClaim" in gone.said
    left = differences(before, found(cluster))
    crds = ("+ CustomResourceDefinition.", "+ APIService.")
    assert {line for line in left if not line.startswith(crds)} == {
        "+ PersistentVolumeClaim llms/servers-cache",
        "+ Namespace /llms",
    }

    volumes = {"headrace_teardown_volumes": True}
    again = run("teardown", variables, headrace_confirm=True, headrace_teardown_crds=True, **volumes)
    assert again.returncode == 0, again.output[-6000:]
    assert differences(before, found(cluster)) == []
    last = run("teardown", variables)
    assert last.returncode == 0, last.output[-6000:]
    assert "Nothing that Headrace made is in context test" in last.said


def test_no_secret_is_shown(cluster: ApiServer, variables: dict[str, Any]) -> None:
    """With the most verbose output as well: teardown looks at Secrets, and at no content of theirs."""
    secret = {
        "apiVersion": "v1", "kind": "Secret", "stringData": {"tls.key": "EXTREMELY-PRIVATE"},
        "metadata": {
            "name": "ours", "namespace": "default",
            "labels": {"app.kubernetes.io/part-of": "headrace", "app.kubernetes.io/managed-by": "ansible"},
        },
    }  # fmt: skip
    cluster.apply(secret)
    encoded = cluster.get("secret", "ours")["data"]["tls.key"]
    shown = run("teardown", variables, "-vvv", headrace_confirm=True)
    assert shown.returncode == 0, shown.output[-6000:]
    assert "Secret default/ours" in shown.said
    assert "EXTREMELY-PRIVATE" not in shown.output
    assert encoded not in shown.output
    assert json.loads(cluster.kubectl("get", "secrets", "-o", "json").stdout)["items"] == []


@contextmanager
def process_lists() -> Iterator[set[bytes]]:
    """Everything that stands in a process's command line or environment, for the length of the block."""
    seen: set[bytes] = set()
    end = threading.Event()

    def look() -> None:
        while not end.wait(0.05):
            for directory in Path("/proc").iterdir():
                if directory.name.isdigit():
                    for file in ("cmdline", "environ"):
                        # One that has ended meanwhile.
                        with suppress(OSError):
                            seen.add((directory / file).read_bytes())

    thread = threading.Thread(target=look, name="process lists")
    thread.start()
    try:
        yield seen
    finally:
        end.set()
        thread.join()


def private_parts(cluster: ApiServer) -> dict[str, str]:
    """Everything secret of every Secret: tokens, and the lines of private keys; each as it is and as the API has it."""
    parts = {}
    for secret in cluster.get("secrets", "-A")["items"]:
        for key, encoded in secret.get("data", {}).items():
            if key.endswith((".crt", ".pem")) or secret["type"].startswith("helm.sh/"):
                continue
            name = f"{secret['metadata']['namespace']}/{secret['metadata']['name']} {key}"
            parts[f"{name}, encoded"] = encoded[:60]
            lines = [line for line in base64.b64decode(encoded).decode().splitlines() if not line.startswith("---")]
            # The third line of a key of P-256 has nothing but its public key.
            lines = lines[:2]
            parts |= {f"{name}, line {number}": line for number, line in enumerate(lines) if len(line) > 16}
    return parts


def test_site_shows_no_secret(cluster: ApiServer, variables: dict[str, Any], tmp_path: Path) -> None:
    """Neither the most verbose output, nor diffs, nor the log, nor any process list."""
    vault = tmp_path / "vault.yml"
    vault.touch(mode=0o600)
    vault.write_text(json.dumps({"vllm_model_server_hf_token": "hf_NOBODY-MUST-SEE-THIS"}))
    log = tmp_path / "ansible.log"
    servers = [{**variables["vllm_model_server_groups"][0], "hf_token_secret": "hugging-face"}]
    # A namespace that no test before has left: without its controller it would never be gone.
    elsewhere = {name: "shown" for name, value in variables.items() if value == "llms"}
    elsewhere["inference_monitoring_namespace"] = "shown"
    given = {**variables, **elsewhere, "vllm_model_server_groups": servers}
    arguments = ("--skip-tags", "envoy_gateway", "-e", f"@{vault}", "-vvv", "--diff")
    with process_lists() as processes:
        made = play(ROOT / "playbooks/site.yml", given, *arguments, environment={"ANSIBLE_LOG_PATH": str(log)})
    assert made.returncode == 0, made.output[-6000:]
    parts = private_parts(cluster)
    assert {name.split(" ")[0] for name in parts} >= {
        "shown/hugging-face",
        "shown/llama-epp-tls",
        "shown/llama-epp-ca",
    }
    assert any(b"site.yml" in one for one in processes), "the process list was not looked at"
    written, listed = log.read_text(), b"\n".join(processes)
    for name, part in parts.items():
        assert part not in made.output, name
        assert part not in written, name
        assert part.encode() not in listed, name
    gone = run("teardown", given, headrace_confirm=True, headrace_teardown_crds=True, headrace_teardown_volumes=True)
    assert gone.returncode == 0, gone.output[-6000:]
