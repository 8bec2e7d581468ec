"""`headrace pool status` and `explain` against a real API server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..command import headrace_pool
from .apiserver import ApiServer
from .test_epp import EXTENSION, GA, namespace, pod, set_ready

__all__ = ["namespace"]


def pool(version: str, where: str) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "targetPorts": [{"number": 8000}],
        "selector": {"matchLabels": {"app": "m"}},
        "endpointPickerRef": {"name": "epp", "port": {"number": 9002}},
    }
    if version == "v1alpha2":
        spec = {"targetPortNumber": 8000, "selector": {"app": "m"}, "extensionRef": {"name": "epp", "port": 9002}}
    group = EXTENSION if version == "v1alpha2" else GA
    metadata = {"name": f"pool-{version}", "namespace": where}
    return {"apiVersion": f"{group}/{version}", "kind": "InferencePool", "metadata": metadata, "spec": spec}


async def test_status(api: ApiServer, namespace: str) -> None:
    flags = ("-n", namespace, "--kubeconfig", str(api.kubeconfig))
    code, _, error = await headrace_pool("status", *flags)
    assert (code, f"there is no InferencePool in namespace {namespace}" in error) == (1, True), error
    api.apply(pool("v1", namespace), pool("v1alpha2", namespace), pod(namespace, "a"), pod(namespace, "b"))
    set_ready(api, namespace, "a", "127.0.0.1")
    code, out, error = await headrace_pool("status", *flags)
    assert code == 0, error
    rows = [line.split() for line in out.splitlines()]
    assert rows[1][:6] == [namespace, "pool-v1", "v1", "1/2", "0/0", "?"]
    assert rows[2][:3] == [namespace, "pool-v1alpha2", "v1alpha2"]
    assert f"Service {namespace}/epp, its endpoint picker, does not exist" in out
    selector = {"app": "epp"}
    api.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "epp", "namespace": namespace},
            "spec": {"selector": selector, "ports": [{"port": 9002}]},
        },
        pod(namespace, "picker", app="epp"),
    )
    set_ready(api, namespace, "picker", "127.0.0.1")
    code, out, error = await headrace_pool("status", "pool-v1", "-o", "json", *flags)
    assert code == 0, error
    (found,) = json.loads(out)
    assert (found["pickers"], found["pods"]) == (
        {"pods": 1, "ready": 1, "trusted": None},
        {"selected": 2, "ready": 1},
    )
    # The API server's proxy does not go to loopback addresses: the picker cannot be asked, and that is said.
    assert found["picker"] is None
    assert any("--metrics-port" in text for text in found["trouble"])
    code, _, error = await headrace_pool("explain", "r1", *flags)
    assert (code, "no picker knows request r1" in error) == (1, True)


async def test_no_cluster_is_one_line(tmp_path: Path) -> None:
    code, _, error = await headrace_pool("status", "--kubeconfig", str(tmp_path / "nowhere"))
    assert (code, len(error.splitlines())) == (1, 1)
    code, _, error = await headrace_pool("explain", "r1", "--url", "http://127.0.0.1:1")
    assert (code, "metrics port" in error) == (1, True)
