"""Up, down, and everything that can happen to a cluster between the two."""

from __future__ import annotations

import os
import signal
import time
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
        assert up < 8 * 60, "warm, a bring-up takes minutes; the issue's bound is reported, this one has margin"


def test_a_killed_daemon_comes_back_by_itself(stack: Stack, clean: Machine) -> None:
    def ready_nodes() -> int:
        waited = stack.kubectl("wait", "node", "--all", "--for=condition=Ready", "--timeout=5s", check=False)
        return waited.count("condition met")

    stack.site()
    ours = processes_that_name(f"{stack.kubeconfig.parents[1]}/")
    daemons = ("kubelet --", "kube-controller-manager --", "kube-proxy --")
    victims = [pid for pid, command in ours.items() if any(daemon in command for daemon in daemons)]
    assert len(victims) >= 3
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
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
