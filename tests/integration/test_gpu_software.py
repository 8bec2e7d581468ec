"""Role gpu_node_pool: NVIDIA's charts get the values that they read. The charts here are the test's own.

Their schemas hold the keys of the published charts that this role sets, and nothing else; Helm itself compares. No
program of NVIDIA's runs.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .apiserver import ApiServer
from .roles import Run, play, refusals

ROLE = "gpu_node_pool"
NAMESPACE = "gpu-software"
TAINT = {"key": "team", "value": "llm", "effect": "NoSchedule"}


def shape(**keys: Any) -> dict[str, Any]:
    """A JSON schema of an object that has these keys and no others."""
    return {"type": "object", "additionalProperties": False, "properties": keys}


SWITCH = {"type": "boolean"}
NAME = {"type": "string"}
CHARTS = {
    "gpu-operator": shape(
        driver=shape(enabled=SWITCH, version=NAME),
        toolkit=shape(enabled=SWITCH),
        devicePlugin=shape(enabled=SWITCH, config=shape(name=NAME)),
        dcgmExporter=shape(enabled=SWITCH, serviceMonitor=shape(enabled=SWITCH)),
        mig=shape(strategy={"enum": ["none", "single", "mixed"]}),
        migManager=shape(enabled=SWITCH, config=shape(name=NAME)),
        daemonsets=shape(tolerations={"type": "array"}),
    ),
    "nvidia-device-plugin": shape(
        config=shape(name=NAME, fallbackStrategies={"type": "array", "items": {"enum": ["named", "single", "empty"]}}),
        migStrategy={"enum": ["none", "single", "mixed"]},
        affinity={"type": "object"},
        tolerations={"type": "array"},
    ),
    "dcgm-exporter": shape(
        serviceMonitor=shape(enabled=SWITCH), affinity={"type": "object"}, tolerations={"type": "array"}
    ),
}
# What the charts make of some of it: as the published ones, a DaemonSet with tolerations and affinity.
DAEMON = """
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: {{ .Release.Name }}, namespace: {{ .Release.Namespace }}}
spec:
  selector: {matchLabels: {app: {{ .Release.Name }}}}
  template:
    metadata: {labels: {app: {{ .Release.Name }}}}
    spec:
      affinity: {{ toJson (.Values.affinity | default dict) }}
      tolerations: {{ toJson (.Values.tolerations | default (.Values.daemonsets | default dict).tolerations) }}
      containers: [{name: a, image: example.com/none}]
