"""`headrace pool status` and `explain` against a real API server and a running picker."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import grpc.aio

from ..component.epp.picker import start_picker
from ..hang import HANG_SECONDS
from ..unit.extproc import messages as m
from .apiserver import ApiServer
from .test_epp import EXTENSION, GA, namespace, pod, set_ready

__all__ = ["namespace"]

PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"


async def headrace(*arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of `headrace pool`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headrace.cli.main", "pool", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(HANG_SECONDS):
        out, error = await process.communicate()
    assert b"Traceback" not in error, error.decode()
    return process.returncode or 0, out.decode(), error.decode()


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
    code, _, error = await headrace("status", *flags)
    assert (code, f"there is no InferencePool in namespace {namespace}" in error) == (1, True), error
    api.apply(pool("v1", namespace), pool("v1alpha2", namespace), pod(namespace, "a"), pod(namespace, "b"))
    set_ready(api, namespace, "a", "127.0.0.1")
    code, out, error = await headrace("status", *flags)
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
    code, out, error = await headrace("status", "pool-v1", "-o", "json", *flags)
    assert code == 0, error
    (found,) = json.loads(out)
    assert (found["pickers"], found["pods"]) == (
        {"pods": 1, "ready": 1, "trusted": None},
        {"selected": 2, "ready": 1},
    )
    # The API server's proxy does not go to loopback addresses: the picker cannot be asked, and that is said.
    assert found["picker"] is None
    assert any("--metrics-port" in text for text in found["trouble"])
    code, _, error = await headrace("explain", "r1", *flags)
    assert (code, "no picker knows request r1" in error) == (1, True)


async def test_no_cluster_is_one_line(tmp_path: Path) -> None:
    code, _, error = await headrace("status", "--kubeconfig", str(tmp_path / "nowhere"))
    assert (code, len(error.splitlines())) == (1, 1)
    code, _, error = await headrace("explain", "r1", "--url", "http://127.0.0.1:1")
    assert (code, "metrics port" in error) == (1, True)


async def test_explain_at_a_url(tmp_path: Path) -> None:
    async with start_picker(["127.0.0.1:1", "127.0.0.1:2"], tmp_path) as picker:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{picker.grpc_port}") as channel:
            call = channel.stream_stream(PROCESS)(timeout=HANG_SECONDS, wait_for_ready=True)
            await call.write(m.request_headers(m.REQUEST).SerializeToString())
            await call.write(m.body("request_body", b'{"model":"base","prompt":"x"}', True).SerializeToString())
            assert isinstance(await call.read(), bytes)
            call.cancel()
        url = f"http://127.0.0.1:{picker.metrics_port}"
        code, out, error = await headrace("explain", "id-1", "--url", url)
        assert code == 0, error
        assert "model      base" in out
        assert "2 candidates" in out
        code, out, _ = await headrace("explain", "id-1", "--url", url, "-o", "json")
        assert (code, json.loads(out)[0]["request_id"]) == (0, "id-1")
        code, _, error = await headrace("explain", "other", "--url", url)
        assert (code, "no picker knows request other" in error) == (1, True)
