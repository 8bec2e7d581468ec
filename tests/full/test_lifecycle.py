"""Up, down, and everything that can happen to a cluster between the two."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..e2e.stack import Stack
from .machine import Machine, processes_that_name

DOWN = "playbooks/local_cluster_down.yml"
SMOKE = "playbooks/smoke.yml"


@pytest.fixture
def clean(stack: Stack) -> Iterator[Machine]:
    """A machine without the tests' cluster, before and after."""
    stack.playbook(DOWN)
    before = Machine.now()
    try:
        yield before
    finally:
        stack.playbook(DOWN)


def test_three_times_up_and_down_leaves_nothing(stack: Stack, clean: Machine) -> None:
    for turn in range(3):
        started = time.monotonic()
        stack.site()
        stack.playbook(SMOKE)
        up = time.monotonic() - started
        started = time.monotonic()
        stack.playbook(DOWN)
        print(f"turn {turn + 1}: up and smoke {up:.0f} s, down {time.monotonic() - started:.0f} s")
        assert Machine.now() == clean
        assert not processes_that_name(f"{stack.kubeconfig.parents[1]}/")
        assert up < 8 * 60, "warm, a bring-up takes minutes: the time is printed above, and this bound has margin"


def test_a_killed_daemon_comes_back_by_itself(stack: Stack, clean: Machine) -> None:
    def ready_nodes() -> int:
        waited = stack.kubectl("wait", "node", "--all", "--for=condition=Ready", "--timeout=5s", check=False)
        return waited.count("condition met")

    stack.site()
    ours = processes_that_name(f"{stack.kubeconfig.parents[1]}/")
    # How many of each there are: one in the control plane, or one on each of the two nodes.
    daemons = {"etcd": 1, "kube-apiserver": 1, "kube-controller-manager": 1, "kube-scheduler": 1}
    daemons |= {"kubelet": 2, "kube-proxy": 2, "containerd": 2}
    program = {pid: Path(command.split()[0]).name for pid, command in ours.items()}
    victims = [pid for pid, name in program.items() if name in daemons]
    assert Counter(program[pid] for pid in victims) == daemons
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    stack.wait_for("they are gone", lambda: not any(stack.is_process(pid) for pid in victims))
    stack.wait_for(
        "each runs again",
        lambda: (
            Counter(
                Path(command.split()[0]).name
                for command in processes_that_name(f"{stack.kubeconfig.parents[1]}/").values()
            )
            >= Counter(daemons)
        ),
        120,
    )
    stack.wait_for("the API server answers", lambda: "ok" in stack.kubectl("get", "--raw=/readyz", check=False), 120)
    stack.wait_for("nodes are Ready", lambda: ready_nodes() == 2, 120)
    stack.playbook(SMOKE)


def test_the_death_of_every_process_is_repaired_by_running_again(stack: Stack, clean: Machine) -> None:
    stack.site()
    deadline = time.monotonic() + 30
    while (left := processes_that_name(f"{stack.kubeconfig.parents[1]}/")) and time.monotonic() < deadline:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    assert Machine.now().namespaces > clean.namespaces, "namespaces were left behind, as after a crash"
    stack.site()
    stack.playbook(SMOKE)


# Beside the tests' cluster: a name, networks and a port of its own, and one node.
BESIDE = {
    "local_cluster_name": "hrbeside",
    "local_cluster_workers": 1,
    "local_cluster_node_network": "172.29.0.0/24",
    "local_cluster_pod_network": "10.246.0.0/16",
    "local_cluster_service_network": "10.98.0.0/16",
    "local_cluster_load_balancer_network": "172.29.100.0/24",
    "local_cluster_publish_address": "127.0.0.1:18081",
}


def test_two_clusters_stand_side_by_side_and_the_end_of_one_leaves_the_other(
    stack: Stack, clean: Machine, tmp_path: Path
) -> None:
    variables = tmp_path / "beside.yml"
    variables.write_text(json.dumps(BESIDE))
    beside = Stack.from_inventory(stack.repository, str(variables))
    beside.playbook(DOWN)
    stack.site()
    alone = Machine.now()
    try:
        beside.playbook("site.yml", "--tags", "local_cluster", timeout=1800)
        assert [node["metadata"]["name"] for node in beside.objects("nodes")] == ["n1"]
        assert len(stack.objects("nodes")) == 2
        stack.playbook(SMOKE)
    finally:
        beside.playbook(DOWN)
    after = Machine.now()
    for part in ("namespaces", "links", "routes", "firewall", "forwarding"):
        assert getattr(after, part) == getattr(alone, part), part
    assert not processes_that_name(f"{beside.kubeconfig.parents[1]}/")
    stack.playbook(SMOKE)


def test_memory_of_the_whole_stack(stack: Stack, clean: Machine) -> None:
    def used_mib() -> int:
        values = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return (int(values["MemTotal"].split()[0]) - int(values["MemAvailable"].split()[0])) // 1024

    before = used_mib()
    stack.site()
    stack.playbook(SMOKE)
    after = used_mib()
    print(f"memory in use: {before} MiB without, {after} MiB with the stack: {after - before} MiB")
    assert after - before < 4096
