"""Two pools on a real API server, with traffic that follows the routes' weights as the server has them.

There are no nodes here, so Pods are objects whose addresses are loopback, and what listens there are metrics pages in
the formats of the endpoint picker (its own class) and of vLLM. How much each pool is asked, and how it answers, is
worked out from the weights in the API server: a replacement sees what it caused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import random
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Histogram, generate_latest

from headrace.core import Endpoint, Request
from headrace.datalayer.ledger import InFlight
from headrace.epp.metrics import Metrics

from ..hang import HANG_SECONDS
from ..ports import free_port
from .apiserver import ApiServer

GA = "inference.networking.k8s.io"
REQUESTS_PER_SECOND = 200
_UNVERIFIED = ssl._create_unverified_context()
_REQUEST = Request("id", model="llama", body_size=100)
_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)


@dataclass
class Behaviour:
    """How a pool answers, while a test lets it."""

    errors: float = 0.0
    slowness: float = 1.0


class Served:
    """The pages of one pool: an endpoint picker's and a model server's, on addresses of their own."""

    def __init__(self, name: str, host: str, port: int) -> None:
        self.name, self.host, self.port = name, host, port
        self.behaviour = Behaviour()
        self.models = ["llama"]
        self.picker = Metrics(name)
        self.registry = CollectorRegistry()
        labels = ("model_name", "engine")
        self._ttft = Histogram("vllm:time_to_first_token_seconds", "", labels, buckets=_BUCKETS, registry=self.registry)
        self._tpot = Histogram(
            "vllm:request_time_per_output_token_seconds", "", labels, buckets=_BUCKETS, registry=self.registry
        )
        self._endpoint = Endpoint(address=host, port=port, pod_name=f"{name}-0", namespace="default")
        self._entry = InFlight("id", self._endpoint.key, "llama", 100, 0.0, attached=True, record=None)
        self._rng = random.Random(name)
        self.asked = 0

    def ask(self, count: int) -> None:
        """Let so many requests have come and gone."""
        for _ in range(count):
            self.asked += 1
            self.picker.picked(_REQUEST, self._endpoint)
            failed = self._rng.random() < self.behaviour.errors
            self.picker.answered(self._entry, 500 if failed else 200)
            if not failed:
                first = self._rng.lognormvariate(0, 0.3) * 0.05 * self.behaviour.slowness
                self._ttft.labels("llama", "0").observe(first)
                self._tpot.labels("llama", "0").observe(first / 4)

    @property
    def pages(self) -> web.Application:
        async def page(_: web.Request) -> web.Response:
            content = generate_latest(self.picker.registry) + generate_latest(self.registry)
            return web.Response(body=content, headers={"content-type": CONTENT_TYPE_LATEST})

        async def models(_: web.Request) -> web.Response:
            return web.json_response({"data": [{"id": model} for model in self.models]})

        application = web.Application()
        application.add_routes([web.get("/metrics", page), web.get("/v1/models", models)])
        return application


@dataclass
class Stage:
    """Two pools of a test, `<name>-old` and `<name>-new`, in a namespace of their own."""

    api: ApiServer
    name: str
    old: Served
    new: Served
    directory: Path
    # Nobody asks the pools anything while the new one's share, in percent, is this or more: no gate can pass then.
    held_at: float = math.inf
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def namespace(self) -> str:
        return self.name

    # ---- objects

    def pool_ref(self, which: str, weight: int | None = 1, *, namespace: bool = False, **more: Any) -> dict[str, Any]:
        """A backendRef to one of the pools."""
        found: dict[str, Any] = {"group": GA, "kind": "InferencePool", "name": f"{self.name}-{which}", **more}
        if weight is not None:
            found["weight"] = weight
        if namespace:
            found["namespace"] = self.namespace
        return found

    def route(
        self, name: str, *rules: dict[str, Any], namespace: str = "", kind: str = "HTTPRoute", **metadata: Any
    ) -> None:
        """Make a route."""
        self.api.apply({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind,
            "metadata": {"name": name, "namespace": namespace or self.namespace, **metadata},
            "spec": {"parentRefs": [{"name": "gateway"}], "rules": list(rules)},
        })  # fmt: skip

    def specs(self) -> dict[str, Any]:
        """The specs of every route that has to do with this stage."""
        return {
            f"{item['metadata']['namespace']}/{item['metadata']['name']}": item["spec"]
            for item in self.api.get("httproutes,grpcroutes", "-A")["items"]
            if item["metadata"]["namespace"].startswith(self.namespace)
            and "headrace.dev/replacement" not in item["metadata"].get("labels", {})
        }

    def owners(self, name: str) -> list[str]:
        """The field managers that an HTTPRoute's rules belong to."""
        route = self.api.get("httproute", name, "-n", self.namespace, "--show-managed-fields")
        entries = route["metadata"]["managedFields"]
        return [entry["manager"] for entry in entries if "f:rules" in entry["fieldsV1"].get("f:spec", {})]

    def pod(self, which: str, *, ready: bool = True) -> None:
        """Make a pool's Pods, a model server and an endpoint picker, or change whether they are ready."""
        served = self.old if which == "old" else self.new
        for part in ("server", "picker"):
            self._pod(f"{self.name}-{which}-{part}", served.host, ready=ready)

    def _pod(self, name: str, address: str, *, ready: bool) -> None:
        self.api.apply({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": self.namespace, "labels": {"app": name}},
            "spec": {"automountServiceAccountToken": False, "containers": [{"name": "c", "image": "none"}]},
        })  # fmt: skip
        status = {
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "startTime": "2026-01-01T00:00:00Z",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        }  # fmt: skip
        patch = json.dumps({"status": status})
        done = self.api.kubectl(
            "patch", "pod", name, "-n", self.namespace, "--subresource=status", "--type=merge", "-p", patch
        )
        assert done.returncode == 0, done.stderr

    def set_up(self) -> None:
        """Namespace, pools, pickers and Pods."""
        self.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}})
        for which, served in (("old", self.old), ("new", self.new)):
            name = f"{self.name}-{which}"
            self.api.apply(
                {
                    "apiVersion": f"{GA}/v1", "kind": "InferencePool",
                    "metadata": {"name": name, "namespace": self.namespace},
                    "spec": {
                        "selector": {"matchLabels": {"app": f"{name}-server"}},
                        "targetPorts": [{"number": served.port}],
                        "endpointPickerRef": {"name": f"{name}-epp", "port": {"number": 9002}},
                    },
                },
                {
                    "apiVersion": "v1", "kind": "Service",
                    "metadata": {"name": f"{name}-epp", "namespace": self.namespace},
                    "spec": {
                        "selector": {"app": f"{name}-picker"},
                        "ports": [
                            {"name": "grpc-ext-proc", "port": 9002},
                            {"name": "http-metrics", "port": 9090, "targetPort": served.port},
                        ],
                    },
                },
            )  # fmt: skip
            self.pod(which)

    def forget(self) -> None:
        """Remove the records and Leases: `site.yml` looks at those of every namespace, and others share the server."""
        labels = "app.kubernetes.io/component=pool-replacement"
        self.api.kubectl("delete", "configmaps,leases", "-n", self.namespace, "-l", labels)

    # ---- traffic

    def hold(self, share: int) -> None:
        """Stop all traffic as soon as the new pool has this share: a replacement waits at its gate, until `go_on`."""
        self.held_at = share

    def go_on(self) -> None:
        self.held_at = math.inf

    # ---- the command

    def plan(self, **changes: Any) -> Path:
        """A plan file, quick enough for tests."""
        path = self.directory / f"plan-{time.monotonic_ns()}.json"
        quick = {
            "old": {"namespace": self.namespace, "name": f"{self.name}-old"},
            "new": {"namespace": self.namespace, "name": f"{self.name}-new"},
            "steps": [10, 50, 100], "interval": 1.5, "gate_timeout": 600, "min_sample": 20, "warmup_requests": 0,
            "dead_after": 1, "drain_timeout": 600,
        }  # fmt: skip
        path.write_text(json.dumps({**quick, **changes}))
        return path

    def start(
        self, plan: Path, *arguments: str, run: str = "one", kubeconfig: Path | None = None
    ) -> subprocess.Popen[str]:
        """Start `headrace pool replace`."""
        command = [
            sys.executable, "-m", "headrace.cli.main", "pool", "replace", "--plan-file", str(plan), "--run", run,
            "--kubeconfig", str(kubeconfig or self.api.kubeconfig), "--read-via", "pod", "--poll-interval", "0.2",
            "--lease-duration", "3", *arguments,
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.running.append(process)
        return process

    def finish(self, process: subprocess.Popen[str], timeout: float = 5 * HANG_SECONDS) -> tuple[int, str]:
        """Wait for a command: its exit code and what it said."""
        output, _ = process.communicate(timeout=timeout)
        return process.returncode, output

    def run(self, plan: Path, *arguments: str, run: str = "one") -> tuple[int, str]:
        """Run a command to its end."""
        return self.finish(self.start(plan, *arguments, run=run))

    def kept(self) -> dict[str, Any]:
        """The recorded state; {} where there is none."""
        name = f"headrace-replace-{self.name}-old"
        done = self.api.kubectl("get", "configmap", name, "-n", self.namespace, "-o", "json")
        return json.loads(json.loads(done.stdout)["data"]["state.json"]) if done.returncode == 0 else {}

    def wait_for(self, *phases: str, share: int | None = None) -> dict[str, Any]:
        """Until the recorded state is in one of the phases."""
        deadline = time.monotonic() + 5 * HANG_SECONDS
        while True:
            state = self.kept()
            if state.get("phase") in phases and share in (None, state.get("share")):
                return state
            assert time.monotonic() < deadline, f"still {state.get('phase')} at {state.get('share')} %"
            time.sleep(0.1)


@contextmanager
def staged(api: ApiServer, name: str, number: int, directory: Path) -> Iterator[Stage]:
    """A stage with its pages served and its traffic flowing."""
    port = free_port()
    old, new = Served(f"{name}-old", f"127.0.{number}.1", port), Served(f"{name}-new", f"127.0.{number}.2", port)
    stage = Stage(api, name, old, new, directory)
    stage.set_up()
    stopping, ready = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_serve(stage, stopping, ready)), name=f"traffic {name}")
    thread.start()
    try:
        assert ready.wait(HANG_SECONDS)
        yield stage
    finally:
        stopping.set()
        thread.join()
        for process in stage.running:
            if process.poll() is None:
                process.kill()
                process.communicate()
        stage.forget()