"""


@pytest.fixture(scope="module")
def charts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("charts")
    for name, schema in CHARTS.items():
        (folder / name / "templates").mkdir(parents=True)
        chart = {"apiVersion": "v2", "name": name, "version": "1.0.0"}
        (folder / name / "Chart.yaml").write_text(yaml.safe_dump(chart))
        # `global` is Helm's own.
        (folder / name / "values.schema.json").write_text(
            json.dumps({**schema, "properties": {**schema["properties"], "global": {}}})
        )
        (folder / name / "templates/daemon.yaml").write_text(DAEMON)
    return folder


@pytest.fixture
def cluster(api: ApiServer, repository: Path) -> Iterator[ApiServer]:
    """With a node, and without a release: other tests see neither."""
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "gpu1", "labels": {"test": "gpu-software"}}}
    api.apply(node)
    yield api
    command = [str(repository / "build/bin/helm"), "--kubeconfig", str(api.kubeconfig), "-n", NAMESPACE]
    for name in CHARTS:
        subprocess.run([*command, "uninstall", name, "--ignore-not-found"], capture_output=True, check=True)
    assert api.kubectl("delete", "node", "gpu1", "--wait=false").returncode == 0


def variables(charts: Path, repository: Path, **more: Any) -> dict[str, Any]:
    own = {
        f"gpu_node_pool_{prefix}_{key}": value
        for prefix, name in (
            ("operator", "gpu-operator"),
            ("device_plugin", "nvidia-device-plugin"),
            ("dcgm_exporter", "dcgm-exporter"),
        )
        for key, value in (("chart", str(charts / name)), ("chart_repository", ""), ("chart_version", ""))
    }
    pool = {"name": "gpus", "node_selector": {"test": "gpu-software"}, "taints": [TAINT]}
    return {
        **own,
        "headrace_binary_dir": str(repository / "build/bin"),
        "gpu_node_pool_operator_namespace": NAMESPACE,
        "gpu_node_pool_software_wait": False,
        "gpu_node_pool_require_gpus": False,
        "gpu_node_pool_pools": [{**pool, **more.pop("pool", {})}],
        **more,
    }


def run(cluster: ApiServer, folder: Path, given: dict[str, Any], *arguments: str) -> Run:
    access = {"kubeconfig": str(cluster.kubeconfig), "context": "test"}
    defaults = {"group/kubernetes.core.k8s": access, "group/kubernetes.core.helm": access}
    content = {
        "hosts": "localhost",
        "gather_facts": False,
        "module_defaults": {**defaults, "kubernetes.core.k8s_taint": access},
        "roles": [ROLE],
    }
    (folder / "play.yml").write_text(yaml.safe_dump([content]))
    return play(folder / "play.yml", given, *arguments)


def values(cluster: ApiServer, repository: Path, release: str) -> dict[str, Any]:
    """What Helm keeps as the release's own values."""
    command = [str(repository / "build/bin/helm"), "--kubeconfig", str(cluster.kubeconfig), "-n", NAMESPACE]
    done = subprocess.run([*command, "get", "values", release, "-o", "json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_the_gpu_operator(cluster: ApiServer, charts: Path, repository: Path, tmp_path: Path) -> None:
    given = variables(
        charts,
        repository,
        pool={"mig": "halves", "time_slicing": 4},
        gpu_node_pool_software="operator",
        gpu_node_pool_mig_strategy="mixed",
        gpu_node_pool_mig_configs={"halves": [{"devices": "all", "mig-enabled": True, "mig-devices": {"3g.40gb": 2}}]},
        gpu_node_pool_operator_values={"driver": {"version": "580"}},
    )
    planned = run(cluster, tmp_path, given, "--check", "--diff")
    assert planned.returncode == 0, planned.output[-6000:]
    assert planned.changed > 0
    assert cluster.kubectl("get", "namespace", NAMESPACE).returncode != 0, "check mode has made something"
    made = run(cluster, tmp_path, given)
    assert made.returncode == 0, made.output[-6000:]
    assert values(cluster, repository, "gpu-operator") == {
        # By which teardown knows the release.
        "global": {"partOf": "headrace"},
        "driver": {"enabled": True, "version": "580"},
        "toolkit": {"enabled": True},
        "devicePlugin": {"enabled": True, "config": {"name": "headrace-time-slicing"}},
        "dcgmExporter": {"enabled": True, "serviceMonitor": {"enabled": False}},
        "mig": {"strategy": "mixed"},
        "migManager": {"enabled": True, "config": {"name": "headrace-mig-parted"}},
        "daemonsets": {
            "tolerations": [
                {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
                {"key": "team", "operator": "Exists", "effect": "NoSchedule"},
            ]
        },
    }
    labels = cluster.get("node", "gpu1")["metadata"]["labels"]
    assert labels["nvidia.com/mig.config"] == "halves"
    assert labels["nvidia.com/device-plugin.config"] == "replicas-4"
    namespace = cluster.get("namespace", NAMESPACE)["metadata"]["labels"]
    assert namespace["pod-security.kubernetes.io/enforce"] == "privileged"
    slices = cluster.get("configmap", "headrace-time-slicing", "-n", NAMESPACE)["data"]
    assert yaml.safe_load(slices["replicas-4"]) == {
        "version": "v1",
        "sharing": {"timeSlicing": {"resources": [{"name": "nvidia.com/gpu", "replicas": 4}]}},
    }
    partitions = yaml.safe_load(cluster.get("configmap", "headrace-mig-parted", "-n", NAMESPACE)["data"]["config.yaml"])
    assert partitions == {
        "version": "v1",
        "mig-configs": {
            # What the MIG manager falls back to must be there.
            "all-disabled": [{"devices": "all", "mig-enabled": False}],
            "halves": [{"devices": "all", "mig-enabled": True, "mig-devices": {"3g.40gb": 2}}],
        },
    }
    for arguments in ((), ("--check", "--diff")):
        again = run(cluster, tmp_path, given, *arguments)
        assert (again.returncode, again.changed) == (0, 0), again.output[-6000:]


@pytest.mark.slow
def test_the_device_plugin_alone(cluster: ApiServer, charts: Path, repository: Path, tmp_path: Path) -> None:
    given = variables(charts, repository, gpu_node_pool_software="device_plugin")
    made = run(cluster, tmp_path, given)
    assert made.returncode == 0, made.output[-6000:]
    plugin = values(cluster, repository, "nvidia-device-plugin")
    assert plugin["config"] == {"name": "", "fallbackStrategies": ["empty"]}
    assert plugin["migStrategy"] == "single"
    exporter = values(cluster, repository, "dcgm-exporter")
    assert exporter["serviceMonitor"] == {"enabled": False}
    assert plugin["global"] == exporter["global"] == {"partOf": "headrace"}
    daemon = cluster.get("daemonset", "nvidia-device-plugin", "-n", NAMESPACE)["spec"]["template"]["spec"]
    terms = daemon["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert terms == [{"matchExpressions": [{"key": "headrace.dev/gpu-node-pool", "operator": "Exists"}]}]
    assert {"key": "team", "operator": "Exists", "effect": "NoSchedule"} in daemon["tolerations"]
    again = run(cluster, tmp_path, given)
    assert (again.returncode, again.changed) == (0, 0), again.output[-6000:]


@pytest.mark.slow
def test_a_value_that_a_chart_does_not_know_is_refused(
    cluster: ApiServer, charts: Path, repository: Path, tmp_path: Path
) -> None:
    """Or the comparisons above would let anything pass."""
    wrong = {"migManger": {"enabled": True}}
    given = variables(charts, repository, gpu_node_pool_software="operator", gpu_node_pool_operator_values=wrong)
    refused = run(cluster, tmp_path, given)
    assert refused.returncode != 0
    assert "migManger" in refused.said


def pools(**keys: Any) -> dict[str, Any]:
    return {"gpu_node_pool_pools": [{"name": "p", "nodes": ["gpu1"], **keys}]}


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "gke": (
        {
            "gpu_node_pool_software": "operator",
            "gpu_node_pool_provider": "gke",
            "gpu_node_pool_cluster": "c",
            "gpu_node_pool_gke": {"project": "p", "location": "l"},
        },
        "GKE brings a device plugin of its own",
    ),
    "two": (
        {"gpu_node_pool_software": "operator", "gpu_node_pool_simulated_gpus": 8, "headrace_local_cluster": True,
         "gpu_node_pool_simulator_image": "i"},
        "Two device plugins take each other's GPUs",
    ),
    "mig": ({"gpu_node_pool_software": "device_plugin", **pools(mig="all-1g.10gb")}, "Fix: operator, or leave mig out"),
    "configs": (
        {"gpu_node_pool_software": "device_plugin", "gpu_node_pool_mig_configs": {"a": []}},
        "the GPU Operator's MIG manager alone reads",
    ),
    "unknown": (
        {"gpu_node_pool_software": "operator", "gpu_node_pool_mig_configs": {"a": []}, **pools(mig="b")},
        "pool p has mig b, and gpu_node_pool_mig_configs has a",
    ),
    "choice": ({"gpu_node_pool_software": "gpu-operator"}, "value of gpu_node_pool_software must be one of"),
    "fine": ({"gpu_node_pool_software": "operator", **pools(mig="all-1g.10gb")}, ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return refusals(tmp_path_factory.mktemp("refusals"), ROLE, {name: case[0] for name, case in CASES.items()})


@pytest.mark.parametrize("name", sorted(CASES))
def test_wrong_input_is_refused(told: dict[str, str], name: str) -> None:
    assert CASES[name][1] in told[name]
    assert bool(CASES[name][1]) == bool(told[name])
