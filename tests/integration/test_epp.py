"""The endpoint picker against a real API server, with the rights of its Role and nothing more."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ..component.epp.picker import PickerProcess, start_picker
from ..hang import HANG_SECONDS
from .apiserver import ApiServer

GA, EXTENSION = "inference.networking.k8s.io", "inference.networking.x-k8s.io"


@pytest.fixture
def namespace(api: ApiServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own, with a service account that may read Pods and pools in it."""
    name = f"epp-{abs(hash(request.node.name)) % 10**8}"
    subject = {"kind": "ServiceAccount", "name": "epp", "namespace": name}
    reading = ["get", "list", "watch"]
    api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    api.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "epp", "namespace": name}},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {"name": "epp", "namespace": name},
            "rules": [
                {"apiGroups": [""], "resources": ["pods"], "verbs": reading},
                {"apiGroups": [GA, EXTENSION], "resources": ["inferencepools"], "verbs": reading},
            ],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "epp", "namespace": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "epp"},
            "subjects": [subject],
        },
    )
    yield name
    api.kubectl("delete", "namespace", name, "--wait=false")


@asynccontextmanager
async def picker_of(
    api: ApiServer, namespace: str, directory: Path, group: str, *flags: str
) -> AsyncIterator[PickerProcess]:
    """A picker of the pool `pool`, with the service account's token."""
    done = api.kubectl("create", "token", "epp", "-n", namespace)
    assert done.returncode == 0, done.stderr
    config = json.loads(api.kubeconfig.read_text())
    config["users"] = [{"name": "test", "user": {"token": done.stdout.strip()}}]
    kubeconfig = directory / "epp.kubeconfig"
    kubeconfig.touch(mode=0o600)
    kubeconfig.write_text(json.dumps(config))
    source = [f"--pool-namespace={namespace}", f"--pool-group={group}"]
    if not any(flag.startswith("--endpoint-selector") for flag in flags):
        source.append("--pool-name=pool")
    async with start_picker([], directory, *flags, source=[*source, f"--kubeconfig={kubeconfig}"]) as picker:
        yield picker


def pod(namespace: str, name: str, app: str = "m", **annotations: str) -> dict[str, Any]:
    container = {"name": "server", "image": "model-server"}
    metadata = {"name": name, "namespace": namespace, "labels": {"app": app}, "annotations": annotations}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}}


def set_ready(api: ApiServer, namespace: str, name: str, address: str, ready: bool = True) -> None:
    condition = {"type": "Ready", "status": "True" if ready else "False"}
    status = {"podIP": address, "podIPs": [{"ip": address}], "conditions": [condition]}
    patch = json.dumps({"status": status})
    done = api.kubectl("patch", "pod", name, "-n", namespace, "--subresource=status", "--type=merge", "-p", patch)
    assert done.returncode == 0, done.stderr


async def until(picker: PickerProcess, condition: Callable[[dict[str, Any]], bool]) -> None:
    """Until /debug/endpoints is as wanted. Raises AssertionError with what it was."""
    seen: dict[str, Any] = {}
    try:
        async with asyncio.timeout(HANG_SECONDS):
            while not condition(seen := json.loads((await picker.get("/debug/endpoints"))[1])):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"never as wanted: {seen}") from None


def listed(*keys: str) -> Callable[[dict[str, Any]], bool]:
    return lambda page: page["synced"] and {entry["endpoint"] for entry in page["endpoints"]} == set(keys)


async def test_a_pool_of_the_page_and_its_pods(api: ApiServer, namespace: str, tmp_path: Path) -> None:
    async with picker_of(api, namespace, tmp_path, EXTENSION) as picker:
        assert (await picker.get("/readyz"))[0] == 503
        pool = {
            "apiVersion": f"{EXTENSION}/v1alpha2",
            "kind": "InferencePool",
            "metadata": {"name": "pool", "namespace": namespace},
            "spec": {
                "targetPortNumber": 8000,
                "selector": {"app": "m"},
                "extensionRef": {"name": "epp", "port": 9002, "failureMode": "FailOpen"},
            },
        }
        api.apply(pool)
        await until(picker, listed())
        assert (await picker.get("/readyz"))[0] == 200
        api.apply(pod(namespace, "a"), pod(namespace, "b"), pod(namespace, "other", app="x"))
        for name, address in (("a", "127.0.0.1"), ("b", "127.0.0.2"), ("other", "127.0.0.3")):
            set_ready(api, namespace, name, address)
        await until(picker, listed("127.0.0.1:8000", "127.0.0.2:8000"))
        await until(picker, lambda page: page["failure_mode"] == "FailOpen")
        set_ready(api, namespace, "a", "127.0.0.1", ready=False)
        await until(picker, listed("127.0.0.2:8000"))
        set_ready(api, namespace, "a", "127.0.0.1")
        await until(picker, listed("127.0.0.1:8000", "127.0.0.2:8000"))
        assert api.kubectl("delete", "pod", "b", "-n", namespace, "--force", "--grace-period=0").returncode == 0
        await until(picker, listed("127.0.0.1:8000"))
        pool["spec"] = {**pool["spec"], "selector": {"app": "x"}, "targetPortNumber": 9000}  # type: ignore[dict-item]
        api.apply(pool)
        await until(picker, listed("127.0.0.3:9000"))
        done = api.kubectl("delete", f"inferencepools.{EXTENSION}", "pool", "-n", namespace)
        assert done.returncode == 0, done.stderr
        await until(picker, listed())


