"""Role vllm_model_server: what its templates make of groups, line by line of its checklist."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .roles import render

ROLE = "vllm_model_server"
DIGEST = "example.com/vllm@sha256:" + "0" * 64
GROUPS: list[dict[str, Any]] = [
    {
        "name": "full",
        "model": "meta-llama/Llama-3.1-70B",
        "served_model_names": ["llama", "llama-70b"],
        "image": DIGEST,
        "replicas": 2,
        "gpus": 8,
        "pipeline_parallel": 2,
        "max_model_len": 8192,
        "cache_size": "500Gi",
        "cache_storage_class": "fast",
        "hf_token_secret": "hugging-face",
        "adapters": [{"name": "sql", "source": "/adapters/sql"}, {"name": "chat", "source": "org/chat"}],
        "max_cpu_loras": 8,
        "runtime_lora_updating": True,
        "adapter_sync": True,
        "prestop_seconds": 20,
        "drain_seconds": 40,
        "startup_seconds": 1200,
        "topology_keys": ["kubernetes.io/hostname", "topology.kubernetes.io/zone"],
        "pod_monitor": True,
        "extra_args": ["--gpu-memory-utilization=0.92"],
    },
    {
        "name": "hpa",
        "model": "m",
        "autoscaling": {"by": "hpa", "min": 2, "max": 6, "waiting_requests": 3, "pool": "llama"},
        "cache_claim": "models",
    },
    {
        "name": "keda",
        "model": "m",
        "autoscaling": {
            "by": "keda",
            "min": 0,
            "max": 4,
            "prometheus": "http://p:9090",
            "pool": "llama",
            "picker": "llama-epp",
            "saturation": 0.7,
        },
    },
    {
        "name": "sglang",
        "engine": "sglang",
        "image": "example.com/sglang:1",
        "model": "m",
        "gpus": 4,
        "data_parallel": 2,
        "served_model_names": ["name"],
        "max_model_len": 4096,
        "adapters": [{"name": "sql", "source": "/a"}],
    },
    {
        "name": "trtllm",
        "engine": "trtllm",
        "image": "example.com/trtllm:1",
        "model": "m",
        "gpus": 2,
        "max_model_len": 4096,
        "pod_monitor": True,
        "autoscaling": {"by": "hpa", "max": 2},
    },
    {
        "name": "cpu",
        "model": "m",
        "gpus": 0,
        "tolerations": [],
        "cpu_kv_cache_gib": 4,
        "network_policy": False,
        "drain_seconds": 0,
    },
    {
        "name": "keda.long",
        "model": "m",
        "autoscaling": {"by": "keda", "max": 4, "prometheus": "http://p:9090"},
    },
    {"name": "simulated", "engine": "simulator", "image": "example.com/headrace:1", "model": "m", "gpus": 0},
]
VARIABLES: dict[str, Any] = {
    "vllm_model_server_simulator_image": "example.com/headrace:1",
    "vllm_model_server_namespace": "llms",
    "vllm_model_server_groups": GROUPS,
    "vllm_model_server_network_policy_metrics_from": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
}
SERVED = ["scaledobjects.keda.sh", "podmonitors.monitoring.coreos.com"]
Objects = dict[tuple[str, str], dict[str, Any]]


def rendered(folder: Path) -> list[dict[str, Any]]:
    crds = {"resources": [{"metadata": {"name": name}} for name in SERVED]}
    loop = "__vllm_model_server_groups"
    return render(folder, ROLE, "model_server.yaml.j2", VARIABLES, loop, __vllm_model_server_crds=crds)


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Objects:
    """Every object of GROUPS, by kind and name."""
    found = rendered(tmp_path_factory.mktemp("rendered"))
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


def pod(objects: Objects, name: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The Pod's spec, its container, and its command line."""
    spec = objects["Deployment", name]["spec"]["template"]["spec"]
    container = spec["containers"][0]
    return spec, container, " ".join([*container.get("command", []), *container["args"]])


