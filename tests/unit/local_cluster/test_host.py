"""A privilege, a tool or room that is missing is named, with the fix, before anything is changed."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Mapping
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from local_cluster import host, node
from local_cluster.host import Needs
from local_cluster.settings import Settings, parse

from .test_settings import GOOD

Usage = namedtuple("Usage", "total used free")
GIB = 2**30
ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    found, problems = parse({**GOOD, "name": "hrunit", "state_dir": str(tmp_path / "state"), "publish_address": ""})
    assert found, problems
    return found


class Machine:
    """A machine that has everything, until a test takes something away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.user = 0
        self.programs = {*host.PROGRAMS.values(), "apt-get", "dpkg-query", "go", "unshare"}
        self.installed = set(host.PROGRAMS) | {"libc6-dev", "debian-archive-keyring"}
        self.answers: dict[str, tuple[int, str]] = {
            "go env GOVERSION": (0, "go1.26.8\n"),
            "go env GOTOOLCHAIN": (0, "local\n"),
            "unshare": (0, ""),
        }
        self.free = 100 * GIB
        self.routes: list[tuple[IPv4Network, str]] = []
        monkeypatch.setattr(host.os, "geteuid", lambda: self.user)
        monkeypatch.setattr(host.shutil, "which", lambda name, path=None: name if name in self.programs else None)
        monkeypatch.setattr(host.shutil, "disk_usage", lambda path: Usage(self.free, 0, self.free))
        monkeypatch.setattr(host, "run", self.run)
        monkeypatch.setattr(host, "routes", lambda table: self.routes)
        monkeypatch.setattr(node, "CGROUPS", Path("/nonexistent"))

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        line = " ".join(command)
        if command[0] not in self.programs:
            return subprocess.CompletedProcess(command, 127, "", f"{command[0]} is not installed")
        if command[0] == "dpkg-query":
            wanted = [package for package in command[4:] if package in self.installed]
            return subprocess.CompletedProcess(command, 0, "".join(f"{package} installed\n" for package in wanted), "")
        code, text = next(answer for start, answer in self.answers.items() if line.startswith(start))
        return subprocess.CompletedProcess(command, code, text if not code else "", text if code else "")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def said(settings: Settings, tmp_path: Path, build: bool = True, missing: tuple[str, ...] = ()) -> str:
    return "\n".join(map(str, host.problems(settings, Needs(tmp_path / "cache", build, list(missing)))))


def test_a_machine_that_has_everything_has_no_problem(machine: Machine, settings: Settings, tmp_path: Path) -> None:
    assert said(settings, tmp_path) == ""
    assert not (tmp_path / "state").exists() and not (tmp_path / "cache").exists()


LACKS: Mapping[str, tuple[Callable[[Machine], Any], tuple[str, ...]]] = {
    "root": (lambda machine: setattr(machine, "user", 1000), ("privileges:", "sudo -E make up")),
    "namespaces": (
        lambda machine: machine.answers.update({"unshare": (1, "unshare failed: Operation not permitted")}),
        ("privileges:", "Operation not permitted", "--privileged"),
    ),
    "Go": (lambda machine: machine.programs.discard("go"), ("go:", "no `go` on PATH", "install Go 1.26.8 or newer")),
    "disk": (lambda machine: setattr(machine, "free", GIB), ("local_cluster_cache_dir:", "1024 MiB", "12288 MiB")),
}


@pytest.mark.parametrize("what", LACKS)
def test_what_is_missing_is_named_with_its_fix(machine: Machine, settings: Settings, tmp_path: Path, what: str) -> None:
    take_away, words = LACKS[what]
    take_away(machine)
    found = said(settings, tmp_path)
    assert all(word in found for word in words), found
    assert not any(tmp_path.iterdir()), "nothing is changed"


def test_packages_that_nobody_installs_are_named(machine: Machine, settings: Settings, tmp_path: Path) -> None:
    found = said(settings, tmp_path, missing=("runc", "socat"))
    assert found == "packages: runc socat missing. Fix: apt-get install runc socat."
    machine.programs.discard("apt-get")
    assert "what your distribution calls" in said(settings, tmp_path, missing=("runc",))


def test_a_program_of_another_package_is_as_good(machine: Machine, tmp_path: Path) -> None:
    """Docker's containerd.io brings containerd and runc: Debian's would put it away."""
    machine.installed -= {"containerd", "runc", "libc6-dev", "socat"}
    machine.programs.discard("socat")
    wanted = ["containerd", "runc", "libc6-dev", "socat", "iproute2", "containernetworking-plugins"]
    assert host.missing_packages(wanted, tmp_path) == ["libc6-dev", "socat", "containernetworking-plugins"]
    (tmp_path / "ptp").touch()
    assert host.missing_packages(wanted, tmp_path) == ["libc6-dev", "socat"]
    machine.programs -= {"apt-get", "runc"}
    assert host.missing_packages(wanted, tmp_path) == ["runc", "socat"]