async def test_objectives_and_rewrites_are_followed_where_they_may_be_read(
    api: ApiServer, namespace: str, tmp_path: Path
) -> None:
    pool = {
        "apiVersion": f"{GA}/v1",
        "kind": "InferencePool",
        "metadata": {"name": "pool", "namespace": namespace},
        "spec": {
            "targetPorts": [{"number": 8000}],
            "selector": {"matchLabels": {"app": "m"}},
            "endpointPickerRef": {"name": "epp", "port": {"number": 9002}},
        },
    }
    api.apply(pool)
    async with picker_of(api, namespace, tmp_path, GA) as picker:
        await until(picker, listed())
        # Its Role says nothing of them: logged once for each kind, and it serves.
        async with asyncio.timeout(HANG_SECONDS):
            while picker.log.read_text().count("cannot be read") < 2:  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.05)
        assert (await picker.get("/readyz"))[0] == 200
    role = api.get("role", "epp", "-n", namespace)
    extras = ["inferenceobjectives", "inferencemodelrewrites"]
    role["rules"].append({"apiGroups": [EXTENSION], "resources": extras, "verbs": ["get", "list", "watch"]})
    assert api.kubectl("replace", "-f", "-", stdin=json.dumps(role)).returncode == 0
    async with picker_of(api, namespace, tmp_path, GA) as picker:
        await until(picker, listed())

        def policy(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
            metadata = {"name": name, "namespace": namespace}
            return {"apiVersion": f"{EXTENSION}/v1alpha2", "kind": kind, "metadata": metadata, "spec": spec}

        mine, other = {"name": "pool"}, {"name": "other"}
        rules = [{"matches": [{"model": {"value": "a"}}], "targets": [{"modelRewrite": "b"}]}]
        api.apply(
            policy("InferenceObjective", "chat", {"priority": 7, "poolRef": mine}),
            policy("InferenceObjective", "else", {"priority": 8, "poolRef": other}),
            policy("InferenceModelRewrite", "canary", {"poolRef": mine, "rules": rules}),
        )
        await until(picker, lambda page: page["objectives"] == {"chat": 7} and page["rewritten_models"] == ["a"])
        api.apply(policy("InferenceObjective", "chat", {"priority": -1, "poolRef": mine}))
        await until(picker, lambda page: page["objectives"] == {"chat": -1})
        for kind, name in (("inferenceobjectives", "chat"), ("inferencemodelrewrites", "canary")):
            done = api.kubectl("delete", f"{kind}.{EXTENSION}", name, "-n", namespace)
            assert done.returncode == 0, done.stderr
        await until(picker, lambda page: page["objectives"] == {} and page["rewritten_models"] == [])


async def test_pods_selected_by_flags(api: ApiServer, namespace: str, tmp_path: Path) -> None:
    api.apply(pod(namespace, "a"), pod(namespace, "other", app="x"))
    set_ready(api, namespace, "a", "127.0.0.1")
    set_ready(api, namespace, "other", "127.0.0.2")
    flags = ("--endpoint-selector=app=m", "--endpoint-target-ports=8000,8002", "--failure-mode=FailOpen")
    async with picker_of(api, namespace, tmp_path, GA, *flags) as picker:
        await until(picker, listed("127.0.0.1:8000", "127.0.0.1:8002"))
        await until(picker, lambda page: page["failure_mode"] == "FailOpen")
        set_ready(api, namespace, "a", "127.0.0.1", ready=False)
        await until(picker, listed())


async def test_pages_are_for_those_whom_the_api_server_lets_in(api: ApiServer, namespace: str, tmp_path: Path) -> None:
    def account(name: str, role: str) -> tuple[dict[str, Any], ...]:
        subject = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
        rbac = "rbac.authorization.k8s.io"
        return (
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}},
            {
                "apiVersion": f"{rbac}/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {"name": f"{namespace}-{name}"},
                "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": role},
                "subjects": [subject],
            },
        )

    reader = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": f"{namespace}-metrics"},
        "rules": [{"nonResourceURLs": ["/metrics", "/debug/*"], "verbs": ["get"]}],
    }
    api.apply(reader, *account("reader", f"{namespace}-metrics"), *account("stranger", "system:discovery"))

    async def ask(picker: PickerProcess, path: str, token: str = "") -> int:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        url = f"http://127.0.0.1:{picker.metrics_port}{path}"
        async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
            return answer.status

    tokens = {}
    for name in ("reader", "stranger"):
        done = api.kubectl("create", "token", name, "-n", namespace)
        assert done.returncode == 0, done.stderr
        tokens[name] = done.stdout.strip()
    async with picker_of(api, namespace, tmp_path, GA, "--metrics-endpoint-auth") as picker:
        # Its own account may not ask: nobody gets in, and its log says what is missing.
        assert await ask(picker, "/metrics", tokens["reader"]) == 503
        assert "tokenreviews" in picker.log.read_text()
        api.apply(*account("epp", "system:auth-delegator"))
        async with asyncio.timeout(HANG_SECONDS):
            while await ask(picker, "/metrics", tokens["reader"]) != 200:  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.1)
        assert await ask(picker, "/debug/decisions", tokens["reader"]) == 200
        assert await ask(picker, "/metrics") == 401
        assert await ask(picker, "/metrics", "nonsense") == 401
        assert await ask(picker, "/metrics", tokens["stranger"]) == 403
        assert await ask(picker, "/healthz") == 200


