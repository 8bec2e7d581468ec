"""Waiting for a cluster that was started: API server, nodes, containerd."""

from __future__ import annotations

import datetime
import json
import subprocess
import time
from collections.abc import Callable

from . import nodes
from .settings import Settings


def _kubectl(settings: Settings, *arguments: str) -> str | None:
    config = settings.state_dir / "kubeconfig" / "admin.conf"
    command = [
        str(settings.state_dir / "bin" / "kubectl"),
        "--kubeconfig",
        str(config),
        "--request-timeout=5s",
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def _time(text: str) -> float:
    return datetime.datetime.fromisoformat(text).timestamp()


def _started(settings: Settings) -> dict[str, float]:
    return {node.name: (node.directory / "running").stat().st_mtime for node in settings.nodes}


def _nodes_ready(settings: Settings) -> bool:
    """Every node says Ready, and has said so since its processes were started: what it said before is worth nothing."""
    listed = _kubectl(settings, "get", "nodes", "-o", "json")
    if listed is None:
        return False
    started = _started(settings)
    ready = {
        node["metadata"]["name"]
        for node in json.loads(listed)["items"]
        for condition in node["status"].get("conditions", [])
        if condition["type"] == "Ready"
        and condition["status"] == "True"
        # API times are whole seconds.
        and _time(condition["lastHeartbeatTime"]) >= int(started.get(node["metadata"]["name"], 0))
    }
    return ready >= set(started)


def _pods_true(settings: Settings) -> bool:
    """No Pod claims to run a container that was started before its node was: the kubelet has seen them all."""
    listed = _kubectl(settings, "get", "pods", "--all-namespaces", "-o", "json")
    if listed is None:
        return False
    started = _started(settings)
    return not any(
        _time(status["state"]["running"]["startedAt"]) < int(started.get(pod["spec"].get("nodeName", ""), 0))
        for pod in json.loads(listed)["items"]
        for status in pod["status"].get("containerStatuses", [])
        if "running" in status["state"]
    )


def _containerd(settings: Settings) -> bool:
    return all(
        subprocess.run(
            [*nodes.enter(settings, node.name), "ctr", "version"], capture_output=True, check=False
        ).returncode
        == 0
        for node in settings.nodes
    )


def wait(settings: Settings, timeout: float) -> None:
    """Return when the cluster is ready.

    Raises:
        NodeError: it is not within the timeout (seconds); the message says which part, and where its logs are.
    """
    deadline = time.monotonic() + timeout
    parts: list[tuple[str, Callable[[], bool], str]] = [
        (
            "the API server",
            lambda: _kubectl(settings, "get", "--raw", "/readyz") is not None,
            "cp/log/kube-apiserver.log, cp/log/etcd.log",
        ),
        ("containerd", lambda: _containerd(settings), "n*/log/containerd.log"),
        ("the nodes", lambda: _nodes_ready(settings), "n*/log/kubelet.log"),
        ("the Pods' restart", lambda: _pods_true(settings), "n*/log/kubelet.log"),
    ]
    for name, ready, logs in parts:
        while not ready():
            if time.monotonic() > deadline:
                raise nodes.NodeError(
                    f"{name} not ready after {timeout:.0f} s. Look into {settings.state_dir}/nodes/: {logs}"
                )
            time.sleep(0.3)


def forget(settings: Settings) -> list[str]:
    """Delete the API's Node objects of nodes that the cluster no longer has; answer with what was done."""
    listed = _kubectl(settings, "get", "nodes", "-o", "name") or ""
    names = sorted(set(listed.split()) - {f"node/{node.name}" for node in settings.nodes})
    return [f"delete {name}" for name in names if _kubectl(settings, "delete", name) is not None]
