"""Whose a network namespace or device is: by the state folder, or by the mark that it carries. Never by name alone."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import pytest
from local_cluster import cli, host, network, nodes
from local_cluster.network import CommandError, Network
from local_cluster.settings import Settings, parse

from .test_settings import GOOD


class Kernel:
    """Namespaces by name with the alias of their lo; commands are recorded."""

    def __init__(self) -> None:
        self.namespaces: dict[str, str] = {}
        self.commands: list[str] = []

    def command(self, *argv: str) -> str:
        line = " ".join(argv)
        if "link show" in line and argv[1] == "-n":
            return json.dumps([{"ifname": "lo", "ifalias": self.namespaces[argv[2]]}])
        if "link show" in line:
            raise CommandError("no such device")
        if argv[:3] == ("ip", "netns", "del"):
            del self.namespaces[argv[3]]
        self.commands.append(line)
        return "[]"


@pytest.fixture
def raw(tmp_path: Path) -> dict[str, Any]:
    return {**GOOD, "name": "hrunit", "state_dir": str(tmp_path / "state")}


@pytest.fixture
def settings(raw: dict[str, Any]) -> Settings:
    found, problems = parse(raw)
    assert found, problems
    return found


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(network, "command", made.command)
    monkeypatch.setattr(Network, "namespaces", lambda self: sorted(made.namespaces))
    monkeypatch.setattr(nodes, "remove_cgroups", lambda settings, check: made.commands.append("cgroups") or [])
    return made


def call(function: Any, raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(raw)))
    return function(argparse.Namespace(state_dir=None, check=False))


def mark(settings: Settings) -> str:
    return f"headrace {settings.state_dir}"


def test_down_without_a_state_folder_leaves_what_is_not_marked(
    kernel: Kernel, raw: dict[str, Any], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.namespaces = {"hrunit-cp": "", "hrunit-n1": "headrace /another/folder"}
    assert call(cli.down, raw, monkeypatch) == {"changes": []}
    assert kernel.commands == [], "not even cgroups, which carry no mark"


def test_down_without_a_state_folder_removes_what_a_crash_left(
    kernel: Kernel, raw: dict[str, Any], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.namespaces = {"hrunit-cp": mark(settings), "hrunit-n1": ""}
    assert call(cli.down, raw, monkeypatch) == {"changes": ["remove network namespace hrunit-cp"]}
    assert kernel.commands == ["cgroups", "ip netns del hrunit-cp"]
    assert kernel.namespaces == {"hrunit-n1": ""}


def test_down_with_a_state_folder_removes_all_of_its_name(
    kernel: Kernel, raw: dict[str, Any], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.state_dir.mkdir()
    (settings.state_dir / "cluster.json").write_text(json.dumps(raw))
    kernel.namespaces = {"hrunit-cp": "", "hrunit-n1": ""}
    call(cli.down, raw, monkeypatch)
    assert kernel.namespaces == {}
    assert not settings.state_dir.exists()


def test_up_refuses_what_somebody_else_made(
    kernel: Kernel, raw: dict[str, Any], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.namespaces = {"hrunit-cp": mark(settings), "hrunit-n1": ""}
    with pytest.raises(nodes.NodeError, match=r"local_cluster_name: .*hrunit-n1.*ip netns del hrunit-n1") as refused:
        call(cli.up, raw, monkeypatch)
    assert "hrunit-cp" not in str(refused.value)
    assert kernel.commands == []
    assert [problem.what for problem in host._name(settings)] == ["local_cluster_name"]


def test_a_cluster_with_its_state_folder_is_repaired_whatever_the_marks(
    kernel: Kernel, raw: dict[str, Any], settings: Settings
) -> None:
    settings.state_dir.mkdir()
    (settings.state_dir / "cluster.json").write_text(json.dumps(raw))
    kernel.namespaces = {"hrunit-cp": "", "hrunit-n1": ""}
    assert host._name(settings) == []


def test_what_is_made_is_marked_once(kernel: Kernel, settings: Settings) -> None:
    kernel.namespaces = {"hrunit-cp": ""}
    made = Network(settings, check=False)
    made._mark("hrunit-cp", "lo")
    assert kernel.commands == [f"ip -n hrunit-cp link set dev lo alias {mark(settings)}"]
    kernel.namespaces = {"hrunit-cp": mark(settings)}
    made._mark("hrunit-cp", "lo")
    assert len(kernel.commands) == 1


def test_a_program_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommandError, match=r"`ip` is not installed. Fix: install iproute2"):
        network.command("ip", "link")


def test_down_needs_no_program_where_there_is_nothing(
    raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert call(cli.down, raw, monkeypatch) == {"changes": []}