def environment(container: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


def test_probes_wait_for_the_model_and_drop_a_server_at_once(objects: Objects) -> None:
    _, container, _ = pod(objects, "full")
    assert container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"] == 1200
    assert container["readinessProbe"]["failureThreshold"] == 1
    assert container["livenessProbe"]["failureThreshold"] == 5
    assert {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")} == {
        "/health"
    }


def test_grace_is_derived_from_sleep_and_drain(objects: Objects) -> None:
    spec, container, _ = pod(objects, "full")
    assert container["lifecycle"]["preStop"] == {"sleep": {"seconds": 20}}
    assert spec["terminationGracePeriodSeconds"] == 91
    assert flag(pod(objects, "full")[2], "--shutdown-timeout") == "40"
    # vLLM's own default, which versions before the flag have as well.
    assert "--shutdown-timeout" not in pod(objects, "cpu")[2]
    assert objects["Deployment", "full"]["spec"]["progressDeadlineSeconds"] > 1200


def test_shared_memory_service_links_and_security(objects: Objects) -> None:
    for kind, name in objects:
        if kind != "Deployment":
            continue
        spec, container, _ = pod(objects, name)
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        assert spec["enableServiceLinks"] is False
        assert spec["automountServiceAccountToken"] is False
        assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_gpus_are_requested_and_limited_alike_and_split(objects: Objects) -> None:
    _, container, line = pod(objects, "full")
    assert (
        container["resources"]["requests"]["nvidia.com/gpu"]
        == container["resources"]["limits"]["nvidia.com/gpu"]
        == "8"
    )
    assert "--tensor-parallel-size 4 --pipeline-parallel-size 2" in line
    assert "nvidia.com/gpu" not in pod(objects, "cpu")[1]["resources"]["limits"]


def test_vllms_command_line(objects: Objects) -> None:
    line = pod(objects, "full")[2]
    assert line == (
        "vllm serve meta-llama/Llama-3.1-70B --port 8000 --tensor-parallel-size 4 --pipeline-parallel-size 2 "
        "--served-model-name llama llama-70b --max-model-len 8192 --shutdown-timeout 40 --enable-lora --max-loras 4 "
        "--max-lora-rank 16 --max-cpu-loras 8 --lora-modules sql=/adapters/sql chat=org/chat "
        "--gpu-memory-utilization=0.92"
    )


def test_sglangs_command_line(objects: Objects) -> None:
    line = pod(objects, "sglang")[2]
    assert line == (
        "python3 -m sglang.launch_server --model-path m --host 0.0.0.0 --port 8000 --tp-size 2 --enable-metrics "
        "--dp-size 2 --served-model-name name --context-length 4096 --enable-lora --max-loras-per-batch 4 "
        "--max-lora-rank 16 --lora-paths sql=/a"
    )


def test_tensorrt_llms_command_line(objects: Objects) -> None:
    line = pod(objects, "trtllm")[2]
    assert line == "trtllm-serve serve m --host 0.0.0.0 --port 8000 --backend pytorch --tp_size 2 --max_seq_len 4096"


def test_the_picker_is_told_the_engine(objects: Objects) -> None:
    from headrace.datalayer.engines import engine_of

    for name, engine in (("full", "vllm"), ("sglang", "sglang"), ("trtllm", "trtllm-serve"), ("simulated", "vllm")):
        labels = objects["Deployment", name]["spec"]["template"]["metadata"]["labels"]
        assert engine_of(labels).name == engine
    monitor = objects["PodMonitor", "trtllm"]["spec"]["podMetricsEndpoints"][0]
    assert monitor["path"] == engine_of({"inference.networking.k8s.io/engine-type": "trtllm-serve"}).path
    metric = objects["HorizontalPodAutoscaler", "trtllm"]["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert metric == "trtllm_num_requests_waiting"


def test_token_and_cache(objects: Objects) -> None:
    spec, container, _ = pod(objects, "full")
    assert environment(container)["HF_TOKEN"] == {"secretKeyRef": {"name": "hugging-face", "key": "token"}}
    assert environment(container)["HF_HOME"].startswith("/cache/")
    claims = {volume["name"]: volume.get("persistentVolumeClaim") for volume in spec["volumes"]}
    assert claims["cache"] == {"claimName": "full-cache"}
    made = objects["PersistentVolumeClaim", "full-cache"]["spec"]
    assert made["resources"]["requests"]["storage"] == "500Gi"
    assert made["accessModes"] == ["ReadWriteMany"]
    assert made["storageClassName"] == "fast"
    volumes = {volume["name"]: volume for volume in pod(objects, "hpa")[0]["volumes"]}
    assert volumes["cache"]["persistentVolumeClaim"] == {"claimName": "models"}
    assert ("PersistentVolumeClaim", "hpa-cache") not in objects


def test_runtime_lora_is_off_unless_asked_for(objects: Objects) -> None:
    assert environment(pod(objects, "full")[1])["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in environment(pod(objects, "hpa")[1])


def test_a_sidecar_loads_adapters_again(objects: Objects) -> None:
    spec, _, _ = pod(objects, "full")
    [sidecar] = spec["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["image"] == "example.com/headrace:1"
    assert sidecar["command"][-1] == "8000"
    assert all("subPath" not in mount for mount in sidecar["volumeMounts"])
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes["adapters"]["configMap"] == {"name": "full-adapters", "optional": True}
    compile(objects["ConfigMap", "full-adapter-sync"]["data"]["adapter_sync.py"], "adapter_sync.py", "exec")
    assert "initContainers" not in pod(objects, "hpa")[0]


def test_disruption_spread_and_network(objects: Objects) -> None:
    assert objects["PodDisruptionBudget", "full"]["spec"]["maxUnavailable"] == 1
    assert ("PodDisruptionBudget", "hpa") in objects
    assert ("PodDisruptionBudget", "cpu") not in objects
    keys = [one["topologyKey"] for one in pod(objects, "full")[0]["topologySpreadConstraints"]]
    assert keys == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
    peers = objects["NetworkPolicy", "full"]["spec"]["ingress"][0]["from"]
    assert {"namespaceSelector": {"matchLabels": {"name": "monitoring"}}} in peers
    assert ("NetworkPolicy", "cpu") not in objects
    assert objects["Deployment", "full"]["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0


def test_a_scaler_owns_the_number_of_replicas(objects: Objects) -> None:
    assert objects["Deployment", "full"]["spec"]["replicas"] == 2
    for name in ("hpa", "keda"):
        assert "replicas" not in objects["Deployment", name]["spec"]
    hpa = objects["HorizontalPodAutoscaler", "hpa"]["spec"]
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (2, 6)
    assert hpa["metrics"][0]["pods"]["metric"]["name"] == "vllm:num_requests_waiting"
    assert hpa["metrics"][0]["pods"]["target"]["averageValue"] == "3"
    others = {one["external"]["metric"]["name"]: one["external"]["target"] for one in hpa["metrics"][1:]}
    assert others == {
        "inference_extension_flow_control_queue_size": {"type": "AverageValue", "averageValue": "3"},
        "inference_pool_average_running_requests": {"type": "Value", "value": "64"},
        "inference_extension_flow_control_pool_saturation": {"type": "Value", "value": "0.8"},
    }
    keda = objects["ScaledObject", "keda"]["spec"]
    assert keda["minReplicaCount"] == 0
    queries = {one["metadata"]["query"].partition("{")[0]: one for one in keda["triggers"][1:]}
    assert {name: one["metadata"]["threshold"] for name, one in queries.items()} == {
        "sum(inference_extension_flow_control_queue_size": "5",
        "sum(headrace_epp_ledger_requests": "64",
        "max(inference_extension_flow_control_pool_saturation": "0.7",
    }
    for one in queries.values():
        pods = re.search('pod=~"([^"]+)"', one["metadata"]["query"])
        assert pods is not None
        assert re.fullmatch(pods[1], "llama-epp-758c5b6f8-zzzzz")
        assert not re.fullmatch(pods[1], "llama-epp-green-758c5b6f8-zzzzz")
    # An empty pool is full: that alone must not start a server.
    full = queries["max(inference_extension_flow_control_pool_saturation"]
    assert full["metricType"] == "Value"
    assert float(full["metadata"]["activationThreshold"]) > 1000
    assert len(objects["ScaledObject", "keda.long"]["spec"]["triggers"]) == 1
    assert keda["scaleTargetRef"]["name"] == "keda"
    assert keda["triggers"][0]["metadata"] == {
        "serverAddress": "http://p:9090",
        "query": keda["triggers"][0]["metadata"]["query"],
        "threshold": "5",
    }


@pytest.mark.parametrize(
    ("pod", "counts"),
    [
        ("keda-6d4b75cb6d-7xk2p", True),
        ("keda-758c5b6f8-zzzzz", True),
        # Of a group whose name begins with this one's, of a StatefulSet, and of an older name.
        ("keda-green-6d4b75cb6d-7xk2p", False),
        ("keda-24-6d4b75cb6d-7xk2p", False),
        ("keda-0", False),
        ("keda-green-0", False),
        ("blue-keda-6d4b75cb6d-7xk2p", False),
        ("keda", False),
    ],
)
def test_a_scaler_counts_its_own_servers_alone(objects: Objects, pod: str, counts: bool) -> None:
    selected = re.fullmatch(
        r'sum\(vllm:num_requests_waiting\{namespace="llms",pod=~"([^"]+)"\}\)', trigger(objects)["query"]
    )
    assert selected
    # Prometheus takes a pattern for the whole value.
    assert bool(re.fullmatch(selected[1], pod)) is counts


def test_a_dot_in_a_groups_name_is_a_dot(objects: Objects) -> None:
    query = objects["ScaledObject", "keda.long"]["spec"]["triggers"][0]["metadata"]["query"]
    assert 'pod=~"keda[.]long-' in query


def test_cpu_mode(objects: Objects) -> None:
    spec, container, _ = pod(objects, "cpu")
    assert environment(container)["VLLM_CPU_KVCACHE_SPACE"] == "4"
    assert spec["tolerations"] == []
    # The other image of vLLM finds no CUDA there, and does not start.
    assert container["image"].startswith("docker.io/vllm/vllm-openai-cpu:v")
    assert pod(objects, "hpa")[1]["image"].startswith("docker.io/vllm/vllm-openai:v")
    assert container["image"].rpartition(":")[2] == pod(objects, "hpa")[1]["image"].rpartition(":")[2]


def flag(line: str, name: str) -> str:
    """The value after a flag; "" where it is not there."""
    words = line.split()
    return words[words.index(name) + 1] if name in words else ""


# Line by line what a model server on Kubernetes needs, and whether the object has it: (of what, what, look).
CHECKLIST: list[tuple[str, str, Callable[[Objects], bool]]] = [
    *(
        (name, what, look)
        for name in ("full", "hpa", "sglang", "trtllm", "cpu", "simulated")
        for what, look in (
            ("startup is asked for each second", lambda o, n=name: probe(o, n, "startup")["periodSeconds"] == 1),
            (
                "the longest load is the startup threshold",
                lambda o, n=name: probe(o, n, "startup")["failureThreshold"] == (1200 if n == "full" else 600),
            ),
            (
                "one failure, looked for each second, takes it out of the pool",
                lambda o, n=name: (
                    (probe(o, n, "readiness")["periodSeconds"], probe(o, n, "readiness")["failureThreshold"]) == (1, 1)
                ),
            ),
            ("a restart takes five failures", lambda o, n=name: probe(o, n, "liveness")["failureThreshold"] == 5),
            (
                "grace outlasts sleep and drain by half",
                lambda o, n=name: pod(o, n)[0]["terminationGracePeriodSeconds"] >= 1.5 * sum(ending(n)),
            ),
            (
                "endpoints have time to leave before the server is told to end",
                lambda o, n=name: pod(o, n)[1]["lifecycle"]["preStop"] == {"sleep": {"seconds": ending(n)[0]}},
            ),
            ("no variables of Services", lambda o, n=name: pod(o, n)[0]["enableServiceLinks"] is False),
            (
                "shared memory of a stated size",
                lambda o, n=name: (
                    {v["name"]: v for v in pod(o, n)[0]["volumes"]}["shm"]["emptyDir"]
                    == {"medium": "Memory", "sizeLimit": "2Gi"}
                ),
            ),
            (
                "GPUs requested are GPUs limited",
                lambda o, n=name: (
                    pod(o, n)[1]["resources"].get("requests", {}).get("nvidia.com/gpu")
                    == pod(o, n)[1]["resources"].get("limits", {}).get("nvidia.com/gpu")
                ),
            ),
            (
                "no spare GPU for an update",
                lambda o, n=name: (
                    o["Deployment", n]["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
                ),
            ),
            (
                "a load is no failed update",
                lambda o, n=name: (
                    o["Deployment", n]["spec"]["progressDeadlineSeconds"] > probe(o, n, "startup")["failureThreshold"]
                ),
            ),
            (
                "replicas on several nodes",
                lambda o, n=name: (
                    "kubernetes.io/hostname"
                    in [one["topologyKey"] for one in pod(o, n)[0]["topologySpreadConstraints"]]
                ),
            ),
        )
    ),
    (
        "full",
        "replicas in several zones, where nodes say theirs",
        lambda o: (
            "topology.kubernetes.io/zone"
            in [one["topologyKey"] for one in pod(o, "full")[0]["topologySpreadConstraints"]]
        ),
    ),
    *(
        (
            name,
            "requests are answered to the end, for as long as the grace period leaves",
            lambda o, n=name: flag(pod(o, n)[2], "--shutdown-timeout") == str(ending(n)[1]),
        )
        for name in ("full", "hpa", "keda")
    ),
    ("full", "GPUs are tensor by pipeline parallel", lambda o: gpus(o, "full") == 4 * 2),
    ("sglang", "GPUs are tensor by data parallel", lambda o: gpus(o, "sglang") == 2 * 2),
    ("trtllm", "GPUs are tensor parallel", lambda o: gpus(o, "trtllm") == 2),
    ("full", "the token comes of a Secret", lambda o: "secretKeyRef" in environment(pod(o, "full")[1])["HF_TOKEN"]),
    ("full", "the cache is on the volume", lambda o: environment(pod(o, "full")[1])["HF_HOME"] == "/cache/huggingface"),
    ("full", "several replicas share it", lambda o: modes(o, "full") == ["ReadWriteMany"]),
    ("full", "adapters: --enable-lora", lambda o: "--enable-lora" in pod(o, "full")[2]),
    ("full", "adapters: --max-loras", lambda o: flag(pod(o, "full")[2], "--max-loras") == "4"),
    ("full", "adapters: --max-lora-rank", lambda o: flag(pod(o, "full")[2], "--max-lora-rank") == "16"),
    ("full", "adapters: --max-cpu-loras", lambda o: flag(pod(o, "full")[2], "--max-cpu-loras") == "8"),
    ("full", "who may load adapters is limited", lambda o: ("NetworkPolicy", "full") in o),
    ("full", "the sidecar stays", lambda o: pod(o, "full")[0]["initContainers"][0]["restartPolicy"] == "Always"),
    ("full", "the image by digest, as it was given", lambda o: pod(o, "full")[1]["image"] == DIGEST),
    ("full", "one replica at a time goes", lambda o: o["PodDisruptionBudget", "full"]["spec"]["maxUnavailable"] == 1),
    (
        "full",
        "metrics are scraped",
        lambda o: o["PodMonitor", "full"]["spec"]["podMetricsEndpoints"][0]["path"] == "/metrics",
    ),
    (
        "hpa",
        "GPU nodes are tolerated",
        lambda o: {"key": "nvidia.com/gpu", "operator": "Exists"}.items() <= pod(o, "hpa")[0]["tolerations"][0].items(),
    ),
    ("hpa", "the scaler's number is not written", lambda o: "replicas" not in o["Deployment", "hpa"]["spec"]),
    ("keda", "five waiting requests are a replica's", lambda o: trigger(o)["threshold"] == "5"),
    ("keda", "waiting requests scale", lambda o: "vllm:num_requests_waiting" in trigger(o)["query"]),
]


def ending(name: str) -> tuple[int, int]:
    """Seconds that a group sleeps before it is told to end, and drains after that."""
    return {"full": (20, 40), "cpu": (30, 0)}.get(name, (30, 60))


def probe(objects: Objects, name: str, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = pod(objects, name)[1][f"{kind}Probe"]
    assert found["httpGet"]["path"] == "/health"
    return found


def gpus(objects: Objects, name: str) -> int:
    return int(pod(objects, name)[1]["resources"]["limits"]["nvidia.com/gpu"])


def modes(objects: Objects, name: str) -> list[str]:
    found: list[str] = objects["PersistentVolumeClaim", f"{name}-cache"]["spec"]["accessModes"]
    return found


def trigger(objects: Objects) -> dict[str, str]:
    found: dict[str, str] = objects["ScaledObject", "keda"]["spec"]["triggers"][0]["metadata"]
    return found


@pytest.mark.parametrize(("name", "what", "look"), CHECKLIST, ids=[f"{name}: {what}" for name, what, _ in CHECKLIST])
def test_the_checklist_is_met(objects: Objects, name: str, what: str, look: Callable[[Objects], bool]) -> None:
    assert look(objects), f"{name}: {what}"