@pytest.mark.parametrize(
    ("version", "toolchain", "words"),
    [
        ("go1.26.8", "local", ()),
        ("go1.27.0", "local", ()),
        ("go1.100.0", "local", ()),
        ("go1.19.8", "auto", ("go1.19.8", "install Go 1.26.8 or newer")),
        ("go1.24.4", "local", ("go1.24.4", "GOTOOLCHAIN=auto")),
        ("go1.24.4", "auto", ()),
        ("go1.24.4", "go1.24.4+auto", ()),
        ("devel go1.27-abc", "local", ()),
    ],
)
def test_an_old_go_is_refused_unless_it_fetches_a_newer_one(
    machine: Machine, settings: Settings, tmp_path: Path, version: str, toolchain: str, words: tuple[str, ...]
) -> None:
    machine.answers |= {"go env GOVERSION": (0, version), "go env GOTOOLCHAIN": (0, toolchain)}
    found = said(settings, tmp_path)
    assert all(word in found for word in words) and bool(found) is bool(words), found
    assert said(settings, tmp_path, build=False) == "", "where nothing is built, no Go is asked for"


def test_the_readmes_name_the_go_that_the_modules_ask_for(repository: Path) -> None:
    for path in ("README.md", "roles/local_cluster/README.md"):
        assert f"Go {host.go_needed()} or newer" in (repository / path).read_text(), path


def test_a_cluster_by_kind_asks_for_what_is_built_here(machine: Machine, tmp_path: Path) -> None:
    assert host.problems_of_kind(Needs(tmp_path, True, [])) == []
    machine.programs.discard("go")
    assert host.problems_of_kind(Needs(tmp_path, False, [])) == []
    found = "\n".join(map(str, host.problems_of_kind(Needs(tmp_path, True, ["buildah"]))))
    assert "no `go` on PATH" in found and "buildah missing" in found


def test_routes_are_read_without_a_program() -> None:
    if sys.byteorder == "little":
        found = [(str(network), device) for network, device in host.routes(ROUTES)]
        assert found == [("192.0.2.0/24", "eth0")]


@pytest.mark.parametrize("variable", ["node_network", "pod_network", "service_network", "load_balancer_network"])
def test_a_range_that_the_machine_uses_is_named(
    machine: Machine, settings: Settings, tmp_path: Path, variable: str
) -> None:
    taken = getattr(settings, variable)
    machine.routes = [(taken, "eth7")]
    found = said(settings, tmp_path)
    assert f"local_cluster_{variable}: {taken} overlaps" in found and "eth7" in found
    machine.routes = [(taken, settings.host_link)]
    assert said(settings, tmp_path) == "", "the cluster's own routes"


def test_a_port_that_another_program_has_is_named(machine: Machine, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        raw = {**GOOD, "name": "hrunit", "state_dir": str(tmp_path / "state"), "publish_address": address}
        settings, _ = parse(raw)
        assert settings
        assert f"local_cluster_publish_address: {address} is taken" in said(settings, tmp_path)


def test_a_missing_program_is_an_answer_and_no_traceback() -> None:
    done = host.run("no-such-program-anywhere", "--version")
    assert (done.returncode, done.stdout) == (127, "")


def unified(root: Path, processes: str, handed_down: str) -> None:
    (root / "cgroup.type").write_text("domain\n")
    (root / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (root / "cgroup.subtree_control").write_text(handed_down)
    (root / "cgroup.procs").write_text(processes)


@pytest.mark.parametrize(
    ("processes", "handed_down", "refused"),
    [("1\n7\n", "", True), ("1\n", "cpu memory", True), ("", "", False), ("1\n", "cpuset cpu io memory pids", False)],
)
def test_a_containers_cgroup_root_with_processes_is_named(
    machine: Machine, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    processes: str, handed_down: str, refused: bool,
) -> None:  # fmt: skip
    (tmp_path / "cgroup").mkdir()
    monkeypatch.setattr(node, "CGROUPS", tmp_path / "cgroup")
    unified(tmp_path / "cgroup", processes, handed_down)
    found = said(settings, tmp_path)
    assert ("cgroups:" in found and "cgroup/init" in found) is refused, found
    (tmp_path / "cgroup" / "cgroup.type").unlink()
    assert said(settings, tmp_path) == "", "a machine's own root hands down with processes in it"
