"""The playbook replace_pool.yml against a real API server; the kubelet's part, running the Job's Pod, is the test's.

What the Job may do is exactly what the role gives its ServiceAccount: the command runs with a token of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ..hang import HANG_SECONDS
from .replacement import Stage, replaced, simple

pytestmark = pytest.mark.slow

RECAP = re.compile(r"^localhost\s+: ok=\d+\s+changed=(\d+)\s+unreachable=\d+\s+failed=(\d+)", re.M)


def play(stage: Stage, repository: Path, *arguments: str, start: bool = False) -> Any:
    """Run replace_pool.yml for a stage's pools, or start it."""
    variables = {
        "headrace_kubeconfig": str(stage.api.kubeconfig), "headrace_context": "test", "ansible_connection": "local",
        "ansible_python_interpreter": "{{ ansible_playbook_python }}",
        "headrace_controller_image": "headrace", "inference_pool_namespace": stage.namespace,
        "pool": f"{stage.name}-old", "replacement": f"{stage.name}-new",
        "pool_replacement_report_dir": str(stage.directory / "reports"), "pool_replacement_poll_interval": 0.2,
        "pool_replacement_steps": [10, 100],
        "pool_replacement_settings": {
            "interval": 1.5, "gate_timeout": 600, "min_sample": 20, "warmup_requests": 0, "drain_timeout": 600,
        },
    }  # fmt: skip
    command = [
        str(repository / ".venv/bin/ansible-playbook"), "playbooks/replace_pool.yml", "-i", "localhost,",
        "-e", json.dumps(variables), *arguments,
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    stage.running.append(process)
    return process if start else stage.finish(process)


def job(stage: Stage) -> dict[str, Any]:
    found = stage.api.get("job", f"headrace-replace-{stage.name}-old", "-n", stage.namespace)
    assert isinstance(found, dict)
    return found


def remove_job(stage: Stage) -> None:
    """As if it had ended: here nobody says so in its status."""
    name = f"headrace-replace-{stage.name}-old"
    done = stage.api.kubectl("delete", "job", name, "-n", stage.namespace, "--cascade=background", "--wait=false")
    assert done.returncode == 0, done.stderr


def await_job(stage: Stage, following: subprocess.Popen[str]) -> None:
    """Until the Job is there, or the playbook that was to make it has ended."""
    for _ in range(3000):
        found = stage.api.kubectl("get", "job", f"headrace-replace-{stage.name}-old", "-n", stage.namespace)
        if found.returncode == 0 or following.poll() is not None:
            break


def run_pod(stage: Stage, pod: str) -> subprocess.Popen[str]:
    """What the kubelet would run, with the rights that the ServiceAccount has."""
    account = job(stage)["spec"]["template"]["spec"]["serviceAccountName"]
    done = stage.api.kubectl("create", "token", account, "-n", stage.namespace)
    assert done.returncode == 0, done.stderr
    config = json.loads(stage.api.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": done.stdout.strip()}
    kubeconfig = stage.directory / "kubeconfig-job"
    kubeconfig.touch(mode=0o600)
    kubeconfig.write_text(json.dumps(config))
    (container,) = job(stage)["spec"]["template"]["spec"]["containers"]
    command = [
        sys.executable, "-m", "headrace.cli.main", *container["args"], "--kubeconfig", str(kubeconfig),
        "--identity", pod, "--read-via", "pod",
    ]  # fmt: skip
    environment = {**os.environ, **{one["name"]: one["value"] for one in container["env"] if "value" in one}}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    stage.running.append(process)
    return process


def rights(stage: Stage, kinds: str) -> list[str]:
    """What there is of these kinds of the role's, as kind/name."""
    label = f"app.kubernetes.io/name=headrace-replace-{stage.name}-old"
    found = stage.api.get(kinds, "-A", "-l", label)["items"]
    return sorted(f"{one['kind']}/{one['metadata']['name']}" for one in found)


def may(stage: Stage, verb: str, what: str, namespace: str) -> bool:
    """Whether the Job's ServiceAccount may do this."""
    account = f"system:serviceaccount:{stage.namespace}:headrace-replace-{stage.name}-old"
    return stage.api.kubectl("auth", "can-i", verb, what, "-n", namespace, "--as", account).stdout.strip() == "yes"


def test_check_mode_prints_the_plan_and_changes_nothing(stage: Stage, repository: Path) -> None:
    before = simple(stage)
    code, output = play(stage, repository, "--check")
    assert code == 0, output
    assert f"HTTPRoute {stage.namespace}/one, rule 0" in output
    assert "Expected: about" in output
    assert RECAP.search(output)[1] == "0"  # type: ignore[index]
    assert stage.specs() == before
    for kind in ("jobs", "leases", "serviceaccounts", "configmaps"):
        found = stage.api.get(kind, "-n", stage.namespace)["items"]
        assert not [one for one in found if "headrace-replace" in one["metadata"]["name"]]


def test_from_the_start_to_the_report_and_back(stage: Stage, repository: Path) -> None:
    before = simple(stage)
    # An approval holds it while the playbook is asked for its status: that takes longer than a quick replacement.
    following = play(stage, repository, "-e", '{"pool_replacement_manual_steps": [10]}', start=True)
    await_job(stage, following)
    pod = run_pod(stage, "pod-1")
    stage.wait_for("AwaitingApproval")
    assert may(stage, "patch", "httproutes.gateway.networking.k8s.io/one", stage.namespace)
    assert not may(stage, "patch", "httproutes.gateway.networking.k8s.io/other", stage.namespace)
    assert not may(stage, "patch", "httproutes.gateway.networking.k8s.io/one", "default")
    code, output = play(stage, repository, "-e", "action=status")
    assert code == 0, output
    assert "AwaitingApproval" in output
    code, output = play(stage, repository, "-e", "action=approve")
    assert code == 0, output
    code, output = stage.finish(pod)
    assert code == 0, output
    assert rights(stage, "rolebindings,clusterrolebindings") == [], "the Job gives its rights up by itself"
    code, output = stage.finish(following)
    assert code == 0, output
    assert rights(stage, "roles,clusterroles,serviceaccounts") == []
    assert "10 % at the new pool: pass" in output
    assert "100 % at the new pool: pass" in output
    assert f"replace the backend pool: {stage.name}-old by" in output.replace("\n", " ").replace("    ", "")
    assert stage.specs() == replaced(stage, before)
    assert (stage.directory / f"reports/headrace-replace-{stage.name}-old.html").exists()
    code, output = play(stage, repository)
    assert code == 0, output
    assert RECAP.search(output)[1] == "0", "what is done is not done again"  # type: ignore[index]
    remove_job(stage)
    following = play(stage, repository, "-e", "action=rollback", start=True)
    await_job(stage, following)
    pod = run_pod(stage, "pod-2")
    code, output = stage.finish(pod)
    assert code == 0, output
    code, output = stage.finish(following)
    assert code == 0, output
    assert stage.specs() == before


def tamper(stage: Stage, part: str = "plan.json", **changes: Any) -> None:
    """Change a part of the record, as whoever may write ConfigMaps can."""
    name = f"headrace-replace-{stage.name}-old"
    kept = json.loads(stage.api.get("configmap", name, "-n", stage.namespace)["data"][part])
    patch = json.dumps({"data": {part: json.dumps({**kept, **changes})}})
    done = stage.api.kubectl("patch", "configmap", name, "-n", stage.namespace, "--type=merge", "-p", patch)
    assert done.returncode == 0, done.stderr


def test_a_forged_record_gives_no_rights_and_removes_nothing(stage: Stage, repository: Path) -> None:
    before = simple(stage)
    assert stage.run(stage.plan(gates=[]))[0] == 0
    victim = f"{stage.name}-victim"
    stage.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": victim}})
    gone = {"group": "", "version": "v1", "plural": "namespaces", "namespace": "", "name": victim}
    tamper(stage, remove_new=[gone])
    following = play(stage, repository, "-e", "action=rollback", start=True)
    await_job(stage, following)
    granted = json.dumps(
        stage.api.get("roles,clusterroles", "-A", "-l", "app.kubernetes.io/component=pool-replacement")
    )
    assert victim not in granted
    assert '"*"' not in granted
    pod = run_pod(stage, "pod-1")
    code, output = stage.finish(pod)
    assert code == 0, output
    assert stage.finish(following)[0] == 0
    assert stage.specs() == before
    phase = stage.api.get("namespace", victim)["status"]["phase"]
    assert phase == "Active"
    # Which routes the Job may change is not for the record to say.
    unnamed = ("-e", json.dumps({"action": "rollback", "replacement": ""}))
    remove_job(stage)
    other = {"group": "inference.networking.k8s.io", "namespace": stage.namespace, "name": "other"}
    tamper(stage, "state.json", phase="Shifting")
    tamper(stage, new=other)
    code, output = play(stage, repository, *unnamed)
    assert code != 0
    assert "must be told which pool took its place" in " ".join(output.split())
    hostile = "x\nrules: [{apiGroups: ['*'], resources: ['*'], verbs: ['*']}]\n---"
    tamper(stage, new={"group": "inference.networking.k8s.io", "namespace": stage.namespace, "name": hostile})
    code, output = play(stage, repository, *unnamed)
    assert code != 0
    assert "new.name" in output
    assert rights(stage, "roles,clusterroles,rolebindings,clusterrolebindings") == []


def test_a_rollback_asked_before_the_job_has_begun_is_not_lost(stage: Stage, repository: Path) -> None:
    before = simple(stage)
    # The run does not end before it has heard of the rollback.
    stage.hold(10)
    following = play(stage, repository, start=True)
    await_job(stage, following)
    code, output = play(stage, repository, "-e", '{"action": "rollback", "pool_replacement_begin_seconds": 2}')
    assert code != 0
    assert "was started and has not begun after 2 s: no weight was moved" in " ".join(output.split())
    asking = play(stage, repository, "-e", "action=rollback", start=True)
    time.sleep(10)
    assert asking.poll() is None
    pod = run_pod(stage, "pod-1")
    code, output = stage.finish(asking)
    assert code == 0, output
    stage.finish(pod)
    assert stage.kept()["phase"] == "RolledBack"
    assert stage.specs() == before
    assert stage.finish(following)[0] != 0


def test_site_refuses_while_a_replacement_is_under_way_and_the_old_inventory_afterwards(
    stage: Stage,
    repository: Path,
    tmp_path: Path,
) -> None:
    simple(stage)
    guard = tmp_path / "guard.yml"
    guard.write_text(json.dumps([{
        "hosts": "localhost", "gather_facts": False, "connection": "local",
        "module_defaults": {"group/kubernetes.core.k8s": {"kubeconfig": str(stage.api.kubeconfig), "context": "test"}},
        "tasks": [{"include_role": {"name": "pool_replacement", "tasks_from": "guard"}}],
    }]))  # fmt: skip

    def site(pool: str) -> tuple[int, str]:
        routes = [{"name": "one", "namespace": stage.namespace, "rules": [{"backends": [{"pool": pool}]}]}]
        command = [
            str(repository / ".venv/bin/ansible-playbook"), str(guard), "-i", "localhost,",
            "-e", json.dumps({"inference_gateway_routes": routes, "ansible_python_interpreter": sys.executable}),
        ]  # fmt: skip
        environment = {"ANSIBLE_ROLES_PATH": str(repository / "roles"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        done = subprocess.run(
            command, cwd=repository, capture_output=True, text=True, env=environment, timeout=5 * HANG_SECONDS
        )
        return done.returncode, done.stdout + done.stderr

    plan = stage.plan(manual=[10])
    process = stage.start(plan, "--identity", "pod-1")
    stage.wait_for("AwaitingApproval")
    code, output = site(f"{stage.name}-old")
    assert code != 0
    assert f"headrace-replace-{stage.name}-old is held by pod-1" in " ".join(output.split())
    assert stage.run(plan, "--action", "approve")[0] == 0
    assert stage.finish(process)[0] == 0
    code, output = site(f"{stage.name}-old")
    assert code != 0
    assert f"which was replaced by {stage.name}-new" in " ".join(output.split())
    code, output = site(f"{stage.name}-new")
    assert code == 0, output


def test_the_old_pools_nodes_are_cordoned_and_drained(stage: Stage, repository: Path) -> None:
    node = f"{stage.name}-node"
    stage.api.apply(
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": {"accelerator": stage.name}}},
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"{node}-other"}},
    )
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": True}
    for name in (node, f"{node}-other"):
        stage.api.apply({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": stage.namespace, "ownerReferences": [owner]},
            # There is no kubelet to say that it has ended.
            "spec": {"nodeName": name, "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": False,
                "containers": [{"name": "c", "image": "none"}]},
        })  # fmt: skip
    route = simple(stage)
    objects = {"pool_replacement_drain_nodes": f"accelerator={stage.name}", "pool_replacement_old": "remove"}
    assert stage.run(stage.plan(gates=[]))[0] == 0

    def drained() -> tuple[bool, bool]:
        nodes = [stage.api.get("node", name)["spec"].get("unschedulable", False) for name in (node, f"{node}-other")]
        return nodes[0], nodes[1]

    code, output = play(stage, repository, "-e", json.dumps(objects), "-e", "action=status")
    assert code == 0, output
    assert drained() == (False, False), "asking changes nothing"
    code, output = play(stage, repository, "-e", json.dumps(objects))
    assert code == 0, output
    assert drained() == (True, False)
    pods = {pod["metadata"]["name"] for pod in stage.api.get("pods", "-n", stage.namespace)["items"]}
    assert node not in pods
    assert f"{node}-other" in pods
    code, output = play(stage, repository, "-e", json.dumps(objects))
    assert RECAP.search(output)[1] == "0"  # type: ignore[index]
    assert stage.specs() == replaced(stage, route)


def test_nothing_is_made_for_what_cannot_be_done(stage: Stage, repository: Path) -> None:
    simple(stage)
    made = {"name": "fresh", "selector": {"app": "fresh"}, "picker": "fresh-epp"}
    inventory = json.dumps({"replacement": "fresh", "inference_pool_pools": [made]})
    code, output = play(stage, repository, "-e", inventory, "--check")
    assert code == 0, output
    assert "before the new pool is made: there is no new pool" in " ".join(output.split())
    assert "make it first" not in output
    mark = "argocd.argoproj.io/tracking-id=x"
    assert stage.api.kubectl("annotate", "httproute", "one", "-n", stage.namespace, mark).returncode == 0
    code, output = play(stage, repository, "-e", inventory)
    assert code != 0
    assert "is managed by Argo CD" in " ".join(output.split()), output
    for kind, name in (("inferencepools", "fresh"), ("deployments", "fresh-epp"), ("serviceaccounts", "fresh-epp")):
        names = [one["metadata"]["name"] for one in stage.api.get(kind, "-n", stage.namespace)["items"]]
        assert name not in names, kind


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-e", "replacement="], "-e pool=OLD -e replacement=NEW"),
        (["-e", "replacement=nowhere"], "there is no new pool"),
        (["-e", '{"pool_replacement_steps": [50]}'], "the last one 100"),
        (["-e", "action=rollback"], "there is nothing to rollback"),
    ],
)
def test_wrong_input_is_refused_with_the_fix(
    stage: Stage,
    repository: Path,
    arguments: list[str],
    message: str,
) -> None:
    before = simple(stage)
    code, output = play(stage, repository, *arguments)
    assert code != 0
    assert message in " ".join(output.split()), output
    assert "Traceback" not in output
    assert stage.specs() == before
