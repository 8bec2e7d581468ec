"""Somebody else's playbook: two roles of the installed collection by their full names, and a cluster that is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent
PLAYBOOK = """
- name: Two roles
  hosts: localhost
  gather_facts: false
  module_defaults:
    group/kubernetes.core.k8s:
      kubeconfig: "{{ headrace_kubeconfig }}"
      context: "{{ headrace_context }}"
  roles:
    - headrace.inference.vllm_model_server
    - headrace.inference.inference_pool
"""


def install(repository: Path, home: Path) -> dict[str, str]:
    """Build and install the collection into `home`, without a network; what it depends on is beside Ansible.

    Returns the environment in which Ansible knows it and nothing of the checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    environment = {
        **kept,
        "ANSIBLE_COLLECTIONS_PATH": str(home),
        "ANSIBLE_HOME": str(home / ".ansible"),
        "ANSIBLE_NOCOLOR": "1",
    }
    galaxy = [str(BIN / "ansible-galaxy"), "collection"]
    for command in (["build", str(repository), "--output-path"], ["install", "--offline", "-p"]):
        found = [str(path) for path in home.glob("*.tar.gz")]
        done = subprocess.run(
            [*galaxy, *command, str(home), *found], cwd=home, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return environment


def play(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a playbook in a folder that has nothing of the checkout."""
    return subprocess.run(
        [str(BIN / "ansible-playbook"), *arguments],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900,
    )  # fmt: skip
