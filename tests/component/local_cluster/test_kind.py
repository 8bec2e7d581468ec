"""Inventory kind with a stand-in for kind, which writes down how it is called and remembers which clusters it made."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

KIND = """#!/bin/sh
printf '%s\\n' "$*" >>"$0.calls"
case "$1 $2" in
"get clusters") cat "$0.clusters" ;;
"create cluster") echo headrace >>"$0.clusters" ;;
"delete cluster") : >"$0.clusters" ;;
esac
"""
# Everything that would be downloaded or built lies in a cache of the test's own already: empty folders and files.
PLAYBOOK: list[dict[str, Any]] = [
    {
        "hosts": "headrace",
        "gather_facts": False,
        "tasks": [
            {"include_role": {"name": "local_cluster", "tasks_from": "facts"}},
            {
                "file": {"path": "{{ item.folder }}", "state": "directory", "mode": "0755"},
                "loop": "{{ __local_cluster_inspected.components }}",
                "check_mode": False,
            },
            {"include_role": {"name": "container_images", "tasks_from": "facts"}},
            {
                "copy": {"content": "", "dest": "{{ item.archive }}", "mode": "0644"},
                "loop": "{{ __container_images_listed }}",
                "check_mode": False,
            },
            {"include_role": {"name": "local_cluster"}},
            {"include_role": {"name": "container_images"}, "when": "local_cluster_state == 'present'"},
        ],
    }
]


class Kind:
    """The inventory's cluster in a folder of the test's own."""

    def __init__(self, repository: Path, folder: Path) -> None:
        self.repository = repository
        self.program = folder / "kind"
        self.program.write_text(KIND)
        self.program.chmod(0o755)
        (folder / "kind.clusters").touch()
        self.playbook = folder / "kind.yml"
        self.playbook.write_text(yaml.safe_dump(PLAYBOOK))
        self.state = folder / "state"
        self.cache = folder / "cache"
        (self.cache / "images").mkdir(parents=True)

    def run(self, *arguments: str, check: bool = True, **variables: Any) -> str:
        """Run the roles; the output."""
        given = {
            "local_cluster_kind_program": str(self.program),
            "local_cluster_state_dir": str(self.state),
            "local_cluster_cache_dir": str(self.cache),
            **variables,
        }
        command = [
            str(self.repository / ".venv/bin/ansible-playbook"), str(self.playbook), "-i", "inventories/kind",
            "-e", json.dumps(given), *arguments,
        ]  # fmt: skip
        environment = {**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_CONFIG": str(self.repository / "ansible.cfg")}
        done = subprocess.run(
            command, cwd=self.repository, env=environment, text=True, timeout=600,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert (done.returncode == 0) is check, done.stdout
        return done.stdout

    def calls(self) -> list[str]:
        """How kind was called since this was asked last, without the questions what there is."""
        path = self.program.with_name("kind.calls")
        found = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [call for call in found if call != "get clusters"]


@pytest.fixture
def kind(repository: Path, tmp_path: Path) -> Kind:
    return Kind(repository, tmp_path)


def test_kind_is_called_as_its_documents_say(kind: Kind) -> None:
    kubeconfig = kind.state / "kubeconfig/admin.conf"
    said = kind.run("--check")
    assert kind.calls() == []
    assert not kind.state.exists(), said

    labels = {"n2": {"example.com/pool": "b"}}
    kind.run(local_cluster_node_labels=labels)
    create, load = kind.calls()
    assert create == f"create cluster --config={kind.state}/kind.yaml --kubeconfig={kubeconfig} --wait=180s"
    (archive,) = (kind.cache / "images").glob("controller-????????????.tar")
    assert load == f"load image-archive {archive} --name=headrace"
    assert yaml.safe_load((kind.state / "kind.yaml").read_text()) == {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "name": "headrace",
        "networking": {
            "podSubnet": "10.244.0.0/16",
            "serviceSubnet": "10.96.0.0/16",
            "kubeProxyMode": "iptables",
        },
        "nodes": [
            {
                "role": "control-plane",
                "extraPortMappings": [
                    {"containerPort": 30080, "hostPort": 8080, "listenAddress": "127.0.0.1", "protocol": "TCP"}
                ],
            },
            {"role": "worker"},
            {"role": "worker", "labels": {"example.com/pool": "b"}},
        ],
    }

    said = kind.run(local_cluster_node_labels=labels)
    assert kind.calls() == [], "a second run creates and loads nothing"
    assert "changed=0" in said, said

    kind.run(local_cluster_state="absent")
    assert kind.calls() == [f"delete cluster --name=headrace --kubeconfig={kubeconfig}"]
    assert not kind.state.exists()


def test_an_image_of_the_nodes_is_passed_on(kind: Kind) -> None:
    kind.run(local_cluster_kind_image="docker.io/kindest/node:v1.34.0", local_cluster_publish_address="")
    assert kind.calls()[0].endswith("--image=docker.io/kindest/node:v1.34.0")
    nodes = yaml.safe_load((kind.state / "kind.yaml").read_text())["nodes"]
    assert nodes == [{"role": "control-plane"}, {"role": "worker"}, {"role": "worker"}]


def test_without_kind_the_message_says_what_to_install(kind: Kind) -> None:
    kind.program.unlink()
    said = " ".join(kind.run(check=False).split())
    assert "Fix: install kind" in said
    assert not kind.state.exists()
