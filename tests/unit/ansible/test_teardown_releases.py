"""Playbook teardown tells its own Helm releases from somebody else's of the same name, by what their values say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

OURS = {"service": {"fqdn": {"hostname": "headrace-gateway.envoy-gateway-system.svc.cluster.local", "port": 5005}}}
THEIRS = {"service": {"fqdn": {"hostname": "ai-gateway.example.com", "port": 1063}}}
HOOK = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "certgen", "namespace": "envoy-gateway-system"}}


def envoy_gateway(**extension: Any) -> dict[str, Any]:
    return {"config": {"envoyGateway": {"extensionManager": extension}}}


MARK = {"global": {"partOf": "headrace"}}
# Values of the release `eg` and of `gpu-operator`, None where there is no such release; and which of them are ours.
CASES: dict[str, tuple[Any, Any, list[str]]] = {
    "none": (None, None, []),
    "ours": (envoy_gateway(**OURS), MARK, ["Envoy Gateway", "the GPU Operator"]),
    "no values": (None, {}, []),
    "null": ({}, {"global": None}, []),
    "another extension": (envoy_gateway(**THEIRS), {"global": {"partOf": "platform"}}, []),
    "other shapes": ({"config": "text"}, {"global": ["headrace"]}, []),
    "one of them": ({"config": {"envoyGateway": {"provider": {}}}}, MARK, ["the GPU Operator"]),
}  # fmt: skip

_POLICY = {"tag": "crd_policy", "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy"}
_CRD = {"tag": "crd", "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}
# What comes with CRDs, and whether role inference_crds has applied it.
DEFINITIONS = [
    ({**_POLICY, "name": "safe-upgrades", "managers": ["headrace"]}, True),
    ({**_POLICY, "name": "theirs", "managers": ["kubectl"]}, False),
    ({**_CRD, "name": "gateways", "managers": ["headrace", "kubectl"]}, True),
    ({**_CRD, "name": "others", "managers": ["helm"]}, False),
]


@pytest.fixture(scope="module")
def plans(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each case's plan is: the templates of the playbook, as it uses them."""
    folder = tmp_path_factory.mktemp("teardown")
    (folder / "templates").symlink_to(repository / "playbooks/templates")
    own = {"tag": "envoy_gateway", "apiVersion": "v1", "kind": "Secret", "namespace": "envoy-gateway-system"}
    found = [{**own, "name": "envoy", "managers": []}, *(one for one, _ in DEFINITIONS)]
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "vars_files": [str(repository / "playbooks/vars/teardown.yml")],
        "vars": {
            "gpu_node_pool_software": "operator",
            "__with_volumes": False,
            "__headrace_found": {"objects": [{**one, "ending": False} for one in found]},
        },
        "tasks": [
            {
                "name": "Plan",
                "ansible.builtin.copy": {
                    "content": "{{ lookup('ansible.builtin.template', playbook_dir ~ '/templates/teardown.json.j2') }}",
                    "dest": f"{folder}/{{{{ case.name }}}}.json",
                    "mode": "0600",
                },
                "vars": {
                    "__with_crds": "{{ case.name == 'no values' }}",
                    "__headrace_releases": {
                        "results": [
                            {"item": "{{ teardown_releases[0] }}", "status": "{{ case.statuses[0] }}"},
                            {"item": "{{ teardown_releases[1] }}", "status": "{{ case.statuses[1] }}"},
                        ]
                    },
                },
                "loop": [
                    {
                        "name": name,
                        "statuses": [{} if one is None else {"values": one, "hooks": [HOOK]} for one in values],
                    }
                    for name, (*values, _) in CASES.items()
                ],
                "loop_control": {"loop_var": "case", "label": "{{ case.name }}"},
            }
        ],
    }
    (folder / "play.yml").write_text(yaml.safe_dump([play]))
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-playbook"), "play.yml"],
        cwd=folder, env={**os.environ, "ANSIBLE_NOCOLOR": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_only_our_releases_go(plans: dict[str, dict[str, Any]], name: str) -> None:
    eg, operator, ours = CASES[name]
    plan = plans[name]
    assert [one["what"] for one in plan["releases"]] == ours
    there = [
        place for place, values in (("envoy-gateway-system/eg", eg), ("gpu-operator/gpu-operator", operator))
        if values is not None
    ]  # fmt: skip
    removed = [f"{one['namespace']}/{one['name']}" for one in plan["releases"]]
    told = [f"Helm release {place}" for place in there if place not in removed]
    kept = [line.removeprefix("Kept: ").split(",")[0] for line in plan["kept"] if " CRDs (" not in line]
    assert kept == told
    # What hooks and Envoy Gateway made goes with their release, and stays with it.
    assert [one["metadata"]["name"] for one in plan["hooks"]] == ["certgen"] * len(ours)
    assert [one["metadata"]["name"] for one in plan["written"]] == (["envoy"] if "Envoy Gateway" in ours else [])


def test_crds_go_where_somebody_says_so_and_the_policy_with_them(plans: dict[str, dict[str, Any]]) -> None:
    ours = [one["name"] for one, applied in DEFINITIONS if applied]
    assert [one["metadata"]["name"] for one in plans["no values"]["crds"]] == ours
    assert plans["none"]["crds"] == []
    assert plans["none"]["kept"] == ["Kept: 1 CRDs (headrace_teardown_crds removes them, and every object of them)."]