async def _serve(stage: Stage, stopping: threading.Event, ready: threading.Event) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for served in (stage.old, stage.new):
            runner = web.AppRunner(served.pages, access_log=None)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, served.host, served.port).start()
        ready.set()
        rng, share, looked = random.Random(1), 0.0, 0.0
        while not stopping.is_set():
            if time.monotonic() - looked > 0.3:
                share, looked = await asyncio.to_thread(_share_of_new, stage, share), time.monotonic()
            # What a weight comes to is a little more or less, as weights are whole numbers.
            if 100 * share < stage.held_at - 2:
                moved = sum(rng.random() < share for _ in range(REQUESTS_PER_SECOND // 20))
                stage.new.ask(moved)
                stage.old.ask(REQUESTS_PER_SECOND // 20 - moved)
            await asyncio.sleep(0.05)


def _share_of_new(stage: Stage, before: float) -> float:
    """The new pool's share of what the two get, over all rules; as before while the server does not say."""
    # Asked directly: a kubectl every few tenths of a second would be most of what a small machine does.
    config = json.loads(stage.api.kubeconfig.read_text())
    asked = urllib.request.Request(
        f"{config['clusters'][0]['cluster']['server']}/apis/gateway.networking.k8s.io/v1/httproutes",
        headers={"Authorization": f"Bearer {config['users'][0]['user']['token']}"},
    )
    try:
        with urllib.request.urlopen(asked, timeout=HANG_SECONDS, context=_UNVERIFIED) as answer:
            items = json.load(answer)["items"]
    except (OSError, ValueError):
        return before
    weights = {"old": 0, "new": 0}
    for item in items:
        for rule in item["spec"]["rules"]:
            for ref in rule.get("backendRefs") or ():
                for which in weights:
                    if ref["name"] == f"{stage.name}-{which}" and "canary" not in item["metadata"]["name"]:
                        weights[which] += ref.get("weight", 1)
    total = sum(weights.values())
    return weights["new"] / total if total else before


class Cut:
    """A TCP forwarder in front of the API server that can be cut, as a network can."""

    def __init__(self, api: ApiServer, directory: Path) -> None:
        config = json.loads(api.kubeconfig.read_text())
        server = config["clusters"][0]["cluster"]["server"]
        self._target = ("127.0.0.1", int(server.rsplit(":", 1)[1]))
        self.port = free_port()
        config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{self.port}"
        self.kubeconfig = directory / "kubeconfig-cut"
        self.kubeconfig.touch(mode=0o600)
        self.kubeconfig.write_text(json.dumps(config))
        self._open = True
        self._stopping = threading.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="cut")

    def __enter__(self) -> Cut:
        self._thread.start()
        assert self._ready.wait(HANG_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Nobody gets through for the length of the block; what was open is closed."""
        self._open = False
        self._loop.call_soon_threadsafe(lambda: [writer.close() for writer in list(self._writers)])
        try:
            yield
        finally:
            self._open = True

    @contextmanager
    def hang(self) -> Iterator[None]:
        """Nothing gets through for the length of the block, and nobody is told."""
        self._loop.call_soon_threadsafe(self._flowing.clear)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._flowing.set)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._flowing = asyncio.Event()
        self._flowing.set()
        server = await asyncio.start_server(self._forward, "127.0.0.1", self.port)
        self._ready.set()
        await asyncio.to_thread(self._stopping.wait)
        server.close()
        for writer in list(self._writers):
            writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._open:
            writer.close()
            return
        there_reader, there_writer = await asyncio.open_connection(*self._target)
        self._writers |= {writer, there_writer}

        async def pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, RuntimeError):
                while data := await source.read(65536):
                    await self._flowing.wait()
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(pipe(reader, there_writer), pipe(there_reader, writer))
        self._writers -= {writer, there_writer}


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL, and wait until it is gone."""
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def rule(*refs: dict[str, Any], path: str = "/", **more: Any) -> dict[str, Any]:
    return {"matches": [{"path": {"type": "PathPrefix", "value": path}}], "backendRefs": list(refs), **more}


def replaced(stage: Stage, specs: dict[str, Any]) -> dict[str, Any]:
    """The specs with the new pool's name in place of the old one's, and nothing else different."""
    return json.loads(json.dumps(specs).replace(f'"{stage.name}-old"', f'"{stage.name}-new"'))


def simple(stage: Stage) -> dict[str, Any]:
    stage.route("one", rule(stage.pool_ref("old")))
    return stage.specs()
