"""Process 1 of a node: services are started again, later each time; logs stay bounded; orphans are reaped."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from local_cluster import node
from local_cluster.nodes import digest
from local_cluster.settings import Node

from ...hang import HANG_SECONDS

TOOL = Path(node.__file__).parents[1]
PROGRAM = """
import sys
from pathlib import Path
from local_cluster.node import Service, supervise
folder = Path(sys.argv[1])
supervise([Service.of(script, folder) for script in sorted(folder.glob("*.sh"))])
"""


def wait_for(condition: Callable[[], bool], seconds: float = HANG_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_service_that_ends_is_started_again_and_the_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "failing.sh").write_text("echo started; exit 3\n")
    (tmp_path / "steady.sh").write_text("echo $$; exec sleep 600\n")
    env = {**os.environ, "PYTHONPATH": str(TOOL), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], env=env, stdout=subprocess.PIPE, text=True
    )
    steady = 0
    try:
        failing, log = tmp_path / "failing.log", tmp_path / "steady.log"
        wait_for(lambda: failing.exists() and failing.read_text().count("started") >= 2)
        wait_for(lambda: log.exists() and log.read_text().endswith("\n"))
        steady = int(log.read_text())
        os.kill(steady, signal.SIGKILL)
        wait_for(lambda: log.read_text().count("\n") == 2)
        steady = int(log.read_text().split()[1])
        process.terminate()
        output, _ = process.communicate(timeout=HANG_SECONDS)
    finally:
        process.kill()
        if steady:
            os.kill(steady, signal.SIGKILL)
    assert "failing ended with 3" in output
    assert "steady ended with -9" in output
    assert "ending on signal 15" in output


def test_a_service_that_keeps_failing_waits_longer_up_to_a_bound(tmp_path: Path) -> None:
    (tmp_path / "a.sh").write_text("exit 0\n")
    service = node.Service.of(tmp_path / "a.sh", tmp_path)
    pauses = []
    for _ in range(6):
        service.started = time.monotonic()
        service.ended(0)
        pauses.append(service.pause)
    assert pauses == [1, 2, 4, 8, node.LONGEST_PAUSE, node.LONGEST_PAUSE]
    service.started = time.monotonic() - 60
    service.ended(0)
    assert service.pause == 1


def test_a_log_that_grew_is_emptied_under_its_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "LOG_BYTES", 10)
    log = tmp_path / "kubelet.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"short")
        node.rotate(log)
        assert log.read_bytes() == b"short"
        writer.write(b"and too long")
        node.rotate(log)
        writer.write(b"new")
    assert log.read_bytes() == b"new"
    assert (tmp_path / "kubelet.log.1").read_bytes() == b"shortand too long"


def test_a_cluster_weighs_more_than_one_process_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "CGROUPS", tmp_path)
    shares = tmp_path / "cpu/headrace/cpu.shares"
    shares.parent.mkdir(parents=True)
    shares.write_text("1024")
    node.make_cgroups("headrace", "n1")
    assert int(shares.read_text()) == 16 * 1024
    assert not (tmp_path / "cpu/headrace/n1/cpu.shares").exists(), "a node's is the default"


@pytest.fixture
def unified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cgroup v2 tree as far as files can fake one: the kernel's files of each group are there beforehand."""
    monkeypatch.setattr(node, "CGROUPS", tmp_path)
    for group in (tmp_path, tmp_path / "headrace", tmp_path / "headrace" / "n1"):
        group.mkdir(exist_ok=True)
        (group / "cgroup.controllers").write_text("cpuset cpu io memory pids rdma\n")
        (group / "cgroup.subtree_control").write_text("")
        (group / "cpu.weight").write_text("100")
    return tmp_path


def test_on_cgroup_v2_every_group_above_a_node_hands_its_controllers_down(unified: Path) -> None:
    node.make_cgroups("headrace", "n1")
    wanted = "+cpuset +cpu +io +memory +pids"
    assert (unified / "cgroup.subtree_control").read_text() == wanted
    assert (unified / "headrace" / "cgroup.subtree_control").read_text() == wanted
    assert (unified / "headrace" / "n1" / "cgroup.subtree_control").read_text() == "", "the kubelet's business"
    assert int((unified / "headrace" / "cpu.weight").read_text()) == 1600


def test_on_cgroup_v2_a_root_with_processes_is_a_message_with_the_fix(
    unified: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(path: Path, text: str) -> int:
        raise OSError(errno.EBUSY, f"Device or resource busy: {path} {text}")

    monkeypatch.setattr(Path, "write_text", busy)
    with pytest.raises(SystemExit, match=r"has processes in it.*Fix: .*cgroup/init"):
        node.make_cgroups("headrace", "n1")


def test_on_cgroup_v1_a_node_has_a_group_in_each_hierarchy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "CGROUPS", tmp_path)
    for name in ("memory", "cpuset"):
        (tmp_path / name).mkdir()
    for name, value in (("cpuset.cpus", "0-1"), ("cpuset.mems", "0")):
        (tmp_path / "cpuset" / name).write_text(value)
    node.make_cgroups("headrace", "n1")
    assert (tmp_path / "memory/headrace/n1").is_dir()
    assert (tmp_path / "cpuset/headrace/n1/cpuset.cpus").read_text() == "0-1"


def test_a_node_is_what_its_scripts_its_configuration_and_their_programs_are(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    (programs / "kubelet").symlink_to(tmp_path / "one")
    (programs / "helm").symlink_to(tmp_path / "one")
    member = Node("n1", "x-n1", "172.30.0.11", tmp_path / "n1")
    (member.directory / "services").mkdir(parents=True)
    (member.directory / "etc" / "certs.d").mkdir(parents=True)
    (member.directory / "services" / "kubelet.sh").write_text(f"exec {programs}/kubelet --v=1\n")
    before = digest(member, programs)
    (programs / "helm").unlink()
    (programs / "helm").symlink_to(tmp_path / "two")
    (member.directory / "etc" / "certs.d" / "hosts.toml").write_text("read at each pull")
    assert digest(member, programs) == before
    (programs / "kubelet").unlink()
    (programs / "kubelet").symlink_to(tmp_path / "two")
    after = digest(member, programs)
    assert after != before
    (member.directory / "etc" / "kubelet.yaml").write_text("kind: KubeletConfiguration")
    assert digest(member, programs) != after