async def test_one_of_two_replicas_leads(
    api: ApiServer, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = api.get("role", "epp", "-n", namespace)
    verbs = ["get", "create", "update"]
    role["rules"].append({"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": verbs})
    assert api.kubectl("replace", "-f", "-", stdin=json.dumps(role)).returncode == 0
    api.apply(
        {
            "apiVersion": f"{GA}/v1",
            "kind": "InferencePool",
            "metadata": {"name": "pool", "namespace": namespace},
            "spec": {
                "targetPorts": [{"number": 8000}],
                "selector": {"matchLabels": {"app": "m"}},
                "endpointPickerRef": {"name": "epp", "port": {"number": 9002}},
            },
        }
    )

    async def ready(picker: PickerProcess, wanted: int) -> None:
        async with asyncio.timeout(HANG_SECONDS):
            while (await picker.get("/readyz"))[0] != wanted:  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.05)

    flag = "--ha-enable-leader-election"
    monkeypatch.setenv("POD_NAME", "first")
    async with picker_of(api, namespace, tmp_path, GA, flag) as first:
        await ready(first, 200)
        monkeypatch.setenv("POD_NAME", "second")
        directory = tmp_path / "second"
        directory.mkdir()
        async with picker_of(api, namespace, directory, GA, flag) as second:
            await until(second, listed())
            assert (await second.get("/readyz"))[0] == 503
            assert (await second.get("/healthz"))[0] == 200
            # It gives the Lease back when it is told to end: nobody waits for its 15 s.
            first.kill(signal.SIGTERM)
            async with asyncio.timeout(HANG_SECONDS):
                assert await first.process.wait() == 0
                await ready(second, 200)
            (held,) = api.get("leases", "-n", namespace)["items"]
            assert held["spec"]["holderIdentity"] == "second"
            assert held["metadata"]["name"].startswith(f"epp-{namespace}-pool.")


async def test_a_v1_pool_with_ranks(api: ApiServer, namespace: str, tmp_path: Path) -> None:
    api.apply(
        {
            "apiVersion": f"{GA}/v1",
            "kind": "InferencePool",
            "metadata": {"name": "pool", "namespace": namespace},
            "spec": {
                "targetPorts": [{"number": 8000}, {"number": 8002}],
                "selector": {"matchLabels": {"app": "m"}},
                "endpointPickerRef": {"name": "epp", "port": {"number": 9002}},
            },
        },
        pod(namespace, "a"),
        pod(namespace, "b", **{"inference.networking.k8s.io/active-ports": "8002"}),
    )
    set_ready(api, namespace, "a", "127.0.0.1")
    set_ready(api, namespace, "b", "127.0.0.2")
    async with picker_of(api, namespace, tmp_path, GA) as picker:
        await until(picker, listed("127.0.0.1:8000", "127.0.0.1:8002", "127.0.0.2:8002"))
        await until(picker, lambda page: page["failure_mode"] == "FailClose")
